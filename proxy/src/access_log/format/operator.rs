//! The operators: each knows how to write its value, or that it has none.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::http::headers::{RequestHeaders, names};
use crate::http::local_reply::grpc_status_of;
use crate::matcher::{FieldName, HeaderSource};

use super::address::{Address, AddressPart};
use super::attempted::{Attempted, without_port, write_attempted};
use super::connection_field::{ConnectionField, UpstreamEnd};
use super::forwarded_certificate::CertificateKey;
use super::metadata::MetadataPath;
use super::moment::{Moment, Precision};
use super::request::{
    PathSource, ServerName, decoded_query, header_bytes, query_value, write_stream_id,
};
use super::state::StatePath;
use super::tls_field::{Side, TlsField};
use super::traffic::{Measure, Way};
use super::{FormatContext, Kind, TimeFormat, truncate};
use crate::access_log::expression::Expression;

/// One operator, its arguments parsed.
#[derive(Debug, Clone)]
pub(super) enum Operator {
    Literal(Option<Box<str>>),
    Number(u64),
    Absent,
    Time(TimePoint, TimeFormat),
    Header(Map, FieldName, Option<FieldName>),
    WithoutQuery(FieldName, Option<FieldName>),
    Path(PathSource, bool),
    QueryParameter(Box<str>),
    QueryParameters(bool),
    ForwardedCertificate(CertificateKey),
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails(bool),
    ConnectionTerminationDetails,
    ResponseFlags(bool),
    BytesReceived,
    BytesSent,
    Traffic(Side, Way, Measure),
    Duration,
    RequestDuration,
    RequestTxDuration,
    ResponseDuration,
    ResponseTxDuration,
    Between(Moment, Moment, Precision),
    AttemptCount,
    HostsAttempted(Attempted),
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamConnectionId,
    PoolReadyDuration,
    Connection(ConnectionField),
    UpstreamEnd(UpstreamEnd),
    UpstreamHostName,
    UpstreamHostNameWithoutPort,
    UpstreamTransportFailure,
    RequestedServerName(ServerName),
    RouteName,
    VirtualHostName,
    VirtualClusterName,
    ConnectionId,
    StreamId,
    UniqueId,
    LogType,
    TraceId,
    SpanId,
    GrpcStatus(bool),
    GrpcStatusSnake,
    LocalReplyBody,
    Metadata(MetadataPath),
    FilterState(StatePath),
    UpstreamFilterState(StatePath),
    Address(Address, AddressPart),
    Expression(Box<Expression>, bool),
    FirstOf(Vec<(Operator, Option<usize>)>),
    FilterChainName,
    HeaderBytes(Map),
    Tls(Side, TlsField),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Map {
    Request,
    Response,
    Trailers,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TimePoint {
    Start,
    Now,
}

/// Camel-case names of gRPC status codes, by number.
const GRPC_STATUS: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

impl Operator {
    /// What the value is in typed JSON.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Operator::ResponseCode
            | Operator::BytesReceived
            | Operator::BytesSent
            | Operator::Traffic(..)
            | Operator::Duration
            | Operator::RequestDuration
            | Operator::RequestTxDuration
            | Operator::ResponseDuration
            | Operator::ResponseTxDuration
            | Operator::Between(..)
            | Operator::AttemptCount
            | Operator::ConnectionId
            | Operator::HeaderBytes(_)
            | Operator::GrpcStatus(false)
            | Operator::UpstreamConnectionId
            | Operator::PoolReadyDuration
            | Operator::Connection(ConnectionField::HandshakeDuration)
            | Operator::Address(_, AddressPart::Port)
            | Operator::Number(_) => Kind::Number,
            Operator::Metadata(_) | Operator::Expression(_, true) => Kind::Json,
            Operator::FilterState(path) | Operator::UpstreamFilterState(path) if path.is_json() => {
                Kind::Json
            }
            _ => Kind::Text,
        }
    }

