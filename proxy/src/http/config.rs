//! The connection manager's configuration, checked: everything that does not change from request to request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::filters::network::http_connection_manager::v3 as wire;
use proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use wire::http_connection_manager as hcm;

use crate::access_log::AccessLogs;
use crate::config::RouteSlot;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::Cidr;
use crate::network::FactoryContext;
use crate::router::RouteTable;
use crate::router::timeout::{duration, non_zero};
use crate::stats::Scope;
use crate::tracing::TracingConfig;

use super::filter::FilterChain;
use super::local_reply::LocalReplyConfig;
use super::stats::{HttpStats, StatusCounts};

mod log_moments;
pub(crate) mod ranges;
mod refused;

use log_moments::LogMoments;

/// Headers beyond this many kilobytes are refused, unless configured.
const MAX_HEADERS_KB: u32 = 60;
/// More headers than this are refused, unless configured.
const MAX_HEADERS_COUNT: u32 = 100;

/// A checked connection manager.
pub(crate) struct ConnectionManager {
    /// Which codec serves a connection.
    pub(crate) codec: hcm::CodecType,
    /// Where routes come from.
    pub(crate) routes: Routes,
    /// The filters and the router.
    pub(crate) filters: FilterChain,
    /// Upgrades that may be asked for.
    pub(crate) upgrades: Vec<(Box<str>, bool)>,
    /// `server`
    pub(crate) server_name: HeaderValue,
    /// What happens to an upstream's `server`.
    pub(crate) server_header: hcm::ServerHeaderTransformation,
    /// `via`, appended to requests and responses.
    pub(crate) via: Option<HeaderValue>,
    /// Time limits.
    pub(crate) timeouts: ConnectionTimeouts,
    /// Size limits.
    pub(crate) limits: Limits,
    /// How the client's address is found.
    pub(crate) client: ClientDetection,
    /// How paths and hosts are cleaned.
    pub(crate) paths: PathRules,
    /// `x-request-id`
    pub(crate) request_id: RequestIdRules,
    /// `x-forwarded-client-cert`
    pub(crate) client_cert: ClientCertRules,
    /// What to do with header names that have an underscore.
    pub(crate) underscores: core::http_protocol_options::HeadersWithUnderscoresAction,
    /// `:scheme` is always this.
    pub(crate) scheme_override: Option<super::headers::Scheme>,
    /// Which requests are traced, and how.
    pub(crate) tracing: Option<TracingConfig>,
    /// Sends `x-envoy-downstream-service-cluster` with the proxy's own name.
    pub(crate) user_agent: Option<HeaderValue>,
    /// `100 Continue` comes from the upstream instead of from here.
    pub(crate) proxies_continue: bool,
    /// HTTP/1.0 requests are accepted.
    pub(crate) accepts_http_10: bool,
    /// Host of HTTP/1.0 requests without one.
    pub(crate) default_host: Option<HeaderValue>,
    /// HTTP/1 header names are written in proper case.
    pub(crate) has_proper_case: bool,
    /// HTTP/1 settings.
    pub(crate) http1: core::Http1ProtocolOptions,
    /// HTTP/2 settings.
    pub(crate) http2: core::Http2ProtocolOptions,
    /// Access logs.
    pub(crate) access_logs: AccessLogs,
    /// When they are written besides the end.
    pub(crate) log_moments: LogMoments,
    /// Changes to local replies.
    pub(crate) local_reply: LocalReplyConfig,
    /// Counters.
    pub(crate) stats: Arc<HttpStats>,
    /// Its own count of responses, and the listener's.
    statuses: [Arc<StatusCounts>; 2],
}

/// Where routes come from.
pub(crate) enum Routes {
    /// In the configuration.
    Inline(Arc<RouteTable>),
    /// By RDS.
    Slot(Arc<RouteSlot>),
}

/// Time limits; `None` is no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionTimeouts {
    /// A stream without a byte.
    pub(crate) stream_idle: Option<Duration>,
    /// For the rest of a response whose end has come.
    pub(crate) stream_flush: Option<Duration>,
    /// From the request's first byte to its last.
    pub(crate) request: Option<Duration>,
    /// From the request's first byte to the end of its headers.
    pub(crate) request_headers: Option<Duration>,
    /// The whole stream.
    pub(crate) max_stream: Option<Duration>,
    /// A connection without streams.
    pub(crate) idle: Option<Duration>,
    /// The whole connection.
    pub(crate) max_connection: Option<Duration>,
    /// Between telling a client to go and closing.
    pub(crate) drain: Duration,
    /// Between the last response and closing, for a client that has not finished.
    pub(crate) delayed_close: Option<Duration>,
}

