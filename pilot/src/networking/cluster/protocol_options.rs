//! Which HTTP version a cluster speaks, and what holds for all of them.

use std::collections::BTreeMap;

use prost_types::Any;
use proto::envoy::config::common::matcher::v3::{
    HttpHeadersMatch, MatchPredicate,
    match_predicate::{MatchSet, Rule},
};
use proto::envoy::config::core::v3::{self as core, Http1ProtocolOptions, Http2ProtocolOptions};
use proto::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, OutlierDetection, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};

use crate::networking::wire::{any, exact};

/// Key of the options in a cluster.
const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub(super) type Options = BTreeMap<String, Any>;

/// What holds whichever version is spoken.
#[derive(Clone, Debug, Default)]
pub(super) struct Common {
    /// Limits and timeouts, if there are any.
    pub(super) http: Option<core::HttpProtocolOptions>,
    /// The answers that count as failures; none: those that are in Envoy's eyes.
    pub(super) error_codes: Vec<u32>,
    /// What TLS has to do with the hosts that requests are for.
    pub(super) server_names: ServerNames,
}

/// What TLS has to do with the hosts that requests are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ServerNames {
    /// Nothing.
    #[default]
    Fixed,
    /// A request's host is the server name that is asked for.
    Asked,
    /// And the server's certificate must have it.
    Checked,
}

impl Common {
    fn outlier_detection(&self) -> Option<OutlierDetection> {
        let status = |code: &u32| MatchPredicate {
            rule: Some(Rule::HttpResponseHeadersMatch(HttpHeadersMatch {
                headers: vec![HeaderMatcher {
                    name: ":status".to_owned(),
                    header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(
                        &code.to_string(),
                    ))),
                    ..HeaderMatcher::default()
                }],
            })),
        };
        let mut rules: Vec<MatchPredicate> = self.error_codes.iter().map(status).collect();
        // Envoy takes no set of one.
        let error_matcher = match rules.len() {
            0 | 1 => rules.pop()?,
            _ => MatchPredicate {
                rule: Some(Rule::OrMatch(MatchSet { rules })),
            },
        };
        Some(OutlierDetection {
            error_matcher: Some(error_matcher),
        })
    }
}

/// HTTP/2, whatever the client speaks.
pub(super) fn http2(common: &Common, http2: Http2ProtocolOptions) -> Options {
    explicit(common, ProtocolConfig::Http2ProtocolOptions(http2))
}

/// HTTP/1.1, whatever the client speaks; left out when that says nothing beyond Envoy's default.
pub(super) fn http1(common: &Common) -> Options {
    let has_names = common.server_names != ServerNames::Fixed;
    if common.http.is_none() && common.error_codes.is_empty() && !has_names {
        return Options::new();
    }
    explicit(
        common,
        ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()),
    )
}

/// What the client speaks.
pub(super) fn downstream(common: &Common, http2: Http2ProtocolOptions) -> Options {
    let options = UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(http2),
        http3_protocol_options: None,
    });
    pack(common, options)
}

fn explicit(common: &Common, config: ProtocolConfig) -> Options {
    let config = ExplicitHttpConfig {
        protocol_config: Some(config),
    };
    pack(common, UpstreamProtocolOptions::ExplicitHttpConfig(config))
}

fn pack(common: &Common, upstream: UpstreamProtocolOptions) -> Options {
    let options = HttpProtocolOptions {
        common_http_protocol_options: common.http,
        upstream_http_protocol_options: (common.server_names != ServerNames::Fixed).then(|| {
            core::UpstreamHttpProtocolOptions {
                auto_sni: true,
                auto_san_validation: common.server_names == ServerNames::Checked,
                ..core::UpstreamHttpProtocolOptions::default()
            }
        }),
        upstream_protocol_options: Some(upstream),
        outlier_detection: common.outlier_detection(),
        ..HttpProtocolOptions::default()
    };
    Options::from([(KEY.to_owned(), any(&options))])
}
