//! Attempts that brought no response: what to call them, what the client is told, whether they deserve a retry.

use http::{HeaderValue, StatusCode};

use crate::http::headers::names;
use crate::http::local_reply::LocalReply;
use crate::router::Outcome as RetryOutcome;
use crate::stream_info::ResponseFlag;
use crate::upstream::{NoHost, PoolError, PoolErrorKind};

/// Why an attempt brought no response.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: FailureKind,
    /// What the transport said.
    pub(super) transport: Option<String>,
}

/// One row each in [`Failure::reply`] and [`Failure::retry_outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    NoHealthyHost,
    RemoteConnectionFailure,
    ConnectionTimeout,
    ConnectionTermination {
        request_sent: bool,
    },
    RemoteReset,
    RemoteRefused,
    LocalReset,
    Overflow,
    Protocol,
    PerTryTimeout,
    /// The client's body is not framed as it says.
    MalformedBody,
    /// A filter wants no more of the client's body.
    RefusedBody,
}

impl From<NoHost> for Failure {
    fn from(_: NoHost) -> Self {
        FailureKind::NoHealthyHost.into()
    }
}

impl From<FailureKind> for Failure {
    fn from(kind: FailureKind) -> Self {
        Failure {
            kind,
            transport: None,
        }
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        let kind = match error.kind {
            PoolErrorKind::ConnectFailure => FailureKind::RemoteConnectionFailure,
            PoolErrorKind::ConnectTimeout => FailureKind::ConnectionTimeout,
            PoolErrorKind::Overflow | PoolErrorKind::Shed => FailureKind::Overflow,
            // As in Envoy: a host that may not have a pool is none.
            PoolErrorKind::PoolOverflow => FailureKind::NoHealthyHost,
            PoolErrorKind::ConnectionTermination => {
                FailureKind::ConnectionTermination { request_sent: true }
            }
            PoolErrorKind::Reset => FailureKind::RemoteReset,
            PoolErrorKind::RefusedStream => FailureKind::RemoteRefused,
            PoolErrorKind::Protocol => FailureKind::Protocol,
            PoolErrorKind::LocalReset => FailureKind::LocalReset,
            PoolErrorKind::MalformedBody => FailureKind::MalformedBody,
            PoolErrorKind::RefusedBody => FailureKind::RefusedBody,
        };
        let is_connect = error.kind == PoolErrorKind::ConnectFailure;
        Failure {
            kind,
            transport: (is_connect && !error.text.is_empty()).then_some(error.text),
        }
    }
}

impl Failure {
    /// True when there was no connection.
    pub(super) fn is_connect(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::RemoteConnectionFailure | FailureKind::ConnectionTimeout
        )
    }

    /// True when the host is to blame.
    pub(super) fn is_of_host(&self) -> bool {
        !matches!(
            self.kind,
            FailureKind::NoHealthyHost
                | FailureKind::Overflow
                | FailureKind::LocalReset
                | FailureKind::MalformedBody
                | FailureKind::RefusedBody
        )
    }

    /// True for the attempt's timeout.
    pub(super) fn is_timeout(&self) -> bool {
        self.kind == FailureKind::PerTryTimeout
    }

    /// True when the other side reset the stream.
    pub(super) fn is_remote_reset(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::RemoteReset | FailureKind::RemoteRefused
        )
    }

    /// As retries see it.
    pub(super) fn retry_outcome(&self) -> RetryOutcome<'static> {
        match self.kind {
            FailureKind::NoHealthyHost
            | FailureKind::Overflow
            | FailureKind::MalformedBody
            | FailureKind::RefusedBody => RetryOutcome::Overflow,
            FailureKind::RemoteConnectionFailure | FailureKind::ConnectionTimeout => {
                RetryOutcome::ConnectFailure
            }
            FailureKind::RemoteRefused => RetryOutcome::RefusedStream,
            FailureKind::PerTryTimeout => RetryOutcome::PerTryTimeout,
            FailureKind::ConnectionTermination { request_sent } => {
                RetryOutcome::Reset { request_sent }
            }
            FailureKind::RemoteReset | FailureKind::LocalReset | FailureKind::Protocol => {
                RetryOutcome::Reset { request_sent: true }
            }
        }
    }

    /// The reply, in Envoy's words.
    pub(super) fn reply(&self, is_retried: bool) -> LocalReply {
        let (reason, flag) = match self.kind {
            FailureKind::NoHealthyHost => {
                let details = "no_healthy_upstream";
                return unavailable("no healthy upstream", details)
                    .flag(ResponseFlag::NoHealthyUpstream);
            }
            FailureKind::PerTryTimeout => {
                let (text, details) = ("upstream request timeout", "upstream_per_try_timeout");
                return LocalReply::new(StatusCode::GATEWAY_TIMEOUT, text, details)
                    .flag(ResponseFlag::UpstreamRequestTimeout);
            }
            FailureKind::MalformedBody => {
                let (text, details) = ("Bad Request", "http1.codec_error");
                return LocalReply::new(StatusCode::BAD_REQUEST, text, details)
                    .flag(ResponseFlag::DownstreamProtocolError);
            }
            // The filter's own answer is taken before.
            FailureKind::RefusedBody => {
                return LocalReply::new(StatusCode::BAD_REQUEST, "", "request_body_refused");
            }
            FailureKind::RemoteConnectionFailure => (
                "remote connection failure",
                ResponseFlag::UpstreamConnectionFailure,
            ),
            FailureKind::ConnectionTimeout => (
                "connection timeout",
                ResponseFlag::UpstreamConnectionFailure,
            ),
            FailureKind::ConnectionTermination { .. } => (
                "connection termination",
                ResponseFlag::UpstreamConnectionTermination,
            ),
            FailureKind::RemoteReset => ("remote reset", ResponseFlag::UpstreamRemoteReset),
            FailureKind::RemoteRefused => (
                "remote refused stream reset",
                ResponseFlag::UpstreamRemoteReset,
            ),
            FailureKind::LocalReset => ("local reset", ResponseFlag::LocalReset),
            FailureKind::Overflow => ("overflow", ResponseFlag::UpstreamOverflow),
            FailureKind::Protocol => ("protocol error", ResponseFlag::UpstreamProtocolError),
        };
        let status = if self.kind == FailureKind::Protocol {
            StatusCode::BAD_GATEWAY
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let retried = if is_retried {
            "retried and the latest "
        } else {
            ""
        };
        let body = format!(
            "upstream connect error or disconnect/reset before headers. {retried}reset reason: {reason}"
        );
        let mut details = format!("upstream_reset_before_response_started{{{reason}");
        if let Some(transport) = &self.transport {
            details.push('|');
            details.push_str(transport);
        }
        details.push('}');
        let reply = LocalReply::new(status, body, details.replace(' ', "_")).flag(flag);
        if self.kind == FailureKind::Overflow {
            return reply.header(&names::X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
        }
        reply
    }
}

fn unavailable(body: &'static str, details: &'static str) -> LocalReply {
    LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, body, details)
}
