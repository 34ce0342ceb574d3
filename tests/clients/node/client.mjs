// A Node service in miniature: flagd's stock OpenFeature provider behind the line protocol of ../README.md.

import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { FlagdProvider } from '@openfeature/flagd-provider';
import { OpenFeature, ProviderEvents, ProviderStatus } from '@openfeature/server-sdk';

const { values: options } = parseArgs({
  options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string' },
    mode: { type: 'string', default: 'rpc' },
    'deadline-ms': { type: 'string', default: '500' },
    cache: { type: 'string', default: 'lru' },
  },
});

const LOST = [ProviderStatus.STALE, ProviderStatus.ERROR, ProviderStatus.FATAL];

const client = OpenFeature.getClient();
const changed = new Set();
let waiters = [];

// Each waiter is asked again at every event; those whose condition holds are done.
function heard() {
  waiters = waiters.filter((waiter) => !waiter());
}

function until(holds, timeoutMs) {
  return new Promise((resolve) => {
    if (holds()) return resolve({ happened: true });
    const timer = setTimeout(() => {
      waiters = waiters.filter((each) => each !== waiter);
      resolve({ happened: false });
    }, timeoutMs);
    const waiter = () => {
      if (!holds()) return false;
      clearTimeout(timer);
      resolve({ happened: true });
      return true;
    };
    waiters.push(waiter);
  });
}

async function evaluate({ type, key, default: fallback, context }) {
  const method = {
    boolean: 'getBooleanDetails',
    string: 'getStringDetails',
    integer: 'getNumberDetails', // JavaScript has one type of numbers
    float: 'getNumberDetails',
    object: 'getObjectDetails',
  }[type];
  const details = await client[method](key, fallback, context ?? undefined);
  return {
    value: details.value,
    variant: details.variant ?? null,
    reason: details.reason ?? null,
    errorCode: details.errorCode ?? null,
    metadata: details.flagMetadata ?? {},
  };
}

async function census({ keys, contexts }) {
  const marks = {};
  for (const key of keys) {
    let mark = '';
    for (const context of contexts) {
      const details = await client.getBooleanDetails(key, false, context ?? undefined);
      mark += details.errorCode ? '?' : details.value ? '1' : '0';
    }
    marks[key] = mark;
  }
  return { marks };
}

async function answer(request) {
  switch (request.op) {
    case 'evaluate':
      return evaluate(request);
    case 'census':
      return census(request);
    case 'forget':
      changed.clear();
      return {};
    case 'await_change':
      return until(() => changed.has(request.key), request.timeoutMs);
    case 'await_ready':
      return until(() => client.providerStatus === ProviderStatus.READY, request.timeoutMs);
    case 'await_stale_or_error':
      return until(() => LOST.includes(client.providerStatus), request.timeoutMs);
    default:
      return { error: `unknown op ${request.op}` };
  }
}

client.addHandler(ProviderEvents.ConfigurationChanged, (details) => {
  (details?.flagsChanged ?? []).forEach((key) => changed.add(key));
  heard();
});
for (const event of [ProviderEvents.Ready, ProviderEvents.Stale, ProviderEvents.Error]) {
  client.addHandler(event, heard);
}

OpenFeature.setProvider(
  new FlagdProvider({
    host: options.host,
    port: Number(options.port),
    resolverType: options.mode,
    deadlineMs: Number(options['deadline-ms']),
    cache: options.cache,
    // A test waits for what production waits for, only sooner.
    retryBackoffMs: 1000, // rounded to whole seconds by the provider
    retryBackoffMaxMs: 500,
  }),
);

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  if (request.op === 'quit') break;
  process.stdout.write(JSON.stringify(await answer(request)) + '\n');
}
process.exit(0);
