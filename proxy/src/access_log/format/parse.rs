//! The grammar of format strings: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):limit%`, `%%`.

use crate::invalid::{At as _, Invalid};
use crate::matcher::FieldName;

use super::address;
use super::attempted::Attempted;
use super::connection_field::{ConnectionField, UpstreamEnd};
use super::forwarded_certificate::CertificateKey;
use super::metadata::{MetadataPath, Owner};
use super::moment::{Moment, Precision};
use super::operator::{Map, Operator, TimePoint};
use super::request::{HostSource, NameFrom, PathSource, ServerName};
use super::state::StatePath;
use super::tls_field::{Side, TlsField};
use super::traffic::Measure;
use super::{Part, TimeFormat};
use crate::access_log::expression::Expression;

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
    limited(name, argument, limit).map(|operator| Part::Operator(operator, limit))
}

/// An operator whose value is cut to a length, if one is given: only of some.
fn limited(name: &str, argument: Option<&str>, limit: Option<usize>) -> Result<Operator, Invalid> {
    if limit.is_some() && !CUT.contains(&name) {
        return Err(Invalid::new(format!("{name} does not take a length")));
    }
    operator(name, argument)
}

fn operator(name: &str, argument: Option<&str>) -> Result<Operator, Invalid> {
    let needed = || argument.ok_or_else(|| Invalid::new("an argument in parentheses is needed"));
    if let Some(operator) = plain(name) {
        return alone(argument).map(|()| operator);
    }
    if let Some((side, part)) = address::parse(name, argument)? {
        return Ok(Operator::Address(side, part));
    }
    if let Some(operator) = of_side(name, argument)? {
        if !matches!(
            operator,
            Operator::Tls(_, TlsField::PeerStart(_) | TlsField::PeerEnd(_))
        ) {
            alone(argument)?;
        }
        return Ok(operator);
    }
    Ok(match name {
        "START_TIME" => Operator::Time(TimePoint::Start, time_format(argument)?),
        "EMIT_TIME" => Operator::Time(TimePoint::Now, time_format(argument)?),
        "START_TIME_LOCAL" => Operator::Time(TimePoint::Start, local_time_format(argument)?),
        "EMIT_TIME_LOCAL" => Operator::Time(TimePoint::Now, local_time_format(argument)?),
        "REQ" | "REQUEST_HEADER" => header(Map::Request, needed()?)?,
        "RESP" | "RESPONSE_HEADER" => header(Map::Response, needed()?)?,
        "TRAILER" | "RESPONSE_TRAILER" => header(Map::Trailers, needed()?)?,
        "REQ_WITHOUT_QUERY" => match header(Map::Request, needed()?)? {
            Operator::Header(_, name, other) => Operator::WithoutQuery(name, other),
            other => other,
        },
        "QUERY_PARAM" => Operator::QueryParameter(needed()?.into()),
        "QUERY_PARAMS" => {
            Operator::QueryParameters(choice(argument, &[("ORIG", false), ("DECODED", true)])?)
        }
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails(choice(
            argument,
            &[("", false), ("ALLOW_WHITESPACES", true)],
        )?),
        "PATH" => path(argument.unwrap_or_default())?,
        "REQUESTED_SERVER_NAME" => server_name(argument.unwrap_or_default())?,
        "METADATA" => Operator::Metadata(MetadataPath::parse_owned(needed()?)?),
        "DYNAMIC_METADATA" => Operator::Metadata(MetadataPath::parse(Owner::Stream, needed()?)?),
        "CLUSTER_METADATA" => Operator::Metadata(MetadataPath::parse(Owner::Cluster, needed()?)?),
        "UPSTREAM_METADATA" => Operator::Metadata(MetadataPath::parse(Owner::Host, needed()?)?),
        "CEL" | "TYPED_CEL" => {
            Operator::Expression(Box::new(Expression::parse(needed()?)?), name == "TYPED_CEL")
        }
        "COALESCE" => first_of(needed()?)?,
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
        "FILTER_STATE" => Operator::FilterState(StatePath::parse(needed()?)?),
        "UPSTREAM_FILTER_STATE" => Operator::UpstreamFilterState(StatePath::parse(needed()?)?),
        "XFCC_VALUE" => Operator::ForwardedCertificate(CertificateKey::parse(needed()?)?),
        _ if KNOWN_ABSENT.contains(&name) => alone(argument).map(|()| Operator::Absent)?,
        _ => {
            return Err(Invalid::new(format!(
                "not supported field in StreamInfo: {name}"
            )));
        }
    })
}

