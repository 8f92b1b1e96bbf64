//! Envoy's attributes: each by the operator of access logs that writes the same.

use super::Value;
use crate::access_log::{Format, FormatContext};
use crate::invalid::Invalid;

/// Strings by name.
const TEXTS: &[(&str, &str)] = &[
    ("request.path", "%REQ(:PATH)%"),
    ("request.url_path", "%PATH(NQ)%"),
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
    ("xds.cluster_name", "%UPSTREAM_CLUSTER%"),
    ("xds.route_name", "%ROUTE_NAME%"),
];
/// Numbers by name.
const NUMBERS: &[(&str, &str)] = &[
    ("request.size", "%BYTES_RECEIVED%"),
    ("response.code", "%RESPONSE_CODE%"),
    ("response.grpc_status", "%GRPC_STATUS(NUMBER)%"),
    ("response.size", "%BYTES_SENT%"),
    ("source.port", "%DOWNSTREAM_REMOTE_PORT%"),
    ("destination.port", "%DOWNSTREAM_LOCAL_PORT%"),
];
/// Headers of these are attributes by their names.
const HEADERS: &[(&str, &str)] = &[("request.headers", "REQ"), ("response.headers", "RESP")];

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Attribute {
    format: Format,
    is_number: bool,
}

impl Attribute {
    /// The attribute of that name.
    pub(super) fn named(name: &str) -> Result<Self, Invalid> {
        let find = |table: &[(&str, &'static str)]| {
            let found = table.iter().find(|(known, _)| *known == name);
            found.map(|(_, operator)| *operator)
        };
        let (operator, is_number) = find(TEXTS)
            .map(|operator| (operator, false))
            .or_else(|| find(NUMBERS).map(|operator| (operator, true)))
            .ok_or_else(|| {
                Invalid::unsupported(&format!("the attribute '{name}' in a condition"))
            })?;
        Ok(Attribute {
            format: Format::parse(operator)?,
            is_number,
        })
    }

    /// A header of `map`.
    pub(super) fn header(map: &str, name: &str) -> Result<Self, Invalid> {
        let found = HEADERS.iter().find(|(known, _)| *known == map);
        let (_, operator) = found.ok_or_else(|| {
            Invalid::unsupported(&format!("an element of '{map}' in a condition"))
        })?;
        Ok(Attribute {
            format: Format::parse(&format!("%{operator}({name})%"))?,
            is_number: false,
        })
    }

    /// Its value, if the stream has one.
    pub(super) fn value(&self, context: &FormatContext<'_>) -> Option<Value> {
        let mut text = String::new();
        if !self.format.write(context, "", &mut text) {
            return None;
        }
        if self.is_number {
            return text.parse().ok().map(Value::Number);
        }
        Some(Value::Text(text))
    }
}
