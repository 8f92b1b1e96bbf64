//! `HttpProtocolOptions` of a cluster: which HTTP is spoken upstream, and its limits.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use crate::{
    invalid::{At as _, Invalid},
    wire::duration_or,
};
use proto::envoy::config::{
    cluster::v3::Cluster as WireCluster,
    common::matcher::v3::{MatchPredicate, match_predicate::Rule},
    core::v3::{Http1ProtocolOptions, Http2ProtocolOptions},
    route::v3::header_matcher::HeaderMatchSpecifier,
};
use proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions as Wire,
    http_protocol_options::{
        OutlierDetection, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    },
};
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use std::time::Duration;

const TYPED_KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Which HTTP goes to the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge on plain connections.
    Http2,
    /// What the downstream speaks.
    UseDownstream,
    /// What ALPN says.
    Auto,
}

/// A cluster's HTTP options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpProtocolOptions {
    /// Which HTTP.
    pub(crate) protocol: UpstreamProtocol,
    /// Idle connections are closed after this; zero for never.
    pub(crate) idle_timeout: Duration,
    /// A connection is not reused after this age.
    pub(crate) max_connection_duration: Option<Duration>,
    /// Requests on one connection; 0 for no limit.
    pub(crate) max_requests_per_connection: u32,
    /// The longest a stream may take.
    pub(crate) max_stream_duration: Option<Duration>,
    /// Number of response headers at most.
    pub(crate) max_headers_count: u32,
    /// HTTP/1: how messages are written and read.
    pub(crate) http1: Http1Options,
    /// HTTP/1: a response may have a length beside its chunks, which then goes.
    pub(crate) allows_chunked_length: bool,
    /// HTTP/2: streams at once on a connection.
    pub(crate) max_concurrent_streams: u32,
    /// HTTP/2: window of a stream.
    pub(crate) initial_stream_window: u32,
    /// HTTP/2: window of a connection.
    pub(crate) initial_connection_window: u32,
    /// The answers that outlier detection takes for failures, instead of those from 500 on.
    pub(crate) error_statuses: Option<Vec<u16>>,
    /// HTTP/2: ping interval and patience.
    pub(crate) keepalive: Option<(Duration, Duration)>,
    /// SNI is the request's host.
    pub(crate) auto_sni: bool,
    /// The certificate must be for the request's host.
    pub(crate) auto_san_validation: bool,
}

/// How HTTP/1 messages are written and read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Http1Options {
    /// Trailers are passed on, both ways.
    pub(crate) has_trailers: bool,
    /// Header names are written in proper case.
    pub(crate) has_proper_case: bool,
}

impl Default for HttpProtocolOptions {
    fn default() -> Self {
        Self {
            protocol: UpstreamProtocol::Http1,
            idle_timeout: Duration::from_secs(3600),
            max_connection_duration: None,
            max_requests_per_connection: 0,
            max_stream_duration: None,
            max_headers_count: 100,
            http1: Http1Options::default(),
            allows_chunked_length: false,
            max_concurrent_streams: 1024,
            initial_stream_window: 16 << 20,
            initial_connection_window: 24 << 20,
            error_statuses: None,
            keepalive: None,
            auto_sni: false,
            auto_san_validation: false,
        }
    }
}

impl HttpProtocolOptions {
    /// The options of a cluster: the typed ones, or the deprecated fields.
    pub(crate) fn of(cluster: &WireCluster) -> Result<Self, Invalid> {
        let mut options = Self {
            max_requests_per_connection: cluster.max_requests_per_connection.unwrap_or(0),
            ..Self::default()
        };
        if let Some(any) = cluster.typed_extension_protocol_options.get(TYPED_KEY) {
            let wire: Wire = proto::any::unpack(any).at(format_args!(
                "typed_extension_protocol_options[{TYPED_KEY}]"
            ))?;
            return options.with(&wire).at(format_args!(
                "typed_extension_protocol_options[{TYPED_KEY}]"
            ));
        }
        if let Some(http1) = &cluster.http_protocol_options {
            options.http1(http1).at("http_protocol_options")?;
        }
        let wire = Wire {
            common_http_protocol_options: cluster.common_http_protocol_options,
            upstream_http_protocol_options: cluster.upstream_http_protocol_options.clone(),
            ..Wire::default()
        };
        options = options.with(&wire)?;
        if let Some(http2) = &cluster.http2_protocol_options {
            options.protocol = if cluster.protocol_selection == 1 {
                UpstreamProtocol::UseDownstream
            } else {
                UpstreamProtocol::Http2
            };
            options.http2(http2).at("http2_protocol_options")?;
        } else if cluster.protocol_selection == 1 {
            options.protocol = UpstreamProtocol::UseDownstream;
        }
        Ok(options)
    }

