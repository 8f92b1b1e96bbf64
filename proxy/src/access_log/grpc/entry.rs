//! A finished stream as an entry of the access log service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use core::socket_address::PortSpecifier;
use data::tls_properties::certificate_properties::{SubjectAltName, subject_alt_name::San};
use data::tls_properties::{CertificateProperties, TlsVersion};
use prost_types::Timestamp;
use proto::envoy::config::core::v3 as core;
use proto::envoy::data::accesslog::v3 as data;
use tokio::time::Instant;

use crate::access_log::FormatContext;
use crate::http::headers::{RequestHeaders, names};
use crate::listener::TlsInfo;
use crate::matcher::{FieldName, HeaderSource};
use crate::stream_info::{ResponseFlag as F, ResponseFlags, StreamInfo};

use super::{Entries, Entry};

impl Entries {
    pub(super) fn entry(&self, context: &FormatContext<'_>) -> Entry {
        let info = context.info;
        let common = Some(self.common(context));
        if self.is_tcp {
            return Entry::Tcp(Box::new(data::TcpAccessLogEntry {
                common_properties: common,
                connection_properties: Some(data::ConnectionProperties {
                    received_bytes: info.bytes_received,
                    sent_bytes: info.bytes_sent,
                }),
            }));
        }
        let (downstream_bytes, upstream_bytes) = (info.downstream_bytes(), info.upstream_bytes());
        let details = info.response_code_details.as_deref();
        Entry::Http(Box::new(data::HttpAccessLogEntry {
            common_properties: common,
            protocol_version: info.protocol.map_or(0, protocol_number),
            request: context.request.map(|request| self.request(request, info)),
            response: Some(data::HttpResponseProperties {
                response_code: info.response_code.map(u32::from),
                response_body_bytes: info.bytes_sent,
                response_headers_bytes: context.response.map_or(0, |head| size(&head.map)),
                response_headers: context
                    .response
                    .map(|head| pick(&self.response_headers, head))
                    .unwrap_or_default(),
                response_trailers: context
                    .trailers
                    .map(|trailers| pick(&self.response_trailers, trailers))
                    .unwrap_or_default(),
                response_code_details: details.unwrap_or_default().to_owned(),
                upstream_header_bytes_received: upstream_bytes.received.heads,
                downstream_header_bytes_sent: downstream_bytes.sent.heads,
            }),
        }))
    }

    fn common(&self, context: &FormatContext<'_>) -> data::AccessLogCommon {
        let info = context.info;
        let upstream = &info.upstream;
        let since = |point: Option<Instant>| {
            point.map(|point| span(point.saturating_duration_since(info.start)))
        };
        let took = span(info.duration());
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let id = context
            .request
            .and_then(|request| request.text(&names::X_REQUEST_ID));
        let (downstream_bytes, upstream_bytes) = (info.downstream_bytes(), info.upstream_bytes());
        data::AccessLogCommon {
            sample_rate: 1.0,
            downstream_remote_address: Some(address(info.remote_address)),
            downstream_local_address: Some(address(info.connection.local_address)),
            downstream_direct_remote_address: Some(address(info.connection.direct_remote_address)),
            tls_properties: info
                .connection
                .tls
                .as_deref()
                .map(|tls| tls_properties(tls, info)),
            start_time: Some(timestamp(info.start_time)),
            time_to_last_rx_byte: since(info.request_end),
            time_to_first_upstream_tx_byte: since(upstream.ready),
            time_to_last_upstream_tx_byte: since(upstream.ready.max(info.request_end)),
            time_to_first_upstream_rx_byte: since(info.response_start),
            time_to_last_downstream_tx_byte: Some(took),
            upstream_remote_address: (upstream.host.as_ref())
                .and_then(|host| host.socket_address())
                .map(address),
            upstream_local_address: upstream.local_address().map(address),
            upstream_cluster: text(upstream.cluster.as_ref().map(|cluster| &**cluster.name())),
            response_flags: response_flags(info.flags),
            metadata: metadata(info),
            upstream_transport_failure_reason: text(upstream.transport_failure.as_deref()),
            route_name: info
                .route
                .as_ref()
                .map(|route| route.route().name.to_string())
                .unwrap_or_default(),
            custom_tags: self
                .tags
                .iter()
                .filter_map(|tag| Some((tag.name.to_string(), tag.value(context)?)))
                .collect(),
            duration: Some(took),
            upstream_request_attempt_count: upstream.attempts,
            connection_termination_details: text(info.connection_termination_details.as_deref()),
            stream_id: text(id),
            downstream_wire_bytes_received: downstream_bytes.received.wire,
            downstream_wire_bytes_sent: downstream_bytes.sent.wire,
            upstream_wire_bytes_received: upstream_bytes.received.wire,
            upstream_wire_bytes_sent: upstream_bytes.sent.wire,
            access_log_type: data::AccessLogType::from(context.log_type).into(),
            ..data::AccessLogCommon::default()
        }
    }

    fn request(&self, request: &RequestHeaders, info: &StreamInfo) -> data::HttpRequestProperties {
        let text = |name| request.text(name).unwrap_or_default().to_owned();
        let host = request.host();
        let port = host
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u32>().ok());
        data::HttpRequestProperties {
            request_method: core::RequestMethod::from_str_name(request.method.as_str())
                .unwrap_or(core::RequestMethod::MethodUnspecified)
                .into(),
            scheme: request.scheme.as_str().to_owned(),
            authority: host.to_owned(),
            port,
            path: request.path.as_str().to_owned(),
            user_agent: text(&http::header::USER_AGENT),
            referer: text(&http::header::REFERER),
            forwarded_for: text(&names::X_FORWARDED_FOR),
            request_id: text(&names::X_REQUEST_ID),
            original_path: text(&names::X_ENVOY_ORIGINAL_PATH),
            request_headers_bytes: size(&request.map),
            request_body_bytes: info.bytes_received,
            upstream_header_bytes_sent: info.upstream_bytes().sent.heads,
            downstream_header_bytes_received: info.downstream_bytes().received.heads,
            request_headers: pick(&self.request_headers, request),
        }
    }
}

