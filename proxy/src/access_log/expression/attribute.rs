//! Envoy's attributes: each by the operator of access logs that writes the same.

use super::Value;
use crate::access_log::{Format, FormatContext};
use crate::invalid::Invalid;

/// Strings by name.
const TEXTS: &[(&str, &str)] = &[
    ("request.path", "%REQ(:PATH)%"),
    ("request.url_path", "%PATH(NQ:PATH)%"),
    ("request.host", "%REQ(:AUTHORITY)%"),
    ("request.scheme", "%REQ(:SCHEME)%"),
    ("request.method", "%REQ(:METHOD)%"),
    ("request.referer", "%REQ(REFERER)%"),
    ("request.useragent", "%REQ(USER-AGENT)%"),
    ("request.id", "%REQ(X-REQUEST-ID)%"),
    ("request.protocol", "%PROTOCOL%"),
    ("response.code_details", "%RESPONSE_CODE_DETAILS%"),
    ("source.address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("destination.address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    (
        "connection.requested_server_name",
        "%REQUESTED_SERVER_NAME%",
    ),
    ("connection.tls_version", "%DOWNSTREAM_TLS_VERSION%"),
    (
        "connection.subject_peer_certificate",
        "%DOWNSTREAM_PEER_SUBJECT%",
    ),
    (
        "connection.uri_san_peer_certificate",
        "%DOWNSTREAM_PEER_URI_SAN%",
    ),
    (
        "connection.dns_san_peer_certificate",
        "%DOWNSTREAM_PEER_DNS_SAN%",
    ),
    (
        "connection.termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("upstream.address", "%UPSTREAM_HOST%"),
    (
        "upstream.transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("xds.cluster_name", "%UPSTREAM_CLUSTER_RAW%"),
    ("xds.route_name", "%ROUTE_NAME%"),
];
/// Numbers by name.
const NUMBERS: &[(&str, &str)] = &[
    ("request.size", "%BYTES_RECEIVED%"),
    ("response.grpc_status", "%GRPC_STATUS(NUMBER)%"),
    ("response.size", "%BYTES_SENT%"),
    ("source.port", "%DOWNSTREAM_REMOTE_PORT%"),
    ("destination.port", "%DOWNSTREAM_LOCAL_PORT%"),
];
/// Headers of these are attributes by their names.
const HEADERS: &[(&str, &str)] = &[("request.headers", "REQ"), ("response.headers", "RESP")];

/// One of them.
#[derive(Debug, Clone)]
pub(super) enum Attribute {
    Text(Format),
    Number(Format),
    /// `response.code`
    Status,
    /// `connection.mtls`
    Mtls,
}

impl Attribute {
    /// The attribute of that name.
    pub(super) fn named(name: &str) -> Result<Self, Invalid> {
        let find = |table: &[(&str, &'static str)]| {
            let found = table.iter().find(|(known, _)| *known == name);
            found.map(|(_, operator)| *operator)
        };
        if let Some(operator) = find(TEXTS) {
            return Format::parse(operator).map(Attribute::Text);
        }
        if let Some(operator) = find(NUMBERS) {
            return Format::parse(operator).map(Attribute::Number);
        }
        match name {
            "response.code" => Ok(Attribute::Status),
            "connection.mtls" => Ok(Attribute::Mtls),
            _ => Err(Invalid::unsupported(&format!(
                "the attribute '{name}' in a condition"
            ))),
        }
    }

    /// A header of `map`.
    pub(super) fn header(map: &str, name: &str) -> Result<Self, Invalid> {
        let found = HEADERS.iter().find(|(known, _)| *known == map);
        let (_, operator) = found.ok_or_else(|| {
            Invalid::unsupported(&format!("an element of '{map}' in a condition"))
        })?;
        Format::parse(&format!("%{operator}({name})%")).map(Attribute::Text)
    }

    /// Its value, if the stream has one.
    pub(super) fn value(&self, context: &FormatContext<'_>) -> Option<Value> {
        let text = |format: &Format| {
            let mut text = String::new();
            format.write(context, "", &mut text).then_some(text)
        };
        match self {
            Attribute::Text(format) => text(format).map(Value::Text),
            Attribute::Number(format) => text(format)?.parse().ok().map(Value::Number),
            // The operator writes 0 for a stream without a status, which has no attribute.
            Attribute::Status => {
                let code = context.info.response_code;
                code.map(|code| Value::Number(code.into()))
            }
            Attribute::Mtls => {
                let tls = context.info.connection.tls.as_ref();
                Some(Value::Bool(tls.is_some_and(|tls| tls.peer.is_some())))
            }
        }
    }
}