/// Size limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// All request headers, in bytes.
    pub(crate) headers_bytes: usize,
    /// Number of request headers.
    pub(crate) headers_count: usize,
    /// Requests on one connection; `None` for no limit.
    pub(crate) requests: Option<u32>,
}

/// How the client's address is found.
#[derive(Debug)]
pub(crate) struct ClientDetection {
    /// The socket's peer is the client; `x-forwarded-for` is appended.
    pub(crate) uses_remote_address: bool,
    /// Proxies in front whose `x-forwarded-for` entries are believed.
    pub(crate) trusted_hops: usize,
    /// Do not append.
    pub(crate) skips_append: bool,
    /// Addresses that count as inside.
    pub(crate) internal: Vec<Cidr>,
    /// Send `x-forwarded-port`.
    pub(crate) appends_port: bool,
    /// This machine's own address.
    pub(crate) local_address: Option<IpAddr>,
}

/// How paths and hosts are cleaned.
#[derive(Debug)]
pub(crate) struct PathRules {
    /// RFC 3986 normalisation.
    pub(crate) normalizes: bool,
    /// `//` becomes `/`.
    pub(crate) merges_slashes: bool,
    /// What to do about `%2F` and `%5C`.
    pub(crate) escaped_slashes: hcm::PathWithEscapedSlashesAction,
    /// Take the port off `:authority` when it is the listener's.
    pub(crate) strips_matching_port: bool,
    /// Take any port off.
    pub(crate) strips_any_port: bool,
    /// Take a trailing dot off the host.
    pub(crate) strips_trailing_dot: bool,
}

/// `x-request-id`.
#[derive(Debug)]
pub(crate) struct RequestIdRules {
    /// Make one when there is none.
    pub(crate) generates: bool,
    /// Keep one that comes from outside.
    pub(crate) preserves_external: bool,
    /// Put it into responses.
    pub(crate) in_response: bool,
    /// It says why the request is traced.
    pub(crate) packs_reason: bool,
    /// It decides whether the request is traced.
    pub(crate) draws_by_id: bool,
}

/// `x-forwarded-client-cert`.
#[derive(Debug)]
pub(crate) struct ClientCertRules {
    /// What happens to the header.
    pub(crate) mode: hcm::ForwardClientCertDetails,
    /// What is said about the client's certificate.
    pub(crate) details: hcm::SetCurrentClientCertDetails,
}

impl ConnectionManager {
    /// Checks a connection manager's configuration.
    pub(crate) fn try_new(
        config: &wire::HttpConnectionManager,
        context: &FactoryContext<'_>,
    ) -> Result<Self, Invalid> {
        refused::check(config)?;
        ranges::check(config)?;
        let tag = "envoy.http_conn_manager_prefix";
        let scopes = [context.stats, context.listener]
            .map(|parent| parent.tagged("http", tag, &config.stat_prefix));
        let statuses = scopes.each_ref().map(Scope::group);
        let [scope, _] = scopes;
        let common = config.common_http_protocol_options.unwrap_or_default();
        let http1 = config.http_protocol_options.clone().unwrap_or_default();
        let filters = FilterChain::try_new(&config.http_filters, &scope, context)?;
        let spawns = filters.router.starts_child_spans;
        let access_logs = AccessLogs::try_new(&config.access_log, context.server)?;
        Ok(ConnectionManager {
            codec: config.codec_type(),
            routes: Routes::try_new(config, context)?,
            filters,
            upgrades: config
                .upgrade_configs
                .iter()
                .map(|upgrade| {
                    (
                        upgrade.upgrade_type.as_str().into(),
                        upgrade.enabled.unwrap_or(true),
                    )
                })
                .collect(),
            server_name: header_value("server_name", or(&config.server_name, "envoy"))?,
            server_header: config.server_header_transformation(),
            via: optional_value("via", &config.via)?,
            timeouts: ConnectionTimeouts::try_new(config, &common)?,
            limits: Limits::new(config, &common),
            client: ClientDetection::try_new(config)?,
            paths: PathRules::from(config),
            request_id: RequestIdRules::try_new(config).at("request_id_extension")?,
            client_cert: ClientCertRules {
                mode: config.forward_client_cert_details(),
                details: config.set_current_client_cert_details.unwrap_or_default(),
            },
            underscores: common.headers_with_underscores_action(),
            scheme_override: scheme_override(config)?,
            tracing: config
                .tracing
                .as_ref()
                .map(|tracing| {
                    TracingConfig::try_new(
                        tracing,
                        &scope,
                        context.server,
                        context.direction,
                        spawns,
                    )
                })
                .transpose()
                .at("tracing")?,
            user_agent: match config.add_user_agent {
                Some(true) => optional_value("node.cluster", &context.server.node.cluster)?,
                _ => None,
            },
            proxies_continue: config.proxy_100_continue,
            accepts_http_10: http1.accept_http_10,
            default_host: optional_value(
                "default_host_for_http_10",
                &http1.default_host_for_http_10,
            )?,
            has_proper_case: ranges::has_proper_case(&http1),
            http1,
            http2: config.http2_protocol_options.clone().unwrap_or_default(),
            access_logs,
            log_moments: LogMoments::try_from(config)?,
            local_reply: config
                .local_reply_config
                .as_ref()
                .map(LocalReplyConfig::try_new)
                .transpose()
                .at("local_reply_config")?
                .unwrap_or_default(),
            stats: scope.group(),
            statuses,
        })
    }

