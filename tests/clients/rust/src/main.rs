//! A Rust service in miniature: flagd's stock OpenFeature provider behind the line protocol of ../README.md.
//!
//! The provider has no events: `await_change` and `await_stale_or_error` answer that they are unsupported.

use std::time::{Duration, Instant};

use open_feature::{
    Client, EvaluationContext, EvaluationContextFieldValue, EvaluationDetails, EvaluationError, FlagMetadataValue,
    OpenFeature, StructValue, Value,
};
use open_feature_flagd::{CacheSettings, CacheType, FlagdOptions, FlagdProvider, ResolverType};
use serde_json::{Map, Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinHandle;

/// What one started program was asked to be.
struct Options {
    host: String,
    port: u16,
    resolver_type: ResolverType,
    deadline_ms: u32,
    cached: bool,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self {
            host: "127.0.0.1".into(),
            port: 0,
            resolver_type: ResolverType::Rpc,
            deadline_ms: 500,
            cached: true,
        };
        let arguments: Vec<String> = arguments.collect();
        for pair in arguments.chunks(2) {
            let value = pair.get(1).unwrap_or_else(|| panic!("{} wants a value", pair[0]));
            match pair[0].as_str() {
                "--host" => options.host.clone_from(value),
                "--port" => options.port = value.parse().expect("--port wants a number"),
                "--deadline-ms" => options.deadline_ms = value.parse().expect("--deadline-ms wants a number"),
                "--mode" if value == "in-process" => options.resolver_type = ResolverType::InProcess,
                "--mode" => assert_eq!(value, "rpc", "--mode wants rpc or in-process"),
                "--cache" => options.cached = value != "disabled",
                other => panic!("unknown option {other}"),
            }
        }
        options
    }

    fn flagd(self) -> FlagdOptions {
        let cache_settings = (self.cached && self.resolver_type == ResolverType::Rpc).then(|| CacheSettings {
            cache_type: CacheType::Lru,
            ..Default::default()
        });
        FlagdOptions {
            host: self.host,
            port: self.port,
            resolver_type: self.resolver_type,
            deadline_ms: self.deadline_ms,
            cache_settings,
            // A test waits for what production waits for, only sooner.
            retry_backoff_ms: 100,
            retry_backoff_max_ms: 500,
            ..Default::default()
        }
    }
}

/// Makes the provider, which connects, and gives it to the SDK; tries again until there is a sidecar.
///
/// Until then the SDK's own provider answers, with an error: a service uses its default.
fn connect(options: Options) -> JoinHandle<()> {
    let options = options.flagd();
    tokio::spawn(async move {
        loop {
            match FlagdProvider::new(options.clone()).await {
                Ok(provider) => {
                    OpenFeature::singleton_mut().await.set_provider(provider).await;
                    return;
                }
                Err(error) => eprintln!("no provider yet: {error}"),
            }
        }
    })
}

fn context_of(json: &Json) -> EvaluationContext {
    let mut context = EvaluationContext::default();
    for (name, value) in json.as_object().into_iter().flatten() {
        let field: EvaluationContextFieldValue = match value {
            Json::String(text) if name == "targetingKey" => {
                context = context.with_targeting_key(text);
                continue;
            }
            Json::String(text) => text.clone().into(),
            Json::Bool(truth) => (*truth).into(),
            Json::Number(number) => match number.as_i64() {
                Some(whole) => whole.into(),
                None => number.as_f64().unwrap_or_default().into(),
            },
            // The SDK's context has no null, and the provider sends lists and objects as debug text.
            _ => continue,
        };
        context.add_custom_field(name, field);
    }
    context
}

