//! The HTTP connection manager, as each kind of listener wants it.

use proto::envoy::config::core::v3::Http1ProtocolOptions;
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::route::v3::RouteConfiguration;
use proto::envoy::extensions::filters::http::{
    cors::v3::Cors, fault::v3::HttpFault, grpc_web::v3::GrpcWeb, router::v3::Router,
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{
        ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
        SetCurrentClientCertDetails, Tracing, UpgradeConfig,
    },
};
use proto::envoy::r#type::v3::Percent;
use proto::istio::mesh::v1alpha1::mesh_config::proxy_path_normalization::NormalizationType;

use super::inbound::Target;
use crate::networking::wire::{ads, http_filter, network_filter, seconds};
use crate::networking::{View, access_log, plugin};

/// Where a connection manager stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// Before the proxy's own workload.
    Inbound(&'a Target, RouteSource<'a>),
    /// Beside a client.
    Outbound(RouteSource<'a>),
    /// The explicit HTTP proxy.
    HttpProxy(RouteSource<'a>),
    /// At the edge.
    Gateway(RouteSource<'a>),
}

/// Where its routes come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum RouteSource<'a> {
    /// By name, over ADS.
    Rds(&'a str),
    /// Written into the listener.
    Inline(&'a RouteConfiguration),
}

/// The connection manager as a network filter.
pub(super) fn connection_manager(view: &View<'_>, place: Place<'_>, stat_prefix: &str) -> Filter {
    let mesh = &view.push.mesh;
    let (Place::Inbound(_, routes)
    | Place::Outbound(routes)
    | Place::HttpProxy(routes)
    | Place::Gateway(routes)) = place;
    let route_specifier = match routes {
        RouteSource::Rds(name) => RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: name.to_owned(),
        }),
        RouteSource::Inline(config) => RouteSpecifier::RouteConfig(config.clone()),
    };
    let mut manager = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(route_specifier),
        http_filters: filters(view, place),
        access_log: access_log::build(mesh),
        use_remote_address: Some(matches!(place, Place::Gateway(_))),
        generate_request_id: Some(true),
        stream_idle_timeout: Some(seconds(0)),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        normalize_path: Some(mesh.path_normalization != NormalizationType::None),
        tracing: mesh.is_tracing.then(|| Tracing {
            client_sampling: Some(Percent { value: 100.0 }),
            random_sampling: Some(Percent {
                value: mesh.trace_sampling,
            }),
            overall_sampling: Some(Percent { value: 100.0 }),
            ..Tracing::default()
        }),
        ..HttpConnectionManager::default()
    };
    match mesh.path_normalization {
        NormalizationType::MergeSlashes => manager.merge_slashes = true,
        NormalizationType::DecodeAndMergeSlashes => {
            manager.merge_slashes = true;
            manager.path_with_escaped_slashes_action =
                PathWithEscapedSlashesAction::UnescapeAndForward as i32;
        }
        NormalizationType::Default | NormalizationType::None | NormalizationType::Base => {}
    }
    let details = |cert| SetCurrentClientCertDetails {
        subject: Some(true),
        cert,
        dns: true,
        uri: true,
        ..SetCurrentClientCertDetails::default()
    };
    match place {
        Place::Inbound(..) => {
            "istio-envoy".clone_into(&mut manager.server_name);
            manager.forward_client_cert_details = ForwardClientCertDetails::AppendForward as i32;
            manager.set_current_client_cert_details = Some(details(false));
        }
        Place::Gateway(_) => {
            "istio-envoy".clone_into(&mut manager.server_name);
            manager.forward_client_cert_details = ForwardClientCertDetails::SanitizeSet as i32;
            manager.set_current_client_cert_details = Some(details(true));
        }
        Place::Outbound(_) | Place::HttpProxy(_) => {}
    }
    let accepts_http10 = view.proxy.metadata_text("HTTP10") == Some("1");
    if accepts_http10 || matches!(place, Place::HttpProxy(_)) {
        manager.http_protocol_options = Some(Http1ProtocolOptions {
            accept_http_10: accepts_http10,
            allow_absolute_url: Some(true),
            ..Http1ProtocolOptions::default()
        });
    }
    network_filter("envoy.filters.network.http_connection_manager", &manager)
}

fn filters(view: &View<'_>, place: Place<'_>) -> Vec<HttpFilter> {
    let mut filters = Vec::new();
    match place {
        Place::Inbound(target, _) => {
            filters.extend(plugin::authn::filter(view));
            filters.extend(plugin::authz::http_filters(view));
            filters.extend(plugin::mixer::http_inbound(view, target.port));
            if target.protocol == crate::model::Protocol::GrpcWeb {
                filters.push(http_filter("envoy.filters.http.grpc_web", &GrpcWeb {}));
            }
        }
        Place::Gateway(_) => {
            filters.extend(plugin::authn::filter(view));
            filters.extend(plugin::authz::http_filters(view));
            filters.extend(plugin::mixer::http_outbound(view));
        }
        Place::Outbound(_) | Place::HttpProxy(_) => {
            filters.extend(plugin::mixer::http_outbound(view));
        }
    }
    filters.push(http_filter("envoy.filters.http.cors", &Cors {}));
    filters.push(http_filter(
        "envoy.filters.http.fault",
        &HttpFault::default(),
    ));
    filters.push(http_filter("envoy.filters.http.router", &Router::default()));
    filters
}