    /// Counts a finished response by its class.
    pub(crate) fn count_status(&self, status: u16) {
        self.statuses.iter().for_each(|one| one.record(status));
    }

    /// The route table of now; none before RDS has brought one.
    pub(crate) fn route_table(&self) -> Option<Arc<RouteTable>> {
        match &self.routes {
            Routes::Inline(table) => Some(table.clone()),
            Routes::Slot(slot) => slot.load(),
        }
    }
}

impl RequestIdRules {
    fn try_new(config: &wire::HttpConnectionManager) -> Result<Self, Invalid> {
        let uuid: UuidRequestIdConfig = match &config.request_id_extension {
            None => UuidRequestIdConfig::default(),
            Some(extension) => {
                let any = extension.typed_config.clone().unwrap_or_default();
                proto::any::unpack(&any)?
            }
        };
        Ok(RequestIdRules {
            generates: config.generate_request_id.unwrap_or(true),
            preserves_external: config.preserve_external_request_id,
            in_response: config.always_set_request_id_in_response,
            packs_reason: uuid.pack_trace_reason.unwrap_or(true),
            draws_by_id: uuid.use_request_id_for_trace_sampling.unwrap_or(true),
        })
    }
}

impl From<&wire::HttpConnectionManager> for PathRules {
    fn from(config: &wire::HttpConnectionManager) -> Self {
        PathRules {
            normalizes: config.normalize_path.unwrap_or(false),
            merges_slashes: config.merge_slashes,
            escaped_slashes: config.path_with_escaped_slashes_action(),
            strips_matching_port: config.strip_matching_host_port,
            strips_any_port: matches!(
                config.strip_port_mode,
                Some(hcm::StripPortMode::StripAnyHostPort(true))
            ),
            strips_trailing_dot: config.strip_trailing_host_dot,
        }
    }
}

impl Limits {
    fn new(config: &wire::HttpConnectionManager, common: &core::HttpProtocolOptions) -> Self {
        Limits {
            headers_bytes: config.max_request_headers_kb.unwrap_or(MAX_HEADERS_KB) as usize * 1024,
            headers_count: common.max_headers_count.unwrap_or(MAX_HEADERS_COUNT) as usize,
            requests: common
                .max_requests_per_connection
                .filter(|requests| *requests > 0),
        }
    }
}

impl Routes {
    fn try_new(
        config: &wire::HttpConnectionManager,
        context: &FactoryContext<'_>,
    ) -> Result<Self, Invalid> {
        match &config.route_specifier {
            Some(hcm::RouteSpecifier::Rds(rds)) => Ok(Routes::Slot(context.rds(rds).at("rds")?)),
            Some(hcm::RouteSpecifier::RouteConfig(routes)) if routes.vhds.is_some() => {
                let slot = context.discovering(routes).at("route_config")?;
                Ok(Routes::Slot(slot))
            }
            Some(hcm::RouteSpecifier::RouteConfig(routes)) => Ok(Routes::Inline(Arc::new(
                RouteTable::try_from(routes.clone()).at("route_config")?,
            ))),
            Some(hcm::RouteSpecifier::ScopedRoutes(_)) => {
                Err(Invalid::unsupported("scoped_routes"))
            }
            None => Err(Invalid::new("a route specifier is needed")),
        }
    }
}

