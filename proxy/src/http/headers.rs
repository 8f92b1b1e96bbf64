//! A request's and a response's head as filters see them: pseudo headers as fields of their own, the rest in a map.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};

use crate::matcher::{FieldName, HeaderSource};

/// Names that the proxy reads or writes on every request, made once.
pub(crate) mod names {
    use http::HeaderName;

    macro_rules! names {
        ($($constant:ident = $text:literal;)*) => {
            $(#[doc = $text] pub(crate) static $constant: HeaderName = HeaderName::from_static($text);)*
        };
    }
    names! {
        KEEP_ALIVE = "keep-alive";
        PROXY_CONNECTION = "proxy-connection";
        GRPC_STATUS = "grpc-status";
        GRPC_MESSAGE = "grpc-message";
        GRPC_TIMEOUT = "grpc-timeout";
        X_FORWARDED_FOR = "x-forwarded-for";
        X_FORWARDED_PROTO = "x-forwarded-proto";
        X_FORWARDED_PORT = "x-forwarded-port";
        X_FORWARDED_HOST = "x-forwarded-host";
        X_FORWARDED_CLIENT_CERT = "x-forwarded-client-cert";
        X_REQUEST_ID = "x-request-id";
        X_B3_TRACE_ID = "x-b3-traceid";
        X_B3_SPAN_ID = "x-b3-spanid";
        X_B3_PARENT_SPAN_ID = "x-b3-parentspanid";
        X_B3_SAMPLED = "x-b3-sampled";
        B3 = "b3";
        TRACEPARENT = "traceparent";
        TRACESTATE = "tracestate";
        X_CLIENT_TRACE_ID = "x-client-trace-id";
        X_ENVOY_ATTEMPT_COUNT = "x-envoy-attempt-count";
        X_ENVOY_DECORATOR_OPERATION = "x-envoy-decorator-operation";
        X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER = "x-envoy-downstream-service-cluster";
        X_ENVOY_DOWNSTREAM_SERVICE_NODE = "x-envoy-downstream-service-node";
        X_ENVOY_EXPECTED_RQ_TIMEOUT_MS = "x-envoy-expected-rq-timeout-ms";
        X_ENVOY_EXTERNAL_ADDRESS = "x-envoy-external-address";
        X_ENVOY_FAULT_ABORT = "x-envoy-fault-abort-request";
        X_ENVOY_FAULT_ABORT_GRPC = "x-envoy-fault-abort-grpc-request";
        X_ENVOY_FAULT_ABORT_PERCENTAGE = "x-envoy-fault-abort-request-percentage";
        X_ENVOY_FAULT_DELAY = "x-envoy-fault-delay-request";
        X_ENVOY_FAULT_DELAY_PERCENTAGE = "x-envoy-fault-delay-request-percentage";
        X_ENVOY_FAULT_THROUGHPUT = "x-envoy-fault-throughput-response";
        X_ENVOY_FAULT_THROUGHPUT_PERCENTAGE = "x-envoy-fault-throughput-response-percentage";
        X_ENVOY_FORCE_TRACE = "x-envoy-force-trace";
        X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT = "x-envoy-hedge-on-per-try-timeout";
        X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL = "x-envoy-immediate-health-check-fail";
        X_ENVOY_INTERNAL = "x-envoy-internal";
        X_ENVOY_IP_TAGS = "x-envoy-ip-tags";
        X_ENVOY_IS_TIMEOUT_RETRY = "x-envoy-is-timeout-retry";
        X_ENVOY_MAX_RETRIES = "x-envoy-max-retries";
        X_ENVOY_ORIGINAL_HOST = "x-envoy-original-host";
        X_ENVOY_ORIGINAL_PATH = "x-envoy-original-path";
        X_ENVOY_ORIGINAL_URL = "x-envoy-original-url";
        X_ENVOY_OVERLOADED = "x-envoy-overloaded";
        X_ENVOY_DROP_OVERLOAD = "x-envoy-drop-overload";
        X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD = "x-envoy-unconditional-drop-overload";
        X_ENVOY_RATELIMITED = "x-envoy-ratelimited";
        X_ENVOY_RETRIABLE_HEADER_NAMES = "x-envoy-retriable-header-names";
        X_ENVOY_RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes";
        X_ENVOY_RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
        X_ENVOY_RETRY_ON = "x-envoy-retry-on";
        X_ENVOY_UPSTREAM_ALT_STAT_NAME = "x-envoy-upstream-alt-stat-name";
        X_ENVOY_UPSTREAM_HEALTH_CHECKED_CLUSTER = "x-envoy-upstream-healthchecked-cluster";
        X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS = "x-envoy-upstream-rq-per-try-timeout-ms";
        X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response";
        X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS = "x-envoy-upstream-rq-timeout-ms";
        X_ENVOY_UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time";
    }
}

/// The head of a request.
#[derive(Debug, Clone)]
pub(crate) struct RequestHeaders {
    /// `:method`
    pub(crate) method: Method,
    /// `:scheme`
    pub(crate) scheme: Scheme,
    /// `:authority`, or the `host` header; empty when there was none.
    pub(crate) authority: HeaderValue,
    /// `:path`, with the query.
    pub(crate) path: PathAndQuery,
    /// `:protocol` of an extended CONNECT, or the value of `upgrade` of an HTTP/1 upgrade.
    pub(crate) upgrade: Option<HeaderValue>,
    /// Everything else; never holds `host`.
    pub(crate) map: HeaderMap,
}

/// `:scheme`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

/// The head of a response.
#[derive(Debug, Clone)]
pub(crate) struct ResponseHeaders {
    /// `:status`
    pub(crate) status: StatusCode,
    /// The header fields.
    pub(crate) map: HeaderMap,
}

impl Scheme {
    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

impl RequestHeaders {
    /// `:authority` as text; empty when it is not UTF-8.
    pub(crate) fn host(&self) -> &str {
        std::str::from_utf8(self.authority.as_bytes()).unwrap_or_default()
    }