/// Operators of Envoy's that never have a value here.
const KNOWN_ABSENT: &[&str] = &[
    // HTTP/3 only.
    "ROUNDTRIP_DURATION",
    "DOWNSTREAM_TLS_SESSION_ID",
    "UPSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_CX_RTT",
];

/// Operators whose values may be cut to a length.
const CUT: &[&str] = &[
    "CEL",
    "COALESCE",
    "DYNAMIC_METADATA",
    "ENVIRONMENT",
    "FILTER_STATE",
    "METADATA",
    "PATH",
    "QUERY_PARAM",
    "QUERY_PARAMS",
    "REQ",
    "REQUEST_HEADER",
    "RESP",
    "RESPONSE_HEADER",
    "RESPONSE_TRAILER",
    "TRAILER",
    "TYPED_CEL",
    "UPSTREAM_FILTER_STATE",
    "XFCC_VALUE",
];

/// Refuses an argument where none is taken.
pub(super) fn alone(argument: Option<&str>) -> Result<(), Invalid> {
    match argument {
        None | Some("") => Ok(()),
        Some(argument) => Err(Invalid::new(format!(
            "it takes no argument, given '{argument}'"
        ))),
    }
}

fn plain(name: &str) -> Option<Operator> {
    Some(match name {
        "PROTOCOL" => Operator::Protocol,
        "UPSTREAM_PROTOCOL" => Operator::UpstreamProtocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
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
        "UPSTREAM_CLUSTER" => Operator::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamClusterRaw,
        "UPSTREAM_CONNECTION_ID" => Operator::UpstreamConnectionId,
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED" => Operator::HostsAttempted(Attempted::Connection),
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Operator::PoolReadyDuration,
        "DOWNSTREAM_HANDSHAKE_DURATION" => Operator::Connection(ConnectionField::HandshakeDuration),
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => {
            Operator::Connection(ConnectionField::TransportFailure)
        }
        "DOWNSTREAM_LOCAL_CLOSE_REASON" => Operator::Connection(ConnectionField::CloseReason),
        "DOWNSTREAM_DETECTED_CLOSE_TYPE" => Operator::Connection(ConnectionField::CloseType),
        "UPSTREAM_LOCAL_CLOSE_REASON" => Operator::UpstreamEnd(UpstreamEnd::Reason),
        "UPSTREAM_DETECTED_CLOSE_TYPE" => Operator::UpstreamEnd(UpstreamEnd::Type),
        "TLS_JA3_FINGERPRINT" => Operator::Connection(ConnectionField::Ja3),
        "TLS_JA4_FINGERPRINT" => Operator::Connection(ConnectionField::Ja4),
        // HTTP/3 only.
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => Operator::Number(0),
        // No filter here sets any.
        "CUSTOM_FLAGS" => Operator::Literal(Some(Box::default())),
        "UPSTREAM_HOSTS_ATTEMPTED" => Operator::HostsAttempted(Attempted::Address),
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => {
            Operator::HostsAttempted(Attempted::AddressWithoutPort)
        }
        "UPSTREAM_HOST_NAMES_ATTEMPTED" => Operator::HostsAttempted(Attempted::Name),
        "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => {
            Operator::HostsAttempted(Attempted::NameWithoutPort)
        }
        "UPSTREAM_HOST_NAME" => Operator::UpstreamHostName,
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Operator::UpstreamHostNameWithoutPort,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailure,
        "ROUTE_NAME" => Operator::RouteName,
        "VIRTUAL_HOST_NAME" => Operator::VirtualHostName,
        "VIRTUAL_CLUSTER_NAME" => Operator::VirtualClusterName,
        "CONNECTION_ID" => Operator::ConnectionId,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(false),
        "HOSTNAME" => Operator::Literal(hostname()),
        "LOCAL_REPLY_BODY" => Operator::LocalReplyBody,
        "STREAM_ID" => Operator::StreamId,
        "UNIQUE_ID" => Operator::UniqueId,
        "TRACE_ID" => Operator::TraceId,
        "SPAN_ID" => Operator::SpanId,
        "ACCESS_LOG_TYPE" => Operator::LogType,
        "FILTER_CHAIN_NAME" => Operator::FilterChainName,
        "REQUEST_HEADERS_BYTES" => Operator::HeaderBytes(Map::Request),
        "RESPONSE_HEADERS_BYTES" => Operator::HeaderBytes(Map::Response),
        "RESPONSE_TRAILERS_BYTES" => Operator::HeaderBytes(Map::Trailers),
        _ => return None,
    })
}

