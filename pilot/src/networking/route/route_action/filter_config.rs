//! What a route tells single HTTP filters: faults and CORS.

use std::collections::BTreeMap;

use prost_types::Any;
use proto::envoy::config::core::v3::RuntimeFractionalPercent;
use proto::envoy::extensions::filters::common::fault::v3::{
    FaultDelay, fault_delay::FaultDelaySecifier,
};
use proto::envoy::extensions::filters::http::cors::v3::CorsPolicy as WireCors;
use proto::envoy::extensions::filters::http::fault::v3::{
    FaultAbort, HttpFault, fault_abort::ErrorType as WireError,
};
use proto::istio::networking::v1alpha3::{
    CorsPolicy, HttpFaultInjection, HttpRoute,
    cors_policy::UnmatchedPreflights,
    http_fault_injection::{Abort, Delay, abort::ErrorType, delay::HttpDelayType},
};

use super::route_match::string_matcher;
use crate::networking::wire::{any, exact, fraction, whole_percent};

/// By filter name.
pub(super) fn build(http: &HttpRoute) -> BTreeMap<String, Any> {
    let mut configs = BTreeMap::new();
    if let Some(fault) = http.fault.as_ref().and_then(fault) {
        configs.insert("envoy.filters.http.fault".to_owned(), any(&fault));
    }
    if let Some(policy) = &http.cors_policy {
        configs.insert("envoy.filters.http.cors".to_owned(), any(&cors(policy)));
    }
    configs
}

fn fault(fault: &HttpFaultInjection) -> Option<HttpFault> {
    let delay = fault.delay.as_ref().and_then(delay);
    let abort = fault.abort.as_ref().and_then(abort);
    (delay.is_some() || abort.is_some()).then(|| HttpFault {
        delay,
        abort,
        ..HttpFault::default()
    })
}

fn delay(delay: &Delay) -> Option<FaultDelay> {
    #[allow(deprecated, reason = "the old field is still in use")]
    let old_percent = f64::from(delay.percent);
    let percent = delay
        .percentage
        .as_ref()
        .map_or(old_percent, |percent| percent.value);
    let Some(HttpDelayType::FixedDelay(fixed)) = delay.http_delay_type else {
        return None;
    };
    (percent > 0.0).then(|| FaultDelay {
        percentage: Some(fraction(percent)),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(fixed)),
    })
}

fn abort(abort: &Abort) -> Option<FaultAbort> {
    let percent = abort
        .percentage
        .as_ref()
        .map_or(0.0, |percent| percent.value);
    let error = match abort.error_type.as_ref()? {
        ErrorType::HttpStatus(status) => WireError::HttpStatus(u32::try_from(*status).ok()?),
        ErrorType::GrpcStatus(name) => WireError::GrpcStatus(grpc_code(name)?),
        ErrorType::Http2Error(_) => return None,
    };
    (percent > 0.0).then(|| FaultAbort {
        percentage: Some(fraction(percent)),
        error_type: Some(error),
        ..FaultAbort::default()
    })
}

/// The number of a gRPC status name.
fn grpc_code(name: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES
        .iter()
        .position(|known| *known == name)
        .and_then(|code| u32::try_from(code).ok())
}

fn cors(policy: &CorsPolicy) -> WireCors {
    #[allow(deprecated, reason = "the old field is still in use")]
    let old_origins = policy.allow_origin.iter().map(|origin| exact(origin));
    let origins = policy.allow_origins.iter().filter_map(string_matcher);
    WireCors {
        allow_origin_string_match: old_origins.chain(origins).collect(),
        allow_methods: policy.allow_methods.join(","),
        allow_headers: policy.allow_headers.join(","),
        expose_headers: policy.expose_headers.join(","),
        max_age: policy
            .max_age
            .map(|age| age.seconds.to_string())
            .unwrap_or_default(),
        allow_credentials: policy.allow_credentials,
        filter_enabled: Some(RuntimeFractionalPercent {
            default_value: Some(whole_percent(100)),
            runtime_key: String::new(),
        }),
        forward_not_matching_preflights: Some(
            policy.unmatched_preflights() != UnmatchedPreflights::Ignore,
        ),
        ..WireCors::default()
    }
}