/// `HTTPVersion`.
fn protocol_number(version: http::Version) -> i32 {
    use data::http_access_log_entry::HttpVersion;
    match version {
        http::Version::HTTP_10 => HttpVersion::Http10.into(),
        http::Version::HTTP_2 => HttpVersion::Http2.into(),
        http::Version::HTTP_3 => HttpVersion::Http3.into(),
        _ => HttpVersion::Http11.into(),
    }
}

fn pick(names: &[FieldName], source: &impl HeaderSource) -> BTreeMap<String, String> {
    names
        .iter()
        .filter_map(|name| {
            let value = source.field(name)?;
            Some((
                name.as_str().to_owned(),
                String::from_utf8_lossy(&value).into_owned(),
            ))
        })
        .collect()
}

/// Names and values, as Envoy counts headers.
fn size(map: &http::HeaderMap) -> u64 {
    map.iter()
        .map(|(name, value)| (name.as_str().len() + value.len()) as u64)
        .sum()
}

fn address(address: SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
            ..core::SocketAddress::default()
        })),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

fn span(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn metadata(info: &StreamInfo) -> Option<core::Metadata> {
    let filter_metadata: BTreeMap<_, _> = info
        .metadata
        .iter()
        .map(|(name, fields)| (name.to_owned(), fields.clone()))
        .collect();
    (!filter_metadata.is_empty()).then(|| core::Metadata {
        filter_metadata,
        ..core::Metadata::default()
    })
}

fn tls_properties(tls: &TlsInfo, info: &StreamInfo) -> data::TlsProperties {
    let names = |uris: &[String], dns: &[String]| {
        let uris = uris.iter().map(|name| San::Uri(name.clone()));
        let dns = dns.iter().map(|name| San::Dns(name.clone()));
        uris.chain(dns)
            .map(|san| SubjectAltName { san: Some(san) })
            .collect()
    };
    let version = match tls.version {
        "TLSv1.2" => TlsVersion::TlSv12,
        "TLSv1.3" => TlsVersion::TlSv13,
        _ => TlsVersion::VersionUnspecified,
    };
    data::TlsProperties {
        tls_version: version.into(),
        tls_sni_hostname: info
            .connection
            .server_name
            .as_deref()
            .unwrap_or_default()
            .to_owned(),
        local_certificate_properties: Some(CertificateProperties {
            subject_alt_name: names(&tls.local.uri_sans, &tls.local.dns_sans),
            subject: tls.local.subject.clone(),
            ..CertificateProperties::default()
        }),
        peer_certificate_properties: tls.peer.as_deref().map(|peer| CertificateProperties {
            subject_alt_name: names(&peer.uri_sans, &peer.dns_sans),
            subject: peer.subject.clone(),
            issuer: peer.issuer.clone(),
        }),
        ..data::TlsProperties::default()
    }
}

fn response_flags(flags: ResponseFlags) -> Option<data::ResponseFlags> {
    if flags.is_empty() {
        return None;
    }
    let has = |flag| flags.contains(flag);
    let unauthorized =
        has(F::UnauthorizedExternalService).then(|| data::response_flags::Unauthorized {
            reason: data::response_flags::unauthorized::Reason::ExternalService.into(),
        });
    Some(data::ResponseFlags {
        failed_local_healthcheck: has(F::FailedLocalHealthCheck),
        no_healthy_upstream: has(F::NoHealthyUpstream),
        upstream_request_timeout: has(F::UpstreamRequestTimeout),
        local_reset: has(F::LocalReset),
        upstream_remote_reset: has(F::UpstreamRemoteReset),
        upstream_connection_failure: has(F::UpstreamConnectionFailure),
        upstream_connection_termination: has(F::UpstreamConnectionTermination),
        upstream_overflow: has(F::UpstreamOverflow),
        no_route_found: has(F::NoRouteFound),
        delay_injected: has(F::DelayInjected),
        fault_injected: has(F::FaultInjected),
        rate_limited: has(F::RateLimited),
        unauthorized_details: unauthorized,
        rate_limit_service_error: has(F::RateLimitServiceError),
        downstream_connection_termination: has(F::DownstreamConnectionTermination),
        upstream_retry_limit_exceeded: has(F::UpstreamRetryLimitExceeded),
        stream_idle_timeout: has(F::StreamIdleTimeout),
        invalid_envoy_request_headers: has(F::InvalidEnvoyRequestHeaders),
        downstream_protocol_error: has(F::DownstreamProtocolError),
        upstream_max_stream_duration_reached: has(F::UpstreamMaxStreamDurationReached),
        response_from_cache_filter: false,
        no_filter_config_found: has(F::NoFilterConfigFound),
        duration_timeout: has(F::DurationTimeout),
        upstream_protocol_error: has(F::UpstreamProtocolError),
        no_cluster_found: has(F::NoClusterFound),
        overload_manager: has(F::OverloadManager),
        dns_resolution_failure: has(F::DnsResolutionFailed),
        downstream_remote_reset: has(F::DownstreamRemoteReset),
    })
}
