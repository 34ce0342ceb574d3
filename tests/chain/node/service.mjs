// A service of a chain, in Node: asks its sidecar by OFREP, then the next service over HTTP. ../README.md has the protocol.

import { createServer } from 'node:http';
import { parseArgs } from 'node:util';

const PIN_KEY = 'flaghoist.seq';
const SEQ_HEADER = 'flaghoist-seq';
const OUR_PREFIX = 'flaghoist';
// For failures only: a chain of three answers within some milliseconds.
const CALL_TIMEOUT_MS = 10_000;

const { values: options } = parseArgs({ options: { sidecar: { type: 'string' } } });

// Returns the response's body as JSON, and the response; fails on any status but 200.
async function call(url, method, headers, baggage, body) {
  const response = await fetch(url, {
    method,
    headers: baggage ? { ...headers, baggage } : headers,
    body,
    signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
  });
  const text = await response.text();
  if (response.status !== 200) throw new Error(`${url} answered ${response.status}: ${text}`);
  return [JSON.parse(text), response];
}

async function evaluate(key, user, baggage) {
  const url = `http://${options.sidecar}/ofrep/v1/evaluate/flags/${key}`;
  const body = JSON.stringify({ context: user ? { targetingKey: user } : {} });
  const [flag, response] = await call(url, 'POST', { 'content-type': 'application/json' }, baggage, body);
  const headers = Object.fromEntries([...response.headers].filter(([name]) => name.startsWith(OUR_PREFIX)));
  return { value: flag.value, metadata: flag.metadata, headers };
}

async function ask(query, incoming) {
  const [path, pins, user] = [query.get('path') ?? '', query.get('pins'), query.get('user') ?? ''];
  const a = await evaluate('a', user, incoming);
  let baggage = incoming;
  if (pins === 'on' && !incoming.includes(`${PIN_KEY}=`)) {
    // The edge of the chain: what its first answer was made from holds from here on, beside what others put there.
    baggage = [incoming, `${PIN_KEY}=${a.headers[SEQ_HEADER]}`].filter(Boolean).join(',');
  }
  const b = await evaluate('b', user, baggage);
  const seen = { service: 'node', baggage: incoming, a, b };
  if (path === '') return [seen];
  const [port, ...rest] = path.split(',');
  const next = new URLSearchParams({ path: rest.join(','), pins, user });
  const [others] = await call(`http://127.0.0.1:${port}/ask?${next}`, 'GET', {}, baggage);
  return [seen, ...others];
}

const server = createServer(async (request, response) => {
  const url = new URL(request.url, 'http://127.0.0.1');
  if (request.method !== 'GET' || url.pathname !== '/ask') {
    response.writeHead(404).end();
    return;
  }
  try {
    const sights = await ask(url.searchParams, request.headers.baggage ?? '');
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(sights));
  } catch (error) {
    response.writeHead(502).end(`node: ${error} ${error.cause ?? ''}`);
  }
});
server.listen(0, '127.0.0.1', () => process.stdout.write(`${server.address().port}\n`));
