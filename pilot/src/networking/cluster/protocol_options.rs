//! Which HTTP version a cluster speaks.

use std::collections::BTreeMap;

use prost_types::Any;
use proto::envoy::config::core::v3::{self as core, Http1ProtocolOptions, Http2ProtocolOptions};
use proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};

use crate::networking::wire::any;

/// Key of the options in a cluster.
const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub(super) type Options = BTreeMap<String, Any>;

/// HTTP/2, whatever the client speaks.
pub(super) fn http2(
    common: Option<core::HttpProtocolOptions>,
    http2: Http2ProtocolOptions,
) -> Options {
    explicit(common, ProtocolConfig::Http2ProtocolOptions(http2))
}

/// HTTP/1.1, whatever the client speaks; left out when that says nothing beyond Envoy's default.
pub(super) fn http1(common: Option<core::HttpProtocolOptions>) -> Options {
    if common.is_none() {
        return Options::new();
    }
    explicit(
        common,
        ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()),
    )
}

/// What the client speaks.
pub(super) fn downstream(common: Option<core::HttpProtocolOptions>) -> Options {
    let options = UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(super::http2()),
        http3_protocol_options: None,
    });
    pack(common, options)
}

fn explicit(common: Option<core::HttpProtocolOptions>, config: ProtocolConfig) -> Options {
    let config = ExplicitHttpConfig {
        protocol_config: Some(config),
    };
    pack(common, UpstreamProtocolOptions::ExplicitHttpConfig(config))
}

fn pack(common: Option<core::HttpProtocolOptions>, upstream: UpstreamProtocolOptions) -> Options {
    let options = HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(upstream),
        ..HttpProtocolOptions::default()
    };
    Options::from([(KEY.to_owned(), any(&options))])
}
