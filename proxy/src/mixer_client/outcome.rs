//! What becomes of a request: let through, refused, answered at once; and which headers change.

use std::rc::Rc;

use http::StatusCode;
use proto::google::rpc::Status;
use proto::istio::mixer::v1::RouteDirective;
use proto::istio::mixer::v1::check_response::PreconditionResult;
use tonic::Code;

/// The outcome of a check.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    answer: Option<Rc<PreconditionResult>>,
    /// Mixer was not asked whether.
    pub(crate) check_cache_hit: bool,
    /// Mixer was not asked how much.
    pub(crate) quota_cache_hit: bool,
}

impl Outcome {
    /// From Mixer's answer.
    pub(super) fn new(answer: &Rc<PreconditionResult>, check_cache_hit: bool) -> Self {
        Self {
            status: answer.status.clone().unwrap_or_default(),
            answer: Some(answer.clone()),
            check_cache_hit,
            quota_cache_hit: false,
        }
    }

    /// Without an answer.
    pub(super) fn without(status: Status) -> Self {
        Self {
            status,
            answer: None,
            check_cache_hit: false,
            quota_cache_hit: false,
        }
    }

    /// Refuses for want of these quotas, if there are any.
    pub(super) fn exhausted(&mut self, names: &[String]) {
        if !names.is_empty() && self.is_ok() {
            self.status = status(
                Code::ResourceExhausted,
                format!("Quota is exhausted for: {}", names.join(",")),
            );
        }
    }

    /// Whether the request passes.
    pub(crate) fn is_ok(&self) -> bool {
        self.status.code == Code::Ok as i32
    }

    /// What Mixer wants done with the request beside.
    pub(crate) fn directive(&self) -> Option<&RouteDirective> {
        self.answer.as_ref()?.route_directive.as_ref()
    }

    /// The HTTP status of a refusal.
    pub(crate) fn http_status(&self) -> StatusCode {
        http_status(self.status.code)
    }

    /// The body of a refusal: `PERMISSION_DENIED:why`.
    pub(crate) fn body(&self) -> String {
        format!("{}:{}", code_name(self.status.code), self.status.message)
    }
}

/// A status of a code and a text.
pub(super) fn status(code: Code, message: impl Into<String>) -> Status {
    Status {
        code: code.into(),
        message: message.into(),
        details: Vec::new(),
    }
}

/// The HTTP status for a gRPC code, as the proxy sees it (Mixer itself differs for CANCELLED and FAILED_PRECONDITION).
fn http_status(code: i32) -> StatusCode {
    match Code::from(code) {
        Code::Ok => StatusCode::OK,
        // No name of its own: the client has gone.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn code_name(code: i32) -> &'static str {
    match Code::from(code) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
