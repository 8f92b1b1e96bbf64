//! The grammar of format strings: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):limit%`, `%%`.

use crate::invalid::{At as _, Invalid};
use crate::matcher::FieldName;

use super::attempted::Attempted;
use super::moment::{Moment, Precision};
use super::operator::{Address, Map, Operator, TimePoint};
use super::tls_field::{Side, TlsField};
use super::{Part, TimeFormat};

/// Parses a format string.
pub(super) fn parse(text: &str) -> Result<Vec<Part>, Invalid> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let (token, after) = split_token(rest)
            .ok_or_else(|| Invalid::new(format!("incorrect format: '%{rest}' has no end")))?;
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into()));
        }
        parts.push(command(token).at(format_args!("%{token}%"))?);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(parts)
}

/// Splits at the closing `%`, which is not the one inside parentheses (`%START_TIME(%s)%`).
fn split_token(text: &str) -> Option<(&str, &str)> {
    let percent = text.find('%')?;
    let end = match text.find('(') {
        Some(open) if open < percent => {
            let close = open + text[open..].find(')')?;
            close + text[close..].find('%')?
        }
        _ => percent,
    };
    Some((&text[..end], &text[end + 1..]))
}

fn command(token: &str) -> Result<Part, Invalid> {
    let (name, argument, limit) = match token.find('(') {
        Some(open) => {
            let close = token
                .rfind(')')
                .filter(|close| *close > open)
                .ok_or_else(|| Invalid::new("the parenthesis is not closed"))?;
            let argument = &token[open + 1..close];
            let limit = &token[close + 1..];
            (
                &token[..open],
                Some(argument),
                limit
                    .strip_prefix(':')
                    .or((!limit.is_empty()).then_some(limit)),
            )
        }
        None => match token.split_once(':') {
            Some((name, limit)) => (name, None, Some(limit)),
            None => (token, None, None),
        },
    };
    let limit = limit
        .map(|limit| {
            limit
                .parse::<usize>()
                .map_err(|_| Invalid::new(format!("length must be an integer, given '{limit}'")))
        })
        .transpose()?;
    operator(name, argument).map(|operator| Part::Operator(operator, limit))
}

fn operator(name: &str, argument: Option<&str>) -> Result<Operator, Invalid> {
    let needed = || argument.ok_or_else(|| Invalid::new("an argument in parentheses is needed"));
    if let Some(operator) = address(name).or_else(|| plain(name)) {
        return Ok(operator);
    }
    if let Some(operator) = tls(name, argument)? {
        return Ok(operator);
    }
    Ok(match name {
        "START_TIME" => Operator::Time(TimePoint::Start, time_format(argument)?),
        "EMIT_TIME" => Operator::Time(TimePoint::Now, time_format(argument)?),
        "REQ" | "REQUEST_HEADER" => header(Map::Request, needed()?)?,
        "RESP" | "RESPONSE_HEADER" => header(Map::Response, needed()?)?,
        "TRAILER" | "RESPONSE_TRAILER" => header(Map::Trailers, needed()?)?,
        "REQ_WITHOUT_QUERY" => match header(Map::Request, needed()?)? {
            Operator::Header(_, name, other) => Operator::WithoutQuery(name, other),
            other => other,
        },
        "QUERY_PARAM" => Operator::QueryParameter(needed()?.into()),
        "PATH" => Operator::Path {
            with_query: argument.is_none_or(|a| !a.starts_with("NQ")),
        },
        "DYNAMIC_METADATA" => metadata(needed()?)?,
        "METADATA" => match needed()?.split_once(':') {
            Some(("DYNAMIC", path)) => metadata(path)?,
            Some(("ROUTE", path)) => match metadata(path)? {
                Operator::DynamicMetadata(filter, path) => Operator::RouteMetadata(filter, path),
                other => other,
            },
            _ => Operator::Absent,
        },
        "ENVIRONMENT" => Operator::Literal(
            std::env::var_os(needed()?)
                .and_then(|value| value.into_string().ok())
                .map(Into::into),
        ),
        "GRPC_STATUS" => match argument {
            None | Some("CAMEL_STRING" | "") => Operator::GrpcStatus(true),
            Some("SNAKE_STRING") => Operator::GrpcStatusSnake,
            Some("NUMBER") => Operator::GrpcStatus(false),
            Some(_) => {
                return Err(Invalid::new(
                    "GRPC_STATUS takes CAMEL_STRING, SNAKE_STRING or NUMBER",
                ));
            }
        },
        "COMMON_DURATION" => duration_between(needed()?)?,
        "FILTER_STATE"
        | "UPSTREAM_FILTER_STATE"
        | "CLUSTER_METADATA"
        | "UPSTREAM_METADATA"
        | "CEL" => {
            needed()?;
            Operator::Absent
        }
        _ if KNOWN_ABSENT.contains(&name) => Operator::Absent,
        _ => {
            return Err(Invalid::new(format!(
                "not supported field in StreamInfo: {name}"
            )));
        }
    })
}

