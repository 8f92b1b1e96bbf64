//! gRPC's framing, and the messages of the services that a proxy calls, as JSON.

use prost_reflect::{DynamicMessage, SerializeOptions, prost::Message as _};
use serde_json::{Value, json};

/// Methods that a scripted gRPC server knows: path, request, response.
const METHODS: &[(&str, &str, &str)] = &[
    (
        "/envoy.service.auth.v3.Authorization/Check",
        "envoy.service.auth.v3.CheckRequest",
        "envoy.service.auth.v3.CheckResponse",
    ),
    (
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        "envoy.service.ratelimit.v3.RateLimitRequest",
        "envoy.service.ratelimit.v3.RateLimitResponse",
    ),
    (
        "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
        "envoy.service.accesslog.v3.StreamAccessLogsMessage",
        "envoy.service.accesslog.v3.StreamAccessLogsResponse",
    ),
    (
        "/grpc.health.v1.Health/Check",
        "grpc.health.v1.HealthCheckRequest",
        "grpc.health.v1.HealthCheckResponse",
    ),
];

/// A message in gRPC's frame.
#[must_use]
pub fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(
        u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    bytes.extend(message);
    bytes
}

/// The messages in a body; `None` where it is not gRPC.
#[must_use]
pub fn messages(mut body: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let head = body.get(..5)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        messages.push(body.get(5..5 + length)?.to_vec());
        body = &body[5 + length..];
    }
    Some(messages)
}

/// A request's messages as JSON, if its method is known.
#[must_use]
pub fn request_json(path: &str, body: &[u8]) -> Option<Value> {
    let (_, request, _) = METHODS.iter().find(|(method, ..)| *method == path)?;
    let descriptor = proto::descriptor::message(request)?;
    let messages = messages(body)?;
    let messages = messages.iter().map(|message| {
        let message = DynamicMessage::decode(descriptor.clone(), message.as_slice()).ok()?;
        let options = SerializeOptions::new().use_proto_field_name(true);
        let json = message.serialize_with_options(serde_json::value::Serializer, &options);
        json.ok().map(steady)
    });
    Some(json!(messages.collect::<Option<Vec<Value>>>()?))
}

/// A message without what changes from run to run: times, ids, the ports of clients.
fn steady(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| {
                let value = match (key.as_str(), &value) {
                    ("port_value", Value::Number(port)) if port.as_u64() >= Some(30_000) => {
                        json!("EPHEMERAL")
                    }
                    ("time" | "start_time" | "id", _) => json!("VARIES"),
                    _ => steady(value),
                };
                (key, value)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(steady).collect(),
        other => other,
    }
}

/// An answer's message in gRPC's frame.
///
/// # Errors
/// When the method is unknown or the message does not fit.
pub fn answer(path: &str, message: &Value) -> anyhow::Result<Vec<u8>> {
    let row = METHODS.iter().find(|(method, ..)| *method == path);
    let (_, _, response) = row.ok_or_else(|| anyhow::anyhow!("no answer is known for {path}"))?;
    Ok(frame(
        &proto::json::dynamic_from_value(response, message)?.encode_to_vec(),
    ))
}