/// `DOWNSTREAM_…` or `UPSTREAM_…`: bytes on the wire, or something of a TLS session.
fn of_side(name: &str, argument: Option<&str>) -> Result<Option<Operator>, Invalid> {
    let (side, field) = if let Some(field) = name.strip_prefix("DOWNSTREAM_") {
        (Side::Downstream, field)
    } else if let Some(field) = name.strip_prefix("UPSTREAM_") {
        (Side::Upstream, field)
    } else {
        return Ok(None);
    };
    if let Some((measure, way)) = Measure::named(field) {
        return Ok(Some(Operator::Traffic(side, way, measure)));
    }
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
            "LOCAL_IP_SAN" => TlsField::LocalIpSan,
            "LOCAL_EMAIL_SAN" => TlsField::LocalEmailSan,
            "LOCAL_OTHERNAME_SAN" => TlsField::LocalOtherNameSan,
            "PEER_OTHERNAME_SAN" => TlsField::PeerOtherNameSan,
            "TLS_GROUP" => TlsField::Group,
            "SERVER_NAME" if side == Side::Upstream => TlsField::ServerName,
            "LOCAL_SUBJECT" => TlsField::LocalSubject,
            "TLS_VERSION" => TlsField::Version,
            "TLS_CIPHER" => TlsField::Cipher,
            _ => return Ok(None),
        },
    )))
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

/// One of a few words, the first unless another is given.
fn choice<T: Copy>(argument: Option<&str>, words: &[(&str, T)]) -> Result<T, Invalid> {
    let given = argument.filter(|given| !given.is_empty());
    let found = words
        .iter()
        .find(|(word, _)| given.is_none_or(|given| given == *word));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Invalid::new(format!(
            "'{}' is none of {}",
            given.unwrap_or_default(),
            words.join(", ")
        ))
    })
}

fn path(argument: &str) -> Result<Operator, Invalid> {
    let (query, source) = argument.split_once(':').unwrap_or((argument, ""));
    Ok(Operator::Path(
        choice(
            Some(source),
            &[
                ("ORIG_OR_PATH", PathSource::OriginalElsePath),
                ("ORIG", PathSource::Original),
                ("PATH", PathSource::Path),
            ],
        )?,
        choice(Some(query), &[("WQ", true), ("NQ", false)])?,
    ))
}

fn server_name(argument: &str) -> Result<Operator, Invalid> {
    let (from, host) = argument.split_once(':').unwrap_or((argument, ""));
    Ok(Operator::RequestedServerName(ServerName {
        from: choice(
            Some(from),
            &[
                ("SNI_ONLY", NameFrom::TlsOnly),
                ("SNI_FIRST", NameFrom::TlsElseHost),
                ("HOST_FIRST", NameFrom::Host),
            ],
        )?,
        host: choice(
            Some(host),
            &[
                ("ORIG_OR_HOST", HostSource::OriginalElseHost),
                ("ORIG", HostSource::Original),
                ("HOST", HostSource::Host),
            ],
        )?,
    }))
}

/// `{"operators": ["NAME", {"command": "NAME", "param": "ARGUMENT", "max_length": 3}]}`
fn first_of(argument: &str) -> Result<Operator, Invalid> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wire {
        operators: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged, deny_unknown_fields)]
    enum Entry {
        Name(String),
        Command {
            command: String,
            param: Option<String>,
            max_length: Option<usize>,
        },
    }
    let wire: Wire = serde_json::from_str(argument)
        .map_err(|error| Invalid::new(format!("it is not the JSON of COALESCE: {error}")))?;
    if wire.operators.is_empty() {
        return Err(Invalid::new("operators are needed"));
    }
    let operators = wire.operators.into_iter().map(|entry| match entry {
        Entry::Name(name) => Ok((operator(&name, None)?, None)),
        Entry::Command {
            command,
            param,
            max_length,
        } => Ok((limited(&command, param.as_deref(), max_length)?, max_length)),
    });
    operators.collect::<Result<_, _>>().map(Operator::FirstOf)
}

fn time_format(argument: Option<&str>) -> Result<TimeFormat, Invalid> {
    argument.map_or_else(|| Ok(TimeFormat::default()), TimeFormat::parse)
}

fn local_time_format(argument: Option<&str>) -> Result<TimeFormat, Invalid> {
    TimeFormat::parse_local(argument.unwrap_or_default())
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
    if parts.next().is_some() {
        return Err(invalid());
    }
    // Filters note no other moments here.
    Ok(match Moment::named(start).zip(Moment::named(end)) {
        Some((start, end)) => Operator::Between(start, end, precision),
        None => Operator::Absent,
    })
}

fn hostname() -> Option<Box<str>> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().into())
}
