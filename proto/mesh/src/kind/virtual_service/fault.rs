//! Faults put in on purpose.

use proto::istio::networking::v1alpha3::http_fault_injection::{
    Abort, Delay, abort::ErrorType, delay::HttpDelayType,
};
use proto::istio::networking::v1alpha3::{HttpFaultInjection, Percent};

use crate::finding::Report;
use crate::kind::duration;

/// The names of gRPC's status codes.
const GRPC_STATUSES: [&str; 17] = [
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

/// Reports what is wrong with a fault.
pub(super) fn check(fault: &HttpFaultInjection, report: &mut Report) {
    if fault.abort.is_none() && fault.delay.is_none() {
        report.error("the fault does nothing: give delay or abort");
    }
    if let Some(abort) = &fault.abort {
        report.at("abort", |report| check_abort(abort, report));
    }
    if let Some(delay) = &fault.delay {
        report.at("delay", |report| check_delay(delay, report));
    }
}

fn check_abort(abort: &Abort, report: &mut Report) {
    check_percentage(abort.percentage.as_ref(), report);
    match &abort.error_type {
        Some(ErrorType::HttpStatus(status)) => {
            report.require_at("httpStatus", check_status(i64::from(*status)));
        }
        Some(ErrorType::GrpcStatus(status)) if !GRPC_STATUSES.contains(&status.as_str()) => {
            report.error_at(
                "grpcStatus",
                format!("{status:?} is no gRPC status: give its name, as in NOT_FOUND"),
            );
        }
        Some(ErrorType::GrpcStatus(_)) => {}
        Some(ErrorType::Http2Error(_)) => {
            report.error_at(
                "http2Error",
                "HTTP/2 errors cannot be injected: give httpStatus or grpcStatus",
            );
        }
        None => report.warning("the abort has no status: give httpStatus or grpcStatus"),
    }
}

fn check_delay(delay: &Delay, report: &mut Report) {
    check_percentage(delay.percentage.as_ref(), report);
    match &delay.http_delay_type {
        Some(HttpDelayType::FixedDelay(fixed)) => {
            report.require_at("fixedDelay", duration::check(fixed));
        }
        Some(HttpDelayType::ExponentialDelay(_)) => {
            report.error_at(
                "exponentialDelay",
                "exponential delays cannot be injected: give fixedDelay",
            );
        }
        None => {}
    }
}

fn check_percentage(percentage: Option<&Percent>, report: &mut Report) {
    let Some(Percent { value }) = percentage else {
        return;
    };
    if *value != 0.0 && !(0.0001..=100.0).contains(value) {
        report.error_at(
            "percentage.value",
            format!("the percentage {value} is neither 0 nor in 0.0001..=100"),
        );
    }
}

/// Checks the status of a response. QUIRK: 600 passes, as in Istio.
pub(super) fn check_status(status: i64) -> Result<(), String> {
    if (200..=600).contains(&status) {
        return Ok(());
    }
    Err(format!("the HTTP status {status} is not in 200..=599"))
}