/// Operators of Envoy's that never have a value here.
const KNOWN_ABSENT: &[&str] = &[
    "BYTES_RETRANSMITTED",
    "PACKETS_RETRANSMITTED",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "ROUNDTRIP_DURATION",
    "UPSTREAM_CONNECTION_ID",
    "CUSTOM_FLAGS",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "UPSTREAM_CLUSTER_LOCALITY",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_TLS_GROUP",
    "UPSTREAM_TLS_GROUP",
    "UPSTREAM_LOCAL_IP_SAN",
    "UPSTREAM_SERVER_NAME",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
];

fn plain(name: &str) -> Option<Operator> {
    Some(match name {
        "PROTOCOL" => Operator::Protocol,
        "UPSTREAM_PROTOCOL" => Operator::UpstreamProtocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags(false),
        "RESPONSE_FLAGS_LONG" => Operator::ResponseFlags(true),
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "REQUEST_DURATION" => Operator::RequestDuration,
        "REQUEST_TX_DURATION" => Operator::RequestTxDuration,
        "RESPONSE_DURATION" => Operator::ResponseDuration,
        "RESPONSE_TX_DURATION" => Operator::ResponseTxDuration,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::AttemptCount,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
        "UPSTREAM_HOSTS_ATTEMPTED" => Operator::HostsAttempted(Attempted::Address),
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => {
            Operator::HostsAttempted(Attempted::AddressWithoutPort)
        }
        "UPSTREAM_HOST_NAMES_ATTEMPTED" | "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => {
            Operator::HostsAttempted(Attempted::Name)
        }
        "UPSTREAM_HOST_NAME" | "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Operator::UpstreamHostName,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailure,
        "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
        "ROUTE_NAME" => Operator::RouteName,
        "VIRTUAL_HOST_NAME" => Operator::VirtualHostName,
        "VIRTUAL_CLUSTER_NAME" => Operator::VirtualClusterName,
        "CONNECTION_ID" => Operator::ConnectionId,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(false),
        "HOSTNAME" => Operator::Literal(hostname()),
        "LOCAL_REPLY_BODY" => Operator::LocalReplyBody,
        "STREAM_ID" | "UNIQUE_ID" => Operator::StreamId,
        "TRACE_ID" => Operator::TraceId,
        "SPAN_ID" => Operator::SpanId,
        "ACCESS_LOG_TYPE" => Operator::Literal(Some("DownstreamEnd".into())),
        "QUERY_PARAMS" => Operator::QueryParameters,
        "FILTER_CHAIN_NAME" => Operator::FilterChainName,
        "REQUEST_HEADERS_BYTES" => Operator::HeaderBytes(Map::Request),
        "RESPONSE_HEADERS_BYTES" => Operator::HeaderBytes(Map::Response),
        "RESPONSE_TRAILERS_BYTES" => Operator::HeaderBytes(Map::Trailers),
        _ => return None,
    })
}