impl ConnectionTimeouts {
    fn try_new(
        config: &wire::HttpConnectionManager,
        common: &core::HttpProtocolOptions,
    ) -> Result<Self, Invalid> {
        let limit = |value: Option<&prost_types::Duration>, name: &str| duration(value).at(name);
        let stream_idle = limit(config.stream_idle_timeout.as_ref(), "stream_idle_timeout")?
            .unwrap_or(Duration::from_secs(300));
        let stream_flush = limit(config.stream_flush_timeout.as_ref(), "stream_flush_timeout")?;
        Ok(ConnectionTimeouts {
            stream_idle: non_zero(stream_idle),
            stream_flush: non_zero(stream_flush.unwrap_or(stream_idle)),
            request: limit(config.request_timeout.as_ref(), "request_timeout")?.and_then(non_zero),
            request_headers: limit(
                config.request_headers_timeout.as_ref(),
                "request_headers_timeout",
            )?
            .and_then(non_zero),
            max_stream: limit(common.max_stream_duration.as_ref(), "max_stream_duration")?
                .and_then(non_zero),
            idle: non_zero(
                limit(common.idle_timeout.as_ref(), "idle_timeout")?
                    .unwrap_or(Duration::from_secs(3600)),
            ),
            max_connection: limit(
                common.max_connection_duration.as_ref(),
                "max_connection_duration",
            )?
            .and_then(non_zero),
            drain: limit(config.drain_timeout.as_ref(), "drain_timeout")?
                .unwrap_or(Duration::from_secs(5)),
            delayed_close: non_zero(
                limit(
                    config.delayed_close_timeout.as_ref(),
                    "delayed_close_timeout",
                )?
                .unwrap_or(Duration::from_secs(1)),
            ),
        })
    }
}

impl ClientDetection {
    fn try_new(config: &wire::HttpConnectionManager) -> Result<Self, Invalid> {
        let internal = config
            .internal_address_config
            .as_ref()
            .map(|internal| {
                try_all(
                    "internal_address_config.cidr_ranges",
                    &internal.cidr_ranges,
                    Cidr::try_from,
                )
            })
            .transpose()?;
        Ok(ClientDetection {
            uses_remote_address: config.use_remote_address.unwrap_or(false),
            trusted_hops: config.xff_num_trusted_hops as usize,
            skips_append: config.skip_xff_append,
            internal: internal.unwrap_or_default(),
            appends_port: config.append_x_forwarded_port,
            local_address: local_address(),
        })
    }
}

/// The first IPv4 address of this machine that is not the loopback.
pub(crate) fn local_address() -> Option<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    interfaces
        .filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip())))
        .find(|address| !address.is_loopback())
}

fn scheme_override(
    config: &wire::HttpConnectionManager,
) -> Result<Option<super::headers::Scheme>, Invalid> {
    use core::scheme_header_transformation::Transformation;
    let transformation = config
        .scheme_header_transformation
        .as_ref()
        .and_then(|t| t.transformation.as_ref());
    match transformation {
        None => Ok(None),
        Some(Transformation::SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "http" => Ok(Some(super::headers::Scheme::Http)),
            "https" => Ok(Some(super::headers::Scheme::Https)),
            other => Err(Invalid::new(format!(
                "scheme '{other}' is neither http nor https"
            ))),
        },
    }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn header_value(field: &str, text: &str) -> Result<HeaderValue, Invalid> {
    HeaderValue::from_str(text)
        .map_err(|_| Invalid::new(format!("'{text}' is not a header value")).at(field))
}

fn optional_value(field: &str, text: &str) -> Result<Option<HeaderValue>, Invalid> {
    (!text.is_empty())
        .then(|| header_value(field, text))
        .transpose()
}

/// The headers that only internal requests may carry, by the table of now.
pub(crate) fn internal_only(table: Option<&Arc<RouteTable>>) -> &[HeaderName] {
    table
        .map(|table| table.internal_only_headers.as_slice())
        .unwrap_or_default()
}
