//! What is added to a request's attributes when it is over.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp};
use proto_mesh::attribute::{Attributes, Value};

use crate::http::filter::StreamEnd;
use crate::http::headers::{is_grpc, names};
use crate::mixer_client::Outcome;

use super::request::{ip_bytes, map_of, struct_map};

/// Where the RBAC filter leaves what its shadow rules say.
const RBAC: &str = "envoy.filters.http.rbac";

/// The attributes of a report.
pub(super) fn attributes(
    mut attributes: Attributes,
    end: &StreamEnd<'_>,
    outcome: Option<&Outcome>,
) -> Attributes {
    let info = &end.stream.info;
    if let Some(host) = info
        .upstream
        .host
        .as_ref()
        .and_then(|host| host.parse().ok())
    {
        add_destination(&mut attributes, host);
    }
    let request_head =
        head_size(&end.request.map) + end.request.path.as_str().len() + end.request.authority.len();
    let mut response_head = 0;
    let mut headers = Vec::new();
    for map in end
        .response
        .map(|response| &response.map)
        .into_iter()
        .chain(end.trailers)
    {
        response_head += head_size(map);
        headers.extend(map_of(map));
    }
    if let Some(response) = end.response {
        headers.push((":status".into(), response.status.as_str().to_owned()));
    }
    attributes.set("response.headers", Value::StringMap(headers));
    attributes.set(
        "response.time",
        Value::Timestamp(Timestamp::from(SystemTime::now())),
    );
    attributes.set("response.duration", duration(info.duration()));
    attributes.set("request.size", count(info.bytes_received));
    attributes.set("response.size", count(info.bytes_sent));
    attributes.set(
        "request.total_size",
        count(info.bytes_received + request_head as u64),
    );
    attributes.set(
        "response.total_size",
        count(info.bytes_sent + response_head as u64),
    );
    attributes.set(
        "response.code",
        i64::from(info.response_code.unwrap_or(500)),
    );
    let flags = if info.flags.is_empty() {
        "-".to_owned()
    } else {
        let mut flags = String::new();
        info.flags.write(false, &mut flags);
        flags
    };
    attributes.set("context.proxy_error_code", flags);
    add_grpc(&mut attributes, end);
    add_outcome(&mut attributes, outcome);
    if let Some(shadow) = info.metadata.get(RBAC) {
        add_shadow(&mut attributes, shadow);
    }
    for (filter, fields) in info.metadata.iter() {
        let entries = struct_map(fields);
        if !entries.is_empty() {
            attributes.set(filter.to_owned(), Value::StringMap(entries));
        }
    }
    attributes
}

/// Where the traffic went, unless configuration has said it.
pub(crate) fn add_destination(attributes: &mut Attributes, host: SocketAddr) {
    if attributes.get("destination.ip").is_none() {
        attributes.set("destination.ip", Value::Bytes(ip_bytes(host.ip())));
    }
    if attributes.get("destination.port").is_none() {
        attributes.set("destination.port", i64::from(host.port()));
    }
}

/// What the check said; also for TCP.
pub(crate) fn add_outcome(attributes: &mut Attributes, outcome: Option<&Outcome>) {
    let Some(outcome) = outcome else {
        return;
    };
    attributes.set("check.cache_hit", outcome.check_cache_hit);
    attributes.set("quota.cache_hit", outcome.quota_cache_hit);
    if !outcome.is_ok() {
        attributes.set("check.error_code", i64::from(outcome.status.code));
        attributes.set("check.error_message", outcome.status.message.clone());
    }
}

/// As an attribute.
pub(crate) fn duration(duration: Duration) -> Value {
    Value::Duration(prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    })
}

/// As an attribute.
pub(crate) fn count(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn add_grpc(attributes: &mut Attributes, end: &StreamEnd<'_>) {
    let Some(response) = end.response.filter(|response| is_grpc(&response.map)) else {
        return;
    };
    for (attribute, name) in [
        ("response.grpc_status", &names::GRPC_STATUS),
        ("response.grpc_message", &names::GRPC_MESSAGE),
    ] {
        let value = end
            .trailers
            .and_then(|trailers| trailers.get(name))
            .or_else(|| response.map.get(name));
        if let Some(value) = value.and_then(|value| value.to_str().ok()) {
            attributes.set(attribute, value.to_owned());
        }
    }
}

fn add_shadow(attributes: &mut Attributes, shadow: &Struct) {
    let text = |key: &str| match shadow.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    };
    if let Some(result) = text("shadow_engine_result") {
        let code = if result == "allowed" { "200" } else { "403" };
        attributes.set("rbac.permissive.response_code", code);
    }
    if let Some(policy) = text("shadow_effective_policy_id") {
        attributes.set("rbac.permissive.effective_policy_id", policy);
    }
}

/// Names and values, as they count towards the total size.
fn head_size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}
