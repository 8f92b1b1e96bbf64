//! Many verdicts → one: the shortest validity, the first refusal's code, everybody's reasons.

use std::time::Duration;

use proto::google::rpc::Status;
use proto::istio::mixer::v1::header_operation::Operation;
use proto::istio::mixer::v1::{HeaderOperation, RouteDirective};
use proto::istio::policy::v1beta1::DirectHttpResponse;
use tonic::Code;

use crate::adapter::CheckResult;

/// What a request is granted when no rule has anything to say.
const DEFAULT_DURATION: Duration = Duration::from_secs(60);
const DEFAULT_USE_COUNT: i32 = 10_000;

/// The verdicts of a request's handlers.
#[derive(Debug)]
pub(super) struct Verdict {
    valid_duration: Duration,
    valid_use_count: i32,
    status: Status,
    /// What the first refusal wants the proxy to answer.
    direct: Option<RouteDirective>,
}

impl Verdict {
    pub(super) fn new() -> Self {
        Self {
            valid_duration: DEFAULT_DURATION,
            valid_use_count: DEFAULT_USE_COUNT,
            status: Status::default(),
            direct: None,
        }
    }

    /// Adds a handler's verdict.
    pub(super) fn add(&mut self, handler: &str, result: CheckResult) {
        self.valid_duration = self.valid_duration.min(result.valid_duration);
        self.valid_use_count = self.valid_use_count.min(result.valid_use_count);
        let status = result.status;
        if status.code == Code::Ok as i32 {
            return;
        }
        let message = format!("{handler}:{}", status.message);
        if self.is_ok() {
            self.direct = direct_response(&status);
            self.status = Status { message, ..status };
        } else {
            self.status.message.push_str(", ");
            self.status.message.push_str(&message);
        }
    }

    pub(super) fn is_ok(&self) -> bool {
        self.status.code == Code::Ok as i32
    }

    pub(super) fn into_parts(self) -> (Status, Duration, i32, Option<RouteDirective>) {
        (
            self.status,
            self.valid_duration,
            self.valid_use_count,
            self.direct,
        )
    }
}

fn direct_response(status: &Status) -> Option<RouteDirective> {
    let response: DirectHttpResponse = status
        .details
        .iter()
        .find_map(|detail| proto::any::unpack(detail).ok())?;
    let code = u32::try_from(response.code).unwrap_or(0);
    let mut operations = Vec::new();
    for (name, value) in response.headers {
        if name.eq_ignore_ascii_case("set-cookie") {
            let cookies = value.split(',').map(|cookie| HeaderOperation {
                name: name.clone(),
                value: cookie.to_owned(),
                operation: Operation::Append.into(),
            });
            operations.extend(cookies);
        } else {
            operations.push(HeaderOperation {
                name,
                value,
                operation: Operation::Replace.into(),
            });
        }
    }
    Some(RouteDirective {
        direct_response_code: if code == 0 {
            http_status(status.code)
        } else {
            code
        },
        direct_response_body: response.body,
        response_header_operations: operations,
        request_header_operations: Vec::new(),
    })
}

/// The HTTP status for a gRPC code, as the server sees it (the proxy differs for CANCELLED and FAILED_PRECONDITION).
fn http_status(code: i32) -> u32 {
    match Code::from(code) {
        Code::Ok => 200,
        Code::Cancelled => 408,
        Code::InvalidArgument | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::ResourceExhausted => 429,
        Code::FailedPrecondition => 412,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unauthenticated => 401,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::status;

    fn result(code: Code, message: &str, seconds: u64, uses: i32) -> CheckResult {
        CheckResult {
            status: status(code, message),
            valid_duration: Duration::from_secs(seconds),
            valid_use_count: uses,
            outputs: Vec::new(),
        }
    }

    #[test]
    fn the_shortest_validity_and_the_first_refusal_win() {
        let mut verdict = Verdict::new();
        verdict.add("a.ns", result(Code::Ok, "", 100, 100_000));
        assert!(verdict.is_ok());
        verdict.add("b.ns", result(Code::PermissionDenied, "no", 10, 7));
        verdict.add("c.ns", result(Code::NotFound, "where", 5, 8));
        let (status, duration, uses, direct) = verdict.into_parts();
        assert_eq!(status.code, Code::PermissionDenied as i32);
        assert_eq!(status.message, "b.ns:no, c.ns:where");
        assert_eq!((duration, uses), (Duration::from_secs(5), 7));
        assert!(direct.is_none());
    }

    #[test]
    fn a_refusal_may_carry_an_answer() {
        let response = DirectHttpResponse {
            code: 302,
            body: "go".into(),
            headers: [("location", "/x"), ("Set-Cookie", "a=1,b=2")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        let mut refusal = result(Code::Unauthenticated, "", 1, 1);
        refusal.status.details.push(proto::any::pack(&response));
        let mut verdict = Verdict::new();
        verdict.add("a.ns", refusal);
        let directive = verdict.into_parts().3.unwrap();
        assert_eq!(directive.direct_response_code, 302);
        assert_eq!(directive.direct_response_body, "go");
        let operations: Vec<_> = directive
            .response_header_operations
            .iter()
            .map(|o| (o.name.as_str(), o.value.as_str(), o.operation))
            .collect();
        assert_eq!(
            operations,
            [
                ("Set-Cookie", "a=1", 2),
                ("Set-Cookie", "b=2", 2),
                ("location", "/x", 0)
            ]
        );
    }
}