/// `DOWNSTREAM_…` or `UPSTREAM_…`: something of a TLS session.
fn tls(name: &str, argument: Option<&str>) -> Result<Option<Operator>, Invalid> {
    let (side, field) = if let Some(field) = name.strip_prefix("DOWNSTREAM_") {
        (Side::Downstream, field)
    } else if let Some(field) = name.strip_prefix("UPSTREAM_") {
        (Side::Upstream, field)
    } else {
        return Ok(None);
    };
    Ok(Some(Operator::Tls(
        side,
        match field {
            "PEER_URI_SAN" => TlsField::PeerUriSan,
            "PEER_DNS_SAN" => TlsField::PeerDnsSan,
            "PEER_SUBJECT" => TlsField::PeerSubject,
            "PEER_FINGERPRINT_256" => TlsField::PeerFingerprint,
            "PEER_FINGERPRINT_1" => TlsField::PeerFingerprint1,
            "PEER_IP_SAN" => TlsField::PeerIpSan,
            "PEER_EMAIL_SAN" => TlsField::PeerEmailSan,
            "PEER_CERT" => TlsField::PeerCertificate,
            "PEER_CHAIN_FINGERPRINTS_256" => TlsField::ChainFingerprints,
            "PEER_CHAIN_FINGERPRINTS_1" => TlsField::ChainFingerprints1,
            "PEER_CHAIN_SERIALS" => TlsField::ChainSerials,
            "PEER_ISSUER_FINGERPRINT_256" => TlsField::IssuerFingerprint,
            "PEER_ISSUER_SERIAL" => TlsField::IssuerSerial,
            "PEER_SERIAL" => TlsField::PeerSerial,
            "PEER_ISSUER" => TlsField::PeerIssuer,
            "PEER_CERT_V_START" => TlsField::PeerStart(time_format(argument)?),
            "PEER_CERT_V_END" => TlsField::PeerEnd(time_format(argument)?),
            "LOCAL_URI_SAN" => TlsField::LocalUriSan,
            "LOCAL_DNS_SAN" => TlsField::LocalDnsSan,
            "LOCAL_SUBJECT" => TlsField::LocalSubject,
            "TLS_VERSION" => TlsField::Version,
            "TLS_CIPHER" => TlsField::Cipher,
            _ => return Ok(None),
        },
    )))
}

fn address(name: &str) -> Option<Operator> {
    let (base, address_only, port_only) = if let Some(base) = name.strip_suffix("_WITHOUT_PORT") {
        (base, true, false)
    } else if let Some(base) = name.strip_suffix("_PORT") {
        (base, false, true)
    } else {
        (name, false, false)
    };
    let side = match base {
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_REMOTE" => Address::DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE" => {
            Address::DownstreamDirectRemote
        }
        "DOWNSTREAM_LOCAL_ADDRESS" | "DOWNSTREAM_LOCAL" => Address::DownstreamLocal,
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" | "UPSTREAM_REMOTE" => Address::UpstreamHost,
        "UPSTREAM_LOCAL_ADDRESS" | "UPSTREAM_LOCAL" => Address::UpstreamLocal,
        _ => return None,
    };
    Some(match (address_only, port_only) {
        (true, _) => Operator::AddressWithoutPort(side),
        (_, true) => Operator::Port(side),
        _ => Operator::Address(side),
    })
}

/// `NAME` or `NAME?OTHER`.
fn header(map: Map, argument: &str) -> Result<Operator, Invalid> {
    let (first, other) = match argument.split_once('?') {
        Some((first, other)) => (first, Some(other)),
        None => (argument, None),
    };
    if other.is_some_and(|other| other.contains('?')) {
        return Err(Invalid::new("more than 1 alternative header specified"));
    }
    Ok(Operator::Header(
        map,
        FieldName::parse(first)?,
        other.map(FieldName::parse).transpose()?,
    ))
}

fn metadata(argument: &str) -> Result<Operator, Invalid> {
    let mut keys = argument.split(':');
    let filter = keys
        .next()
        .filter(|filter| !filter.is_empty())
        .ok_or_else(|| Invalid::new("a metadata namespace is needed"))?;
    Ok(Operator::DynamicMetadata(
        filter.into(),
        keys.map(Into::into).collect(),
    ))
}

fn time_format(argument: Option<&str>) -> Result<TimeFormat, Invalid> {
    argument.map_or_else(|| Ok(TimeFormat::default()), TimeFormat::parse)
}

fn duration_between(argument: &str) -> Result<Operator, Invalid> {
    let invalid = || Invalid::new("COMMON_DURATION takes START:END:PRECISION");
    let mut parts = argument.split(':');
    let (start, end) = parts.next().zip(parts.next()).ok_or_else(invalid)?;
    let precision = match parts.next() {
        Some("ms") => Precision::Milliseconds,
        Some("us") => Precision::Microseconds,
        Some("ns") => Precision::Nanoseconds,
        _ => return Err(invalid()),
    };
    let moment = |name: &str| match name {
        "DS_RX_BEG" => Some(Moment::RequestStart),
        "DS_RX_END" => Some(Moment::RequestEnd),
        "US_TX_END" => Some(Moment::RequestSent),
        "US_RX_BEG" => Some(Moment::ResponseStart),
        "DS_TX_END" => Some(Moment::End),
        _ => None,
    };
    if parts.next().is_some() {
        return Err(invalid());
    }
    // Other moments, times of the upstream connection and those that filters note, are not known here.
    Ok(match moment(start).zip(moment(end)) {
        Some((start, end)) => Operator::Between(start, end, precision),
        None => Operator::Absent,
    })
}

fn hostname() -> Option<Box<str>> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().into())
}
