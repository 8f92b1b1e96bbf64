//! What is added to a request's attributes when it is over.

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderMap;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp};
use proto_mesh::attribute::record::Record;
use proto_mesh::attribute::{Known, ValueRef};

use crate::http::filter::StreamEnd;
use crate::http::headers::{is_grpc, names};
use crate::mixer_client::Outcome;

use super::request::{add_fields, set_ip, struct_map};

/// Where the RBAC filter leaves what its shadow rules say.
const RBAC: &str = "envoy.filters.http.rbac";

const CHECK_CACHE_HIT: Known = Known::new("check.cache_hit");
const CHECK_ERROR_CODE: Known = Known::new("check.error_code");
const CHECK_ERROR_MESSAGE: Known = Known::new("check.error_message");
const DESTINATION_IP: Known = Known::new("destination.ip");
const DESTINATION_PORT: Known = Known::new("destination.port");
const ERROR_CODE: Known = Known::new("context.proxy_error_code");
const GRPC_MESSAGE: Known = Known::new("response.grpc_message");
const GRPC_STATUS: Known = Known::new("response.grpc_status");
const QUOTA_CACHE_HIT: Known = Known::new("quota.cache_hit");
const REQUEST_SIZE: Known = Known::new("request.size");
const REQUEST_TOTAL_SIZE: Known = Known::new("request.total_size");
const RESPONSE_CODE: Known = Known::new("response.code");
const RESPONSE_DURATION: Known = Known::new("response.duration");
const RESPONSE_HEADERS: Known = Known::new("response.headers");
const RESPONSE_SIZE: Known = Known::new("response.size");
const RESPONSE_TIME: Known = Known::new("response.time");
const RESPONSE_TOTAL_SIZE: Known = Known::new("response.total_size");

/// Adds what a report has beside what a check has.
pub(super) fn fill(record: &mut Record, end: &StreamEnd<'_>, outcome: Option<&Outcome>) {
    let info = &end.stream.info;
    let host = info.upstream.host.as_ref();
    if let Some(address) = host.and_then(|host| host.socket_address()) {
        add_destination(record, address);
    }
    let request_head =
        head_size(&end.request.map) + end.request.path.as_str().len() + end.request.authority.len();
    let maps = || {
        let head = end.response.map(|response| &response.map);
        head.into_iter().chain(end.trailers)
    };
    let mut response_head = 0;
    record.set_map(RESPONSE_HEADERS, |entries| {
        response_head = maps().map(|map| add_fields(entries, map)).sum();
        if let Some(response) = end.response {
            entries.push(":status", response.status.as_str().as_bytes());
        }
    });
    let took = info.duration();
    let over = Timestamp::from(info.start_time + took);
    record.set(RESPONSE_TIME, ValueRef::Timestamp(over));
    record.set(RESPONSE_DURATION, duration(took));
    let (received, sent) = (info.bytes_received, info.bytes_sent);
    record.set(REQUEST_SIZE, count(received));
    record.set(RESPONSE_SIZE, count(sent));
    record.set(REQUEST_TOTAL_SIZE, count(received + request_head as u64));
    record.set(RESPONSE_TOTAL_SIZE, count(sent + response_head as u64));
    let code = info.response_code.unwrap_or(500);
    record.set(RESPONSE_CODE, ValueRef::Int64(code.into()));
    if info.flags.is_empty() {
        record.set_text(ERROR_CODE, "-");
    } else {
        let mut flags = String::new();
        info.flags.write(false, &mut flags);
        record.set_text(ERROR_CODE, &flags);
    }
    add_grpc(record, end);
    add_outcome(record, outcome);
    if let Some(shadow) = info.metadata.get(RBAC) {
        add_shadow(record, shadow);
    }
    for (filter, fields) in info.metadata.iter() {
        let mut texts = struct_map(fields).peekable();
        if texts.peek().is_some() {
            record.set_named_map(filter, |entries| {
                texts.for_each(|(key, value)| entries.push(key, value.as_bytes()));
            });
        }
    }
}

/// Where the traffic went, unless configuration has said it.
pub(crate) fn add_destination(record: &mut Record, host: SocketAddr) {
    if record.get_known(DESTINATION_IP).is_none() {
        set_ip(record, DESTINATION_IP.as_str(), host.ip());
    }
    if record.get_known(DESTINATION_PORT).is_none() {
        record.set(DESTINATION_PORT, ValueRef::Int64(host.port().into()));
    }
}

/// What the check said; also for TCP.
pub(crate) fn add_outcome(record: &mut Record, outcome: Option<&Outcome>) {
    let Some(outcome) = outcome else {
        return;
    };
    record.set(CHECK_CACHE_HIT, ValueRef::Bool(outcome.check_cache_hit));
    record.set(QUOTA_CACHE_HIT, ValueRef::Bool(outcome.quota_cache_hit));
    if !outcome.is_ok() {
        let code = outcome.status.code.into();
        record.set(CHECK_ERROR_CODE, ValueRef::Int64(code));
        record.set_text(CHECK_ERROR_MESSAGE, &outcome.status.message);
    }
}

/// As an attribute.
pub(crate) fn duration(duration: Duration) -> ValueRef<'static> {
    ValueRef::Duration(prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    })
}

/// As an attribute.
pub(crate) fn count(bytes: u64) -> ValueRef<'static> {
    ValueRef::Int64(i64::try_from(bytes).unwrap_or(i64::MAX))
}

fn add_grpc(record: &mut Record, end: &StreamEnd<'_>) {
    let Some(response) = end.response.filter(|response| is_grpc(&response.map)) else {
        return;
    };
    for (attribute, name) in [
        (GRPC_STATUS, &names::GRPC_STATUS),
        (GRPC_MESSAGE, &names::GRPC_MESSAGE),
    ] {
        let value = end
            .trailers
            .and_then(|trailers| trailers.get(name))
            .or_else(|| response.map.get(name));
        if let Some(value) = value.and_then(|value| value.to_str().ok()) {
            record.set_text(attribute, value);
        }
    }
}

fn add_shadow(record: &mut Record, shadow: &Struct) {
    let text = |key: &str| match shadow.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.as_str()),
        _ => None,
    };
    if let Some(result) = text("shadow_engine_result") {
        let code = if result == "allowed" { "200" } else { "403" };
        record.set_named("rbac.permissive.response_code", ValueRef::String(code));
    }
    if let Some(policy) = text("shadow_effective_policy_id") {
        let name = "rbac.permissive.effective_policy_id";
        record.set_named(name, ValueRef::String(policy));
    }
}

/// Names and values, as they count towards the total size.
fn head_size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}