    fn with(mut self, wire: &Wire) -> Result<Self, Invalid> {
        if let Some(common) = &wire.common_http_protocol_options {
            self.idle_timeout = duration_or(
                common.idle_timeout.as_ref(),
                self.idle_timeout,
                "idle_timeout",
            )?;
            self.max_connection_duration = common
                .max_connection_duration
                .as_ref()
                .map(crate::wire::duration)
                .transpose()?;
            self.max_stream_duration = common
                .max_stream_duration
                .as_ref()
                .map(crate::wire::duration)
                .transpose()?;
            self.max_requests_per_connection = common
                .max_requests_per_connection
                .unwrap_or(self.max_requests_per_connection);
            self.max_headers_count = common.max_headers_count.unwrap_or(self.max_headers_count);
        }
        if let Some(upstream) = &wire.upstream_http_protocol_options {
            self.auto_sni = upstream.auto_sni;
            self.auto_san_validation = upstream.auto_san_validation;
            if upstream.auto_san_validation && !upstream.auto_sni {
                return Err(Invalid::unsupported("auto_san_validation without auto_sni"));
            }
        }
        self.error_statuses = wire
            .outlier_detection
            .as_ref()
            .map(error_statuses)
            .transpose()
            .at("outlier_detection.error_matcher")?;
        refuse_filters(wire)?;
        match &wire.upstream_protocol_options {
            None => {}
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
                match &explicit.protocol_config {
                    None => {}
                    Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                        self.http1(http1)
                            .at("explicit_http_config.http_protocol_options")?;
                    }
                    Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                        self.protocol = UpstreamProtocol::Http2;
                        self.http2(http2)
                            .at("explicit_http_config.http2_protocol_options")?;
                    }
                    Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                        return Err(Invalid::unsupported("HTTP/3").at("explicit_http_config"));
                    }
                }
            }
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(both)) => {
                self.protocol = UpstreamProtocol::UseDownstream;
                self.both(
                    both.http_protocol_options.as_ref(),
                    both.http2_protocol_options.as_ref(),
                )?;
            }
            Some(UpstreamProtocolOptions::AutoConfig(auto)) => {
                if auto.http3_protocol_options.is_some() {
                    return Err(
                        Invalid::unsupported("HTTP/3").at("auto_config.http3_protocol_options")
                    );
                }
                self.protocol = UpstreamProtocol::Auto;
                self.both(
                    auto.http_protocol_options.as_ref(),
                    auto.http2_protocol_options.as_ref(),
                )?;
            }
        }
        Ok(self)
    }

    fn both(
        &mut self,
        http1: Option<&Http1ProtocolOptions>,
        http2: Option<&Http2ProtocolOptions>,
    ) -> Result<(), Invalid> {
        if let Some(http1) = http1 {
            self.http1(http1).at("http_protocol_options")?;
        }
        http2.map_or(Ok(()), |http2| {
            self.http2(http2).at("http2_protocol_options")
        })
    }

    fn http1(&mut self, wire: &Http1ProtocolOptions) -> Result<(), Invalid> {
        crate::http::config::ranges::http1(wire)?;
        self.http1 = Http1Options {
            has_trailers: wire.enable_trailers,
            has_proper_case: crate::http::config::ranges::has_proper_case(wire),
        };
        self.allows_chunked_length = wire.allow_chunked_length;
        Ok(())
    }

    fn http2(&mut self, wire: &Http2ProtocolOptions) -> Result<(), Invalid> {
        crate::http::config::ranges::windows(wire)?;
        self.max_concurrent_streams = wire
            .max_concurrent_streams
            .unwrap_or(self.max_concurrent_streams)
            .max(1);
        self.initial_stream_window = wire
            .initial_stream_window_size
            .unwrap_or(self.initial_stream_window);
        self.initial_connection_window = wire
            .initial_connection_window_size
            .unwrap_or(self.initial_connection_window);
        if let Some(keepalive) = &wire.connection_keepalive
            && keepalive.interval.is_some()
        {
            let interval = duration_or(
                keepalive.interval.as_ref(),
                Duration::ZERO,
                "connection_keepalive.interval",
            )?;
            let timeout = duration_or(
                keepalive.timeout.as_ref(),
                Duration::from_secs(20),
                "connection_keepalive.timeout",
            )?;
            self.keepalive = Some((interval, timeout));
        }
        Ok(())
    }
}

/// A filter chain on the upstream side may only hold the codec, which every upstream has.
fn refuse_filters(wire: &Wire) -> Result<(), Invalid> {
    let mut filters = wire.http_filters.iter();
    match filters.find(|filter| filter.name != "envoy.filters.http.upstream_codec") {
        Some(filter) => Err(Invalid::unsupported("an upstream HTTP filter")
            .at(format_args!("http_filters[{}]", filter.name))),
        None => Ok(()),
    }
}

fn error_statuses(wire: &OutlierDetection) -> Result<Vec<u16>, Invalid> {
    let matcher = wire.error_matcher.as_ref();
    let matcher = matcher.ok_or_else(|| Invalid::new("a matcher is needed"))?;
    let mut statuses = Vec::new();
    add_statuses(matcher, &mut statuses)?;
    Ok(statuses)
}

/// The statuses that `matcher` names: one, or any of several.
fn add_statuses(matcher: &MatchPredicate, statuses: &mut Vec<u16>) -> Result<(), Invalid> {
    let other = || Invalid::unsupported("a condition other than whole statuses");
    match &matcher.rule {
        Some(Rule::OrMatch(set)) => set
            .rules
            .iter()
            .try_for_each(|rule| add_statuses(rule, statuses)),
        Some(Rule::HttpResponseHeadersMatch(wanted)) => {
            let [header] = wanted.headers.as_slice() else {
                return Err(other());
            };
            let Some(HeaderMatchSpecifier::StringMatch(text)) = &header.header_match_specifier
            else {
                return Err(other());
            };
            let Some(MatchPattern::Exact(status)) = &text.match_pattern else {
                return Err(other());
            };
            if header.name != ":status" || header.invert_match {
                return Err(other());
            }
            statuses.push(status.parse().map_err(|_| other())?);
            Ok(())
        }
        _ => Err(other()),
    }
}