fn told<T>(outcome: Result<EvaluationDetails<T>, EvaluationError>, fallback: &Json, to_json: fn(T) -> Json) -> Json {
    match outcome {
        Ok(details) => json!({
            "value": to_json(details.value),
            "variant": details.variant.filter(|variant| !variant.is_empty()),
            "reason": details.reason.map(|reason| reason.to_string()),
            "errorCode": null,
            "metadata": details.flag_metadata.values.into_iter().map(|(name, value)| {
                let value = match value {
                    FlagMetadataValue::Bool(truth) => json!(truth),
                    FlagMetadataValue::Int(number) => json!(number),
                    FlagMetadataValue::Float(number) => json!(number),
                    FlagMetadataValue::String(text) => json!(text),
                };
                (name, value)
            }).collect::<Map<String, Json>>(),
        }),
        // The SDK has no default of its own: `unwrap_or` is what a service writes.
        Err(error) => json!({
            "value": fallback,
            "variant": null,
            "reason": "ERROR",
            "errorCode": error.code.to_string(),
            "metadata": {},
        }),
    }
}

fn struct_to_json(value: StructValue) -> Json {
    value
        .fields
        .into_iter()
        .map(|(name, value)| (name, value_to_json(value)))
        .collect::<Map<_, _>>()
        .into()
}

fn value_to_json(value: Value) -> Json {
    match value {
        Value::Bool(truth) => json!(truth),
        Value::Int(number) => json!(number),
        Value::Float(number) => json!(number),
        Value::String(text) => json!(text),
        Value::Array(values) => values.into_iter().map(value_to_json).collect(),
        Value::Struct(value) => struct_to_json(value),
    }
}

async fn evaluate(client: &Client, request: &Json) -> Json {
    let key = request["key"].as_str().unwrap_or_default();
    let fallback = &request["default"];
    let context = context_of(&request["context"]);
    let context = Some(&context);
    match request["type"].as_str() {
        Some("boolean") => told(client.get_bool_details(key, context, None).await, fallback, Json::from),
        Some("string") => told(
            client.get_string_details(key, context, None).await,
            fallback,
            Json::from,
        ),
        Some("integer") => told(client.get_int_details(key, context, None).await, fallback, Json::from),
        Some("float") => told(client.get_float_details(key, context, None).await, fallback, Json::from),
        Some("object") => told(
            client.get_struct_details::<StructValue>(key, context, None).await,
            fallback,
            struct_to_json,
        ),
        other => json!({ "error": format!("unknown type {other:?}") }),
    }
}

async fn census(client: &Client, request: &Json) -> Json {
    let none = Vec::new();
    let contexts: Vec<EvaluationContext> = request["contexts"]
        .as_array()
        .unwrap_or(&none)
        .iter()
        .map(context_of)
        .collect();
    let mut marks = Map::new();
    for key in request["keys"].as_array().unwrap_or(&none).iter().filter_map(Json::as_str) {
        let mut mark = String::with_capacity(contexts.len());
        for context in &contexts {
            mark.push(match client.get_bool_details(key, Some(context), None).await {
                Ok(details) if details.value => '1',
                Ok(_) => '0',
                Err(_) => '?',
            });
        }
        marks.insert(key.to_owned(), mark.into());
    }
    json!({ "marks": marks })
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut connecting = connect(Options::parse(std::env::args().skip(1)));
    let client = OpenFeature::singleton().await.create_client();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut output = tokio::io::stdout();
    while let Some(line) = lines.next_line().await? {
        let request: Json = serde_json::from_str(&line)?;
        let timeout = Duration::from_millis(request["timeoutMs"].as_u64().unwrap_or_default());
        let answer = match request["op"].as_str().unwrap_or_default() {
            "evaluate" => evaluate(&client, &request).await,
            "census" => census(&client, &request).await,
            "forget" => json!({}),
            "await_ready" => {
                let end = Instant::now() + timeout;
                while !connecting.is_finished() && Instant::now() < end {
                    let left = end.saturating_duration_since(Instant::now());
                    let _ = tokio::time::timeout(left, &mut connecting).await;
                }
                json!({ "happened": connecting.is_finished() })
            }
            "await_change" | "await_stale_or_error" => json!({ "error": "unsupported" }),
            "quit" => break,
            other => json!({ "error": format!("unknown op {other}") }),
        };
        output.write_all(format!("{answer}\n").as_bytes()).await?;
        output.flush().await?;
    }
    // exit and not return: a provider that still tries to connect would be waited for.
    std::process::exit(0)
}