    /// The first value of a header, as text.
    pub(crate) fn text(&self, name: &HeaderName) -> Option<&str> {
        text_of(&self.map, name)
    }

    /// True for `content-type: application/grpc` and its `+` and `;` forms.
    pub(crate) fn is_grpc(&self) -> bool {
        is_grpc(&self.map)
    }

    /// Puts a path that was made from text; `None` when it is not one.
    pub(crate) fn set_path(&mut self, path: impl AsRef<[u8]>) -> Option<()> {
        let path = path.as_ref();
        let path = if path.first() == Some(&b'/') || path == b"*" {
            PathAndQuery::try_from(path).ok()?
        } else {
            PathAndQuery::try_from([b"/", path].concat().as_slice()).ok()?
        };
        self.path = path;
        Some(())
    }

    /// Puts `:authority` from text; `None` when it has characters that a header can't hold.
    pub(crate) fn set_host(&mut self, host: impl AsRef<[u8]>) -> Option<()> {
        self.authority = HeaderValue::from_bytes(host.as_ref()).ok()?;
        Some(())
    }
}

impl HeaderSource for RequestHeaders {
    fn field(&self, name: &FieldName) -> Option<Cow<'_, [u8]>> {
        match name {
            FieldName::Method => Some(Cow::Borrowed(self.method.as_str().as_bytes())),
            // A CONNECT has no path.
            FieldName::Path if self.method == Method::CONNECT && self.upgrade.is_none() => None,
            FieldName::Path => Some(Cow::Borrowed(self.path.as_str().as_bytes())),
            FieldName::Scheme => Some(Cow::Borrowed(self.scheme.as_str().as_bytes())),
            FieldName::Authority if self.authority.is_empty() => None,
            FieldName::Authority => Some(Cow::Borrowed(self.authority.as_bytes())),
            FieldName::Protocol => self.upgrade.as_ref().map(|v| Cow::Borrowed(v.as_bytes())),
            FieldName::Status => None,
            FieldName::Header(_) => self.map.field(name),
        }
    }

    fn map(&self) -> &HeaderMap {
        &self.map
    }
}

impl HeaderSource for ResponseHeaders {
    fn field(&self, name: &FieldName) -> Option<Cow<'_, [u8]>> {
        match name {
            FieldName::Status => Some(Cow::Owned(self.status.as_str().as_bytes().to_vec())),
            name => self.map.field(name),
        }
    }

    fn map(&self) -> &HeaderMap {
        &self.map
    }
}

/// The first value of a header, as text.
pub(crate) fn text_of<'a>(map: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    std::str::from_utf8(map.get(name)?.as_bytes()).ok()
}

/// True for `content-type: application/grpc` and its `+` and `;` forms.
pub(crate) fn is_grpc(map: &HeaderMap) -> bool {
    map.get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// A number as a header value; a single digit, as most times are, without an allocation.
pub(crate) fn number(value: u64) -> HeaderValue {
    const DIGITS: &str = "0123456789";
    if let Ok(digit @ 0..=9) = usize::try_from(value) {
        return HeaderValue::from_static(&DIGITS[digit..=digit]);
    }
    // As many as the largest number has.
    let mut text = [0; 20];
    let mut at = text.len();
    let mut rest = value;
    while rest > 0 {
        at -= 1;
        text[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    HeaderValue::from_bytes(&text[at..]).unwrap_or_else(|_| HeaderValue::from(value))
}
