import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.openfeature.contrib.providers.flagd.Config;
import dev.openfeature.contrib.providers.flagd.FlagdOptions;
import dev.openfeature.contrib.providers.flagd.FlagdProvider;
import dev.openfeature.sdk.EvaluationContext;
import dev.openfeature.sdk.FlagEvaluationDetails;
import dev.openfeature.sdk.ImmutableContext;
import dev.openfeature.sdk.OpenFeatureAPI;
import dev.openfeature.sdk.ProviderState;
import dev.openfeature.sdk.Value;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.BooleanSupplier;

/** A Java service in miniature: flagd's stock OpenFeature provider behind the line protocol of ../README.md. */
public final class Client {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Set<ProviderState> LOST =
            Set.of(ProviderState.STALE, ProviderState.ERROR, ProviderState.FATAL);

    private final dev.openfeature.sdk.Client client;
    private final Object heard = new Object();
    private final Set<String> changed = new HashSet<>();

    private Client(FlagdProvider provider) {
        OpenFeatureAPI api = OpenFeatureAPI.getInstance();
        client = api.getClient();
        client.onProviderConfigurationChanged(details -> {
            synchronized (heard) {
                if (details.getFlagsChanged() != null) {
                    changed.addAll(details.getFlagsChanged());
                }
                heard.notifyAll();
            }
        });
        client.onProviderReady(details -> wake());
        client.onProviderStale(details -> wake());
        client.onProviderError(details -> wake());
        api.setProvider(provider);
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        for (int i = 0; i + 1 < arguments.length; i += 2) {
            options.put(arguments[i].substring(2), arguments[i + 1]);
        }
        FlagdProvider provider = new FlagdProvider(FlagdOptions.builder()
                .host(options.getOrDefault("host", "127.0.0.1"))
                .port(Integer.parseInt(options.get("port")))
                .resolverType(
                        options.getOrDefault("mode", "rpc").equals("rpc")
                                ? Config.Resolver.RPC
                                : Config.Resolver.IN_PROCESS)
                .deadline(Integer.parseInt(options.getOrDefault("deadline-ms", "500")))
                .cacheType(options.getOrDefault("cache", "lru"))
                // A test waits for what production waits for, only sooner.
                .retryBackoffMs(100)
                .build());
        Client service = new Client(provider);
        PrintStream output = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            JsonNode request = JSON.readTree(line);
            if (request.get("op").asText().equals("quit")) {
                break;
            }
            output.println(JSON.writeValueAsString(service.answer(request)));
        }
        // exit and not return: threads of the provider outlive a provider that never became ready.
        System.exit(0);
    }

    private Map<String, Object> answer(JsonNode request) throws Exception {
        String key = request.path("key").asText();
        long timeoutMs = request.path("timeoutMs").asLong();
        switch (request.get("op").asText()) {
            case "evaluate":
                return evaluate(request.get("type").asText(), key, request.get("default"), request.path("context"));
            case "census":
                return census(request.get("keys"), request.get("contexts"));
            case "forget":
                synchronized (heard) {
                    changed.clear();
                }
                return Map.of();
            case "await_change":
                return await(() -> changed.contains(key), timeoutMs);
            case "await_ready":
                return await(() -> client.getProviderState() == ProviderState.READY, timeoutMs);
            case "await_stale_or_error":
                return await(() -> LOST.contains(client.getProviderState()), timeoutMs);
            default:
                return Map.of("error", "unknown op " + request.get("op"));
        }
    }

    private Map<String, Object> evaluate(String type, String key, JsonNode fallback, JsonNode json) throws Exception {
        EvaluationContext context = context(json);
        switch (type) {
            case "boolean":
                return told(client.getBooleanDetails(key, fallback.asBoolean(), context));
            case "string":
                return told(client.getStringDetails(key, fallback.asText(), context));
            case "integer":
                return told(client.getIntegerDetails(key, fallback.asInt(), context));
            case "float":
                return told(client.getDoubleDetails(key, fallback.asDouble(), context));
            case "object":
                return told(client.getObjectDetails(key, value(fallback), context));
            default:
                return Map.of("error", "unknown type " + type);
        }
    }

    private Map<String, Object> census(JsonNode keys, JsonNode contexts) throws Exception {
        List<EvaluationContext> parsed = new ArrayList<>();
        for (JsonNode each : contexts) {
            parsed.add(context(each));
        }
        Map<String, Object> marks = new LinkedHashMap<>();
        for (JsonNode key : keys) {
            StringBuilder mark = new StringBuilder(parsed.size());
            for (EvaluationContext context : parsed) {
                FlagEvaluationDetails<Boolean> details = client.getBooleanDetails(key.asText(), false, context);
                mark.append(details.getErrorCode() != null ? '?' : details.getValue() ? '1' : '0');
            }
            marks.put(key.asText(), mark.toString());
        }
        return Map.of("marks", marks);
    }

    private static Map<String, Object> told(FlagEvaluationDetails<?> details) {
        Object value = details.getValue();
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("value", value instanceof Value ? plain((Value) value) : value);
        answer.put("variant", details.getVariant());
        answer.put("reason", details.getReason());
        answer.put("errorCode", details.getErrorCode() == null ? null : details.getErrorCode().name());
        answer.put(
                "metadata",
                details.getFlagMetadata() == null
                        ? Map.of()
                        : details.getFlagMetadata().asUnmodifiableMap());
        return answer;
    }

    private static EvaluationContext context(JsonNode json) throws Exception {
        if (!json.isObject()) {
            return null;
        }
        Map<String, Value> attributes = new HashMap<>();
        for (Map.Entry<String, JsonNode> entry : json.properties()) {
            if (!entry.getKey().equals("targetingKey")) {
                attributes.put(entry.getKey(), value(entry.getValue()));
            }
        }
        JsonNode targetingKey = json.path("targetingKey");
        return targetingKey.isTextual()
                ? new ImmutableContext(targetingKey.asText(), attributes)
                : new ImmutableContext(attributes);
    }

    private static Value value(JsonNode json) throws Exception {
        return Value.objectToValue(JSON.convertValue(json, Object.class));
    }

    private static Object plain(Value value) {
        if (value.isStructure()) {
            Map<String, Object> fields = new LinkedHashMap<>();
            value.asStructure().asMap().forEach((name, each) -> fields.put(name, plain(each)));
            return fields;
        }
        return value.isList() ? value.asList().stream().map(Client::plain).toList() : value.asObject();
    }

    private void wake() {
        synchronized (heard) {
            heard.notifyAll();
        }
    }

    /** Waits until a condition holds, which is asked at first and after every event. */
    private Map<String, Object> await(BooleanSupplier holds, long timeoutMs) throws InterruptedException {
        long end = System.nanoTime() + timeoutMs * 1_000_000;
        synchronized (heard) {
            while (!holds.getAsBoolean()) {
                long leftMs = (end - System.nanoTime()) / 1_000_000;
                if (leftMs <= 0) {
                    return Map.of("happened", false);
                }
                heard.wait(leftMs);
            }
        }
        return Map.of("happened", true);
    }
}