    /// Appends the value; false, with anything appended to be thrown away, when there is none.
    pub(super) fn write(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let info = context.info;
        match self {
            Operator::Time(point, format) => {
                let time = match point {
                    TimePoint::Start => info.start_time,
                    TimePoint::Now => SystemTime::now(),
                };
                format.write(time, out);
                true
            }
            Operator::Header(map, name, other) => {
                write_header(context, *map, name, other.as_ref(), out)
            }
            Operator::ResponseCode => number(u64::from(info.response_code.unwrap_or(0)), out),
            Operator::ResponseCodeDetails(has_spaces) => {
                let details = info.response_code_details.as_deref();
                let details = details.map(|details| match details.find(' ') {
                    Some(_) if !has_spaces => details.replace(' ', "_").into(),
                    _ => Cow::Borrowed(details),
                });
                put(details.as_deref(), out)
            }
            Operator::ConnectionTerminationDetails => {
                put(info.connection_termination_details.as_deref(), out)
            }
            Operator::ResponseFlags(long) => {
                // QUIRK: without flags the value is a dash, not nothing; in JSON too.
                if info.flags.is_empty() {
                    out.push('-');
                }
                info.flags.write(*long, out);
                true
            }
            Operator::BytesReceived => number(info.bytes_received, out),
            Operator::BytesSent => number(info.bytes_sent, out),
            Operator::Traffic(side, way, measure) => number(measure.of(*side, *way, info), out),
            Operator::AttemptCount => number(u64::from(info.upstream.attempts), out),
            Operator::Protocol => put(info.protocol.map(protocol), out),
            Operator::Duration
            | Operator::RequestDuration
            | Operator::RequestTxDuration
            | Operator::ResponseDuration
            | Operator::ResponseTxDuration
            | Operator::PoolReadyDuration
            | Operator::Between(..) => self.write_duration(context, out),
            Operator::UpstreamCluster
            | Operator::UpstreamClusterRaw
            | Operator::UpstreamConnectionId
            | Operator::UpstreamHostName
            | Operator::UpstreamHostNameWithoutPort
            | Operator::HostsAttempted(_)
            | Operator::UpstreamTransportFailure
            | Operator::UpstreamProtocol
            | Operator::RouteName
            | Operator::VirtualHostName
            | Operator::VirtualClusterName => self.write_upstream(context, out),
            _ => self.write_other(context, out),
        }
    }

    /// What is not of the stream's own record.
    fn write_other(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let info = context.info;
        match self {
            Operator::Literal(text) => put(text.as_deref(), out),
            Operator::Number(value) => number(*value, out),
            Operator::Absent => false,
            Operator::RequestedServerName(form) => form.write(context, out),
            Operator::ConnectionId => number(info.connection.id, out),
            Operator::LocalReplyBody => put(Some(context.local_reply_body), out),
            Operator::Address(side, part) => side.write(*part, info, out),
            Operator::Metadata(path) => path.write(info, out),
            Operator::FilterState(path) => put(path.find(info).as_deref(), out),
            Operator::UpstreamFilterState(path) => {
                put(path.find_upstream(&info.upstream).as_deref(), out)
            }
            Operator::Expression(expression, _) => expression.write(context, out),
            Operator::FirstOf(operators) => operators.iter().any(|(operator, limit)| {
                let start = out.len();
                if operator.write(context, out) && out.len() > start {
                    truncate(out, start, *limit);
                    return true;
                }
                out.truncate(start);
                false
            }),
            Operator::GrpcStatus(_) | Operator::GrpcStatusSnake => {
                self.write_grpc_status(context, out)
            }
            Operator::Path(..)
            | Operator::WithoutQuery(..)
            | Operator::QueryParameter(_)
            | Operator::ForwardedCertificate(_)
            | Operator::QueryParameters(_) => self.write_request(context, out),
            Operator::StreamId => write_stream_id(context, out),
            Operator::UniqueId => put(Some(&uuid::Uuid::new_v4().to_string()), out),
            Operator::LogType => put(Some(context.log_type.name()), out),
            Operator::TraceId => put(info.trace_id().as_deref(), out),
            Operator::SpanId => put(info.span_id().as_deref(), out),
            Operator::FilterChainName => put(
                (info.connection.chain.as_ref())
                    .map(|chain| chain.name())
                    .filter(|name| !name.is_empty()),
                out,
            ),
            Operator::UpstreamEnd(field) => field.write(&info.upstream, out),
            Operator::Connection(field) => field.write(info, out),
            Operator::HeaderBytes(map) => number(header_bytes(context, *map), out),
            Operator::Tls(side, field) => {
                let session = match side {
                    Side::Downstream => info.connection.tls.as_deref(),
                    Side::Upstream => info.upstream.tls(),
                };
                session.is_some_and(|tls| field.write(tls, out))
            }
            _ => false,
        }
    }

    /// Appends the value as JSON; false when there is none.
    pub(super) fn write_json(
        &self,
        context: &FormatContext<'_>,
        limit: Option<usize>,
        out: &mut String,
    ) -> bool {
        let start = out.len();
        let has_value = match self {
            Operator::Metadata(path) => path.write_json(context.info, limit, out),
            Operator::Expression(expression, _) => expression.write_json(context, out),
            _ => self.write(context, out),
        };
        if !has_value {
            out.truncate(start);
        }
        has_value
    }

    fn write_upstream(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let info = context.info;
        let upstream = &info.upstream;
        let cluster = upstream.cluster.as_ref();
        let route = info.route.as_ref();
        match self {
            Operator::HostsAttempted(form) => write_attempted(upstream, *form, out),
            Operator::UpstreamProtocol => put(upstream.protocol.map(protocol), out),
            Operator::UpstreamCluster => {
                put(cluster.map(|cluster| &*cluster.config.stat_name), out)
            }
            Operator::UpstreamClusterRaw => put(cluster.map(|cluster| &**cluster.name()), out),
            Operator::UpstreamHostName => put(upstream.host_name(), out),
            Operator::UpstreamHostNameWithoutPort => {
                put(upstream.host_name().map(without_port), out)
            }
            Operator::UpstreamConnectionId => {
                let connection = upstream.connection.as_ref();
                number(connection.map_or(0, |connection| connection.id), out)
            }
            Operator::UpstreamTransportFailure => {
                // Spaces would break the log's fields.
                let reason = upstream.transport_failure.as_deref();
                reason.is_some_and(|reason| put(Some(&reason.replace(' ', "_")), out))
            }
            Operator::RouteName => {
                let name = route.map(|route| route.route().name.as_ref());
                put(name.filter(|name| !name.is_empty()), out)
            }
            Operator::VirtualHostName => {
                put(route.map(|route| route.virtual_host().name.as_ref()), out)
            }
            Operator::VirtualClusterName => put(info.virtual_cluster.as_deref(), out),
            _ => false,
        }
    }

