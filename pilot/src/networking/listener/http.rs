//! The HTTP connection manager, as each kind of listener wants it.

use proto::envoy::config::core::v3::Http1ProtocolOptions;
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::route::v3::RouteConfiguration;
use proto::envoy::extensions::filters::http::{
    cors::v3::Cors,
    dynamic_forward_proxy::v3::{FilterConfig, filter_config::ImplementationSpecifier},
    fault::v3::HttpFault,
    grpc_web::v3::GrpcWeb,
    router::v3::Router,
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{
        ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
        ServerHeaderTransformation, SetCurrentClientCertDetails, UpgradeConfig,
    },
};
use proto::istio::mesh::v1alpha1::ForwardClientCertDetails as WireDetails;
use proto::istio::mesh::v1alpha1::mesh_config::proxy_path_normalization::NormalizationType;
use proto::istio::mesh::v1alpha1::proxy_config::ProxyHeaders;

use super::inbound::Target;
use crate::model::Resolution;
use crate::networking::access_log::{self, Layer};
use crate::networking::cluster::outbound::dns_cache;
use crate::networking::wire::{ads, http_filter, network_filter, seconds};
use crate::networking::{View, extension, plugin, tracing};
use crate::push_context::telemetry::Side;
use proto::istio::extensions::v1alpha1::PluginPhase;

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
    let side = match place {
        Place::Inbound(..) => Side::Server,
        Place::Outbound(_) | Place::HttpProxy(_) | Place::Gateway(_) => Side::Client,
    };
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
        access_log: access_log::build(view, side, Layer::Http),
        use_remote_address: Some(matches!(place, Place::Gateway(_))),
        generate_request_id: Some(true),
        stream_idle_timeout: Some(seconds(0)),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        normalize_path: Some(mesh.path_normalization != NormalizationType::None),
        tracing: tracing::build(view, side),
        request_id_extension: tracing::request_id(view, side),
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
    if matches!(place, Place::Inbound(..) | Place::Gateway(_)) {
        apply_headers(&mesh.headers, &mut manager);
    }
    match place {
        Place::Inbound(..) => apply_client_certificate(&mesh.headers, &mut manager),
        Place::Gateway(_) => {
            manager.forward_client_cert_details = forwarding(mesh.gateway_client_cert)
                .unwrap_or(ForwardClientCertDetails::SanitizeSet)
                as i32;
            manager.xff_num_trusted_hops = mesh.trusted_proxies;
            manager.set_current_client_cert_details = Some(client_certificate(true));
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

/// Headers of what comes to workloads and gateways, as the mesh wants them.
fn apply_headers(headers: &ProxyHeaders, manager: &mut HttpConnectionManager) {
    let server = headers.server.clone().unwrap_or_default();
    if server.disabled.unwrap_or_default() {
        manager.server_header_transformation = ServerHeaderTransformation::PassThrough as i32;
    } else if server.value.is_empty() {
        "istio-envoy".clone_into(&mut manager.server_name);
    } else {
        manager.server_name = server.value;
    }
    let id = headers.request_id.as_ref();
    manager.generate_request_id = Some(!id.is_some_and(|id| id.disabled.unwrap_or_default()));
    let port = headers.x_forwarded_port.as_ref();
    manager.append_x_forwarded_port = port.is_some_and(|port| port.enabled.unwrap_or_default());
}

fn client_certificate(cert: bool) -> SetCurrentClientCertDetails {
    SetCurrentClientCertDetails {
        subject: Some(true),
        cert,
        dns: true,
        uri: true,
        ..SetCurrentClientCertDetails::default()
    }
}

/// What the workload hears of its client's certificate.
fn apply_client_certificate(headers: &ProxyHeaders, manager: &mut HttpConnectionManager) {
    manager.forward_client_cert_details = forwarding(headers.forwarded_client_cert())
        .unwrap_or(ForwardClientCertDetails::AppendForward)
        as i32;
    let wanted = headers.set_current_client_cert_details.as_ref();
    let details = wanted.map_or_else(
        || client_certificate(false),
        |wanted| SetCurrentClientCertDetails {
            subject: wanted.subject,
            cert: wanted.cert.unwrap_or_default(),
            chain: wanted.chain.unwrap_or_default(),
            dns: wanted.dns.unwrap_or_default(),
            uri: wanted.uri.unwrap_or_default(),
            ..SetCurrentClientCertDetails::default()
        },
    );
    manager.set_current_client_cert_details = Some(details);
}

/// None if nothing is said.
fn forwarding(wanted: WireDetails) -> Option<ForwardClientCertDetails> {
    Some(match wanted {
        WireDetails::Undefined => return None,
        WireDetails::Sanitize => ForwardClientCertDetails::Sanitize,
        WireDetails::ForwardOnly => ForwardClientCertDetails::ForwardOnly,
        WireDetails::AppendForward => ForwardClientCertDetails::AppendForward,
        WireDetails::SanitizeSet => ForwardClientCertDetails::SanitizeSet,
        WireDetails::AlwaysForwardOnly => ForwardClientCertDetails::AlwaysForwardOnly,
    })
}

fn filters(view: &View<'_>, place: Place<'_>) -> Vec<HttpFilter> {
    let (side, port) = match place {
        Place::Inbound(target, _) => (Side::Server, Some(target.port)),
        Place::Outbound(_) | Place::HttpProxy(_) | Place::Gateway(_) => (Side::Client, None),
    };
    let wasm = |phase| extension::http_filters(view, side, port, phase);
    let mut filters = Vec::new();
    // Policies are for what comes to the workload, and for gateways; a sidecar's clients are trusted by it.
    let is_guarded = !matches!(place, Place::Outbound(_) | Place::HttpProxy(_));
    if is_guarded {
        filters.extend(plugin::authz::custom_http_filters(view));
    }
    filters.extend(wasm(PluginPhase::Authn));
    if is_guarded {
        let instance = match place {
            Place::Inbound(target, _) => target.instance.as_ref(),
            Place::Outbound(_) | Place::HttpProxy(_) | Place::Gateway(_) => None,
        };
        filters.extend(plugin::authn::filter(view, instance));
    }
    filters.extend(wasm(PluginPhase::Authz));
    if is_guarded {
        filters.extend(plugin::authz::http_filters(view));
        if let Place::Inbound(target, _) = place {
            filters.extend(plugin::authz::legacy_http_filter(
                view,
                target.instance.as_ref(),
            ));
        }
    }
    match place {
        Place::Inbound(target, _) => {
            filters.extend(plugin::mixer::http_inbound(view, target.port));
            if target.protocol == crate::model::Protocol::GrpcWeb {
                filters.push(http_filter("envoy.filters.http.grpc_web", &GrpcWeb {}));
            }
        }
        Place::Outbound(_) | Place::HttpProxy(_) | Place::Gateway(_) => {
            filters.extend(plugin::mixer::http_outbound(view));
        }
    }
    filters.extend(wasm(PluginPhase::Stats));
    filters.extend(wasm(PluginPhase::UnspecifiedPhase));
    filters.push(http_filter("envoy.filters.http.cors", &Cors {}));
    filters.push(http_filter(
        "envoy.filters.http.fault",
        &HttpFault::default(),
    ));
    filters.extend(plugin::stats::http_filter_of(view, side));
    if side == Side::Client {
        filters.extend(name_resolution(view));
    }
    let debug = view.push.mesh.headers.envoy_debug_headers.as_ref();
    let router = Router {
        suppress_envoy_headers: debug.is_some_and(|debug| debug.disabled.unwrap_or_default()),
        ..Router::default()
    };
    filters.push(http_filter("envoy.filters.http.router", &router));
    filters
}

/// Resolves the names of requests to services whose addresses nobody knows beforehand.
fn name_resolution(view: &View<'_>) -> Option<HttpFilter> {
    let mut services = view.scope.services.iter();
    let is_needed = services.any(|service| service.resolution == Resolution::DynamicDns);
    is_needed.then(|| {
        let cache = ImplementationSpecifier::DnsCacheConfig(dns_cache(view));
        let config = FilterConfig {
            implementation_specifier: Some(cache),
            ..FilterConfig::default()
        };
        http_filter("envoy.filters.http.dynamic_forward_proxy", &config)
    })
}
