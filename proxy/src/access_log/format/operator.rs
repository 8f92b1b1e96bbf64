//! The operators: each knows how to write its value, or that it has none.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use tokio::time::Instant;

use crate::http::headers::{RequestHeaders, names};
use crate::http::local_reply::grpc_status_of;
use crate::matcher::{FieldName, HeaderSource};

use super::attempted::{Attempted, write_attempted};
use super::json_value::write_metadata;
use super::moment::{Moment, Precision};
use super::tls_field::{Side, TlsField};
use super::{FormatContext, Kind, TimeFormat};

/// One operator, its arguments parsed.
#[derive(Debug, Clone)]
pub(super) enum Operator {
    Literal(Option<Box<str>>),
    Absent,
    Time(TimePoint, TimeFormat),
    Header(Map, FieldName, Option<FieldName>),
    WithoutQuery(FieldName, Option<FieldName>),
    Path { with_query: bool },
    QueryParameter(Box<str>),
    QueryParameters,
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags(bool),
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    RequestTxDuration,
    ResponseDuration,
    ResponseTxDuration,
    Between(Moment, Moment, Precision),
    AttemptCount,
    HostsAttempted(Attempted),
    UpstreamCluster,
    UpstreamHostName,
    UpstreamTransportFailure,
    RequestedServerName,
    RouteName,
    VirtualHostName,
    VirtualClusterName,
    ConnectionId,
    StreamId,
    TraceId,
    SpanId,
    GrpcStatus(bool),
    GrpcStatusSnake,
    LocalReplyBody,
    DynamicMetadata(Box<str>, Vec<Box<str>>),
    RouteMetadata(Box<str>, Vec<Box<str>>),
    Address(Address),
    AddressWithoutPort(Address),
    Port(Address),
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
pub(super) enum Address {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    UpstreamHost,
    UpstreamLocal,
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
            | Operator::Port(_) => Kind::Number,
            Operator::DynamicMetadata(..) | Operator::RouteMetadata(..) => Kind::Json,
            _ => Kind::Text,
        }
    }

    /// Appends the value; false, with anything appended to be thrown away, when there is none.
    pub(super) fn write(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let info = context.info;
        match self {
            Operator::Literal(text) => put(text.as_deref(), out),
            Operator::Absent => false,
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
            Operator::ResponseCodeDetails => put(info.response_code_details.as_deref(), out),
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
            Operator::AttemptCount => number(u64::from(info.upstream.attempts), out),
            Operator::Protocol => put(info.protocol.map(protocol), out),
            Operator::Duration
            | Operator::RequestDuration
            | Operator::RequestTxDuration
            | Operator::ResponseDuration
            | Operator::ResponseTxDuration
            | Operator::Between(..) => self.write_duration(context, out),
            Operator::UpstreamCluster
            | Operator::UpstreamHostName
            | Operator::HostsAttempted(_)
            | Operator::UpstreamTransportFailure
            | Operator::UpstreamProtocol
            | Operator::RouteName
            | Operator::VirtualHostName
            | Operator::VirtualClusterName
            | Operator::RouteMetadata(..) => self.write_upstream(context, out),
            Operator::RequestedServerName => put(info.connection.server_name.as_deref(), out),
            Operator::ConnectionId => number(info.connection.id, out),
            Operator::LocalReplyBody => put(Some(context.local_reply_body), out),
            Operator::Address(_) | Operator::AddressWithoutPort(_) | Operator::Port(_) => {
                self.write_address(context, out)
            }
            Operator::DynamicMetadata(filter, path) => {
                write_metadata(info.metadata.get(filter), path, out)
            }
            Operator::GrpcStatus(_) | Operator::GrpcStatusSnake => {
                self.write_grpc_status(context, out)
            }
            Operator::Path { .. }
            | Operator::WithoutQuery(..)
            | Operator::QueryParameter(_)
            | Operator::QueryParameters
            | Operator::StreamId => self.write_request(context, out),
            Operator::TraceId => put(info.trace_id().as_deref(), out),
            Operator::SpanId => put(info.span_id().as_deref(), out),
            Operator::FilterChainName => put(
                (info.connection.chain.as_ref())
                    .map(|chain| chain.name())
                    .filter(|name| !name.is_empty()),
                out,
            ),
            Operator::HeaderBytes(map) => number(header_bytes(context, *map), out),
            Operator::Tls(side, field) => {
                let session = match side {
                    Side::Downstream => &info.connection.tls,
                    Side::Upstream => &info.upstream.tls,
                };
                session.as_ref().is_some_and(|tls| field.write(tls, out))
            }
        }
    }

    fn write_upstream(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let info = context.info;
        match self {
            Operator::HostsAttempted(form) => write_attempted(&info.upstream, *form, out),
            Operator::UpstreamProtocol => put(info.upstream.protocol.map(protocol), out),
            Operator::UpstreamCluster => put(info.upstream.cluster.as_deref(), out),
            Operator::UpstreamHostName => put(
                info.upstream
                    .host_name
                    .as_deref()
                    .or(info.upstream.host.as_deref()),
                out,
            ),
            Operator::UpstreamTransportFailure => {
                // Spaces would break the log's fields.
                let reason = info.upstream.transport_failure.as_deref();
                reason.is_some_and(|reason| put(Some(&reason.replace(' ', "_")), out))
            }
            Operator::RouteName => put(
                info.route
                    .as_ref()
                    .map(|route| route.route().name.as_ref())
                    .filter(|name| !name.is_empty()),
                out,
            ),
            Operator::VirtualHostName => put(
                info.route
                    .as_ref()
                    .map(|route| route.virtual_host().name.as_ref()),
                out,
            ),
            Operator::VirtualClusterName => put(info.virtual_cluster.as_deref(), out),
            Operator::RouteMetadata(filter, path) => {
                let metadata = info
                    .route
                    .as_ref()
                    .and_then(|route| route.route().metadata.as_ref());
                write_metadata(
                    metadata.and_then(|all| all.filter_metadata.get(filter.as_ref())),
                    path,
                    out,
                )
            }
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
            Operator::RequestTxDuration => since_start(info.request_sent.or(info.request_end)),
            Operator::ResponseDuration => since_start(info.response_start),
            Operator::ResponseTxDuration => info
                .response_start
                .zip(info.end)
                .map(|(start, end)| end.saturating_duration_since(start)),
            _ => Some(info.duration()),
        };
        duration.is_some_and(|duration| number(milliseconds(duration), out))
    }

    fn write_address(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let info = context.info;
        let (Operator::Address(side) | Operator::AddressWithoutPort(side) | Operator::Port(side)) =
            self
        else {
            return false;
        };
        let address: Option<SocketAddr> = match side {
            Address::DownstreamRemote => Some(info.remote_address),
            Address::DownstreamDirectRemote => Some(info.connection.direct_remote_address),
            Address::DownstreamLocal => Some(info.connection.local_address),
            Address::UpstreamLocal => info.upstream.local_address,
            Address::UpstreamHost => {
                let Some(host) = info.upstream.host.as_deref() else {
                    return false;
                };
                let parts = host.rsplit_once(':');
                return match self {
                    Operator::Address(_) => put(Some(host), out),
                    Operator::Port(_) => put(parts.map(|(_, port)| port), out),
                    _ => put(
                        Some(parts.map_or(host, |(ip, _)| ip.trim_matches(['[', ']']))),
                        out,
                    ),
                };
            }
        };
        let Some(address) = address else {
            return false;
        };
        // Writing to a string cannot fail.
        let _ = match self {
            Operator::Address(_) => write!(out, "{address}"),
            Operator::AddressWithoutPort(_) => write!(out, "{}", address.ip()),
            _ => write!(out, "{}", address.port()),
        };
        true
    }

    fn write_request(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        let Some(request) = context.request else {
            return false;
        };
        match self {
            Operator::Path { with_query: true } => put(Some(request.path.as_str()), out),
            Operator::Path { .. } => put(Some(request.path.path()), out),
            Operator::QueryParameters => put(request.path.query(), out),
            Operator::QueryParameter(name) => put(query_value(request.path.query(), name), out),
            Operator::StreamId => put(request.text(&names::X_REQUEST_ID), out),
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

/// The names and values of all fields of a head, pseudo headers too, without what stands between them.
fn header_bytes(context: &FormatContext<'_>, map: Map) -> u64 {
    let of_map = |map: &HeaderMap| {
        let sizes = map
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len());
        sizes.sum::<usize>()
    };
    let size = match map {
        Map::Request => context.request.map(|head| {
            let pseudo = [
                (":authority", head.authority.len()),
                (":path", head.path.as_str().len()),
                (":method", head.method.as_str().len()),
                (":scheme", head.scheme.as_str().len()),
            ];
            let pseudo = pseudo.iter().map(|(name, length)| name.len() + length);
            of_map(&head.map) + pseudo.sum::<usize>()
        }),
        Map::Response => context
            .response
            .map(|head| of_map(&head.map) + ":status".len() + head.status.as_str().len()),
        Map::Trailers => context.trailers.map(of_map),
    };
    size.unwrap_or(0) as u64
}

/// The value of a query parameter, as it was sent.
fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
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

fn number(value: u64, out: &mut String) -> bool {
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

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