    fn write_duration(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let info = context.info;
        let since_start =
            |point: Option<Instant>| point.map(|point| point.saturating_duration_since(info.start));
        let duration = match self {
            Operator::Between(start, end, precision) => {
                let both = start.of(info).zip(end.of(info));
                let duration = both.and_then(|(start, end)| end.checked_duration_since(start));
                return duration.is_some_and(|duration| number(precision.count(duration), out));
            }
            Operator::RequestDuration => since_start(info.request_end),
            Operator::RequestTxDuration => since_start(Moment::RequestSent.of(info)),
            Operator::PoolReadyDuration => {
                let both = info.upstream.began.zip(info.upstream.ready);
                both.map(|(began, ready)| ready.saturating_duration_since(began))
            }
            Operator::ResponseDuration => since_start(info.response_start),
            Operator::ResponseTxDuration => info
                .response_start
                .zip(info.end)
                .map(|(start, end)| end.saturating_duration_since(start)),
            _ => Some(info.duration()),
        };
        duration.is_some_and(|duration| number(milliseconds(duration), out))
    }

    fn write_request(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let Some(request) = context.request else {
            return false;
        };
        match self {
            Operator::Path(source, has_query) => {
                let path = source.of(request);
                put(
                    path.map(|path| match path.find('?') {
                        Some(query) if !has_query => &path[..query],
                        _ => path,
                    }),
                    out,
                )
            }
            Operator::QueryParameters(is_decoded) => match request.path.query() {
                Some(query) if *is_decoded => put(Some(&decoded_query(query)), out),
                query => put(query, out),
            },
            Operator::QueryParameter(name) => {
                put(query_value(request.path.query(), name).as_deref(), out)
            }
            Operator::ForwardedCertificate(key) => put(key.find(request).as_deref(), out),
            Operator::WithoutQuery(name, other) => {
                let start = out.len();
                let found = write_header(context, Map::Request, name, other.as_ref(), out);
                if let Some(query) = out[start..].find('?') {
                    out.truncate(start + query);
                }
                found
            }
            _ => false,
        }
    }

    fn write_grpc_status(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let name = &names::GRPC_STATUS;
        let value = context
            .trailers
            .and_then(|map| map.get(name))
            .or_else(|| context.response.and_then(|head| head.map.get(name)))
            .and_then(|value| value.to_str().ok());
        // A call that brought no status of its own has that of its HTTP status.
        let of_http = || {
            let is_grpc = context.request.is_some_and(RequestHeaders::is_grpc);
            let code = context.info.response_code.filter(|_| is_grpc)?;
            Some(grpc_status_of(code).to_string().into())
        };
        let Some(value) = value.map(Cow::Borrowed).or_else(of_http) else {
            return false;
        };
        let known = value
            .parse::<usize>()
            .ok()
            .and_then(|code| GRPC_STATUS.get(code));
        match (self, known) {
            (Operator::GrpcStatus(true), Some(name)) => out.push_str(name),
            (Operator::GrpcStatusSnake, Some(name)) => {
                for (index, c) in name.char_indices() {
                    if index > 0 && c.is_ascii_uppercase() && *name != "OK" {
                        out.push('_');
                    }
                    out.push(c.to_ascii_uppercase());
                }
            }
            _ => out.push_str(&value),
        }
        true
    }
}

fn write_header(
    context: &FormatContext<'_>,
    map: Map,
    name: &FieldName,
    other: Option<&FieldName>,
    out: &mut String,
) -> bool {
    let found = match map {
        Map::Request => context.request.and_then(|head| either(head, name, other)),
        Map::Response => context.response.and_then(|head| either(head, name, other)),
        Map::Trailers => context.trailers.and_then(|map| either(map, name, other)),
    };
    let Some(value) = found else {
        return false;
    };
    out.push_str(&String::from_utf8_lossy(&value));
    true
}

fn either<'a>(
    source: &'a impl HeaderSource,
    name: &FieldName,
    other: Option<&FieldName>,
) -> Option<std::borrow::Cow<'a, [u8]>> {
    // Only the first of several values is written; it is what `field` gives for the usual single one.
    source.field(name).or_else(|| source.field(other?))
}

pub(super) fn put(text: Option<&str>, out: &mut String) -> bool {
    text.is_some_and(|text| {
        out.push_str(text);
        true
    })
}

pub(super) fn number(value: u64, out: &mut String) -> bool {
    let _ = write!(out, "{value}");
    true
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
