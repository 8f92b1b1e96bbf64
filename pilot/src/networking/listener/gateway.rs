//! A gateway's listeners: one for each port of the servers of all Gateway resources that select it.

use std::collections::BTreeMap;

use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use proto::envoy::extensions::filters::network::sni_cluster::v3::SniCluster;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, TlsCertificate,
    TlsParameters, common_tls_context::ValidationContextType,
    tls_parameters::TlsProtocol as WireProtocol,
};
use proto::istio::networking::v1alpha3::{
    RouteDestination, ServerTlsSettings,
    server_tls_settings::{TlSmode, TlsProtocol},
};
use proto_mesh::host;

use super::filter_chain::{chain, routed_tcp_proxy, tcp_proxy};
use super::http::{Place, RouteSource, connection_manager};
use super::tls_inspector;
use crate::model::name::BLACK_HOLE;
use crate::networking::wire::{address, network_filter, parse_cidr, seconds};
use crate::networking::{Instance, View, plugin, secret, tls};
use crate::push_context::gateways::{GatewayPort, GatewayServer};
use crate::push_context::status::Metric;
use crate::push_context::virtual_services::VirtualService;

/// All listeners of a gateway.
pub(super) fn build(view: &View<'_>) -> Vec<Listener> {
    view.gateway
        .ports
        .iter()
        .filter_map(|(number, port)| listener(view, *number, port))
        .collect()
}

fn listener(view: &View<'_>, number: u32, port: &GatewayPort) -> Option<Listener> {
    let any = view.proxy.any_address();
    let bind = if port.bind.is_empty() {
        &any
    } else {
        &port.bind
    };
    let name = format!("{bind}_{number}");
    let mut filter_chains = Vec::new();
    if !port.http.is_empty() {
        let routes = format!("http.{number}");
        let manager = connection_manager(
            view,
            Place::Gateway(RouteSource::Rds(&routes)),
            &format!("outbound_{name}"),
        );
        filter_chains.push(chain(&name, None, vec![manager]));
    }
    for server in &port.https {
        let routes = server.route_name();
        let manager = connection_manager(
            view,
            Place::Gateway(RouteSource::Rds(&routes)),
            &format!("outbound_{name}"),
        );
        filter_chains.extend(terminating_chain(
            view,
            server,
            vec![manager],
            &["h2", "http/1.1"],
        ));
    }
    for server in &port.tcp {
        filter_chains.extend(tcp_chains(view, server, number));
    }
    if filter_chains.is_empty() {
        view.record(
            Metric::InvalidListener,
            &name,
            "no server of this port can be served",
        );
        return None;
    }
    let needs_tls = filter_chains.iter().any(|chain| {
        let matching = chain.filter_chain_match.as_ref();
        matching.is_some_and(|matching| {
            !matching.server_names.is_empty() || !matching.transport_protocol.is_empty()
        })
    });
    Some(Listener {
        name,
        address: Some(address(bind, bound_port(view, number))),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains,
        listener_filters: if needs_tls {
            vec![tls_inspector()]
        } else {
            Vec::new()
        },
        listener_filters_timeout: needs_tls.then(|| seconds(15)),
        ..Listener::default()
    })
}

/// A server's port is what clients of the gateway's service use; the gateway may serve it on another one.
fn bound_port(view: &View<'_>, number: u32) -> u32 {
    view.instances
        .iter()
        .find(|instance| instance.port.number == number)
        .map_or(number, Instance::target_port)
}

fn server_names(server: &GatewayServer) -> Vec<String> {
    if server.hosts().any(|name| name == host::ANY) {
        return Vec::new();
    }
    let mut names: Vec<String> = server.hosts().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn terminating_chain(
    view: &View<'_>,
    server: &GatewayServer,
    filters: Vec<Filter>,
    alpn: &[&str],
) -> Option<FilterChain> {
    let settings = server.server.tls.as_ref()?;
    let context = match downstream(view, settings, alpn) {
        Ok(context) => context,
        Err(reason) => {
            view.record(Metric::RejectedGateway, &server.gateway, &reason);
            return None;
        }
    };
    let names = server_names(server);
    let matching = (!names.is_empty()).then(|| FilterChainMatch {
        server_names: names,
        ..FilterChainMatch::default()
    });
    let mut terminating = chain(&server.route_name(), matching, filters);
    terminating.transport_socket = Some(tls::server(&context));
    Some(terminating)
}

fn downstream(
    view: &View<'_>,
    settings: &ServerTlsSettings,
    alpn: &[&str],
) -> Result<DownstreamTlsContext, String> {
    let mut common = CommonTlsContext {
        alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
        tls_params: Some(parameters(settings)),
        ..CommonTlsContext::default()
    };
    let mode = settings.mode();
    let names = tls::san_matchers(settings.subject_alt_names.iter().map(String::as_str));
    let mut require = matches!(mode, TlSmode::Mutual | TlSmode::IstioMutual);
    if mode == TlSmode::IstioMutual {
        common.tls_certificate_sds_secret_configs = vec![tls::secret(tls::WORKLOAD_SECRET)];
        let domains = tls::trust_domain_matchers(view.push.mesh.trust_domains());
        common.validation_context_type =
            Some(tls::validation(tls::secret(tls::ROOT_SECRET), domains));
        return Ok(DownstreamTlsContext {
            common_tls_context: Some(common),
            require_client_certificate: Some(true),
            ..DownstreamTlsContext::default()
        });
    }
    let credentials: Vec<&String> = std::iter::once(&settings.credential_name)
        .chain(&settings.credential_names)
        .filter(|name| !name.is_empty())
        .collect();
    if !credentials.is_empty() {
        common.tls_certificate_sds_secret_configs = credentials
            .iter()
            .map(|name| secret::reference(view, name))
            .collect();
    } else if !settings.server_certificate.is_empty() && !settings.private_key.is_empty() {
        common.tls_certificates = vec![certificate(
            &settings.server_certificate,
            &settings.private_key,
        )];
    } else if !settings.tls_certificates.is_empty() {
        let pairs = settings.tls_certificates.iter();
        common.tls_certificates = pairs
            .map(|pair| certificate(&pair.server_certificate, &pair.private_key))
            .collect();
    } else {
        return Err(format!(
            "mode {} needs a certificate: files or credentialName",
            mode.as_str_name()
        ));
    }
    if matches!(mode, TlSmode::Mutual | TlSmode::OptionalMutual) {
        common.validation_context_type = Some(if !settings.ca_certificates.is_empty() {
            ValidationContextType::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(tls::file(&settings.ca_certificates)),
                match_typed_subject_alt_names: names,
                verify_certificate_spki: settings.verify_certificate_spki.clone(),
                verify_certificate_hash: settings.verify_certificate_hash.clone(),
                crl: (!settings.ca_crl.is_empty()).then(|| tls::file(&settings.ca_crl)),
                ..CertificateValidationContext::default()
            })
        } else if !settings.ca_cert_credential_name.is_empty() {
            let roots = secret::roots_reference(view, &settings.ca_cert_credential_name);
            tls::validation(roots, names)
        } else if let Some(name) = credentials.first() {
            tls::validation(secret::roots_reference(view, name), names)
        } else {
            return Err(format!(
                "mode {} needs caCertificates or credentialName",
                mode.as_str_name()
            ));
        });
        require = mode == TlSmode::Mutual;
    }
    Ok(DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(require),
        ..DownstreamTlsContext::default()
    })
}

fn certificate(chain: &str, key: &str) -> TlsCertificate {
    TlsCertificate {
        certificate_chain: Some(tls::file(chain)),
        private_key: Some(tls::file(key)),
        ..TlsCertificate::default()
    }
}

fn parameters(settings: &ServerTlsSettings) -> TlsParameters {
    let version = |version: TlsProtocol, default: WireProtocol| match version {
        TlsProtocol::TlsAuto => default as i32,
        TlsProtocol::Tlsv10 => WireProtocol::TlSv10 as i32,
        TlsProtocol::Tlsv11 => WireProtocol::TlSv11 as i32,
        TlsProtocol::Tlsv12 => WireProtocol::TlSv12 as i32,
        TlsProtocol::Tlsv13 => WireProtocol::TlSv13 as i32,
    };
    TlsParameters {
        tls_minimum_protocol_version: version(
            settings.min_protocol_version(),
            WireProtocol::TlSv12,
        ),
        tls_maximum_protocol_version: version(
            settings.max_protocol_version(),
            WireProtocol::TlsAuto,
        ),
        cipher_suites: settings.cipher_suites.clone(),
        ..TlsParameters::default()
    }
}

/// The chains of a server that carries something else than HTTP.
fn tcp_chains(view: &View<'_>, server: &GatewayServer, port: u32) -> Vec<FilterChain> {
    match server.tls_mode() {
        Some(TlSmode::AutoPassthrough) => {
            let filters = vec![
                network_filter("envoy.filters.network.sni_cluster", &SniCluster {}),
                tcp_proxy(view, BLACK_HOLE, BLACK_HOLE),
            ];
            let names = server_names(server);
            let matching = (!names.is_empty()).then(|| FilterChainMatch {
                server_names: names,
                ..FilterChainMatch::default()
            });
            vec![chain(&server.gateway, matching, filters)]
        }
        Some(TlSmode::Passthrough) => passthrough_chains(view, server, port),
        Some(_) => {
            let Some(routes) = tcp_routes(view, server, port)
                .into_iter()
                .next()
                .map(|(_, routes)| routes)
            else {
                return Vec::new();
            };
            let filters = tcp_filters(view, &routes, port);
            terminating_chain(view, server, filters, &[])
                .into_iter()
                .collect()
        }
        None => tcp_routes(view, server, port)
            .into_iter()
            .map(|(matching, routes)| {
                chain(&server.gateway, matching, tcp_filters(view, &routes, port))
            })
            .collect(),
    }
}

fn tcp_filters(view: &View<'_>, routes: &[RouteDestination], port: u32) -> Vec<Filter> {
    let mut filters = plugin::authz::tcp_filters(view);
    filters.extend(plugin::mixer::tcp_outbound(view, None, "gateway"));
    filters.push(routed_tcp_proxy(view, routes, port));
    filters
}

fn bound_services<'a>(
    view: &'a View<'_>,
    server: &'a GatewayServer,
) -> impl Iterator<Item = &'a VirtualService> {
    let services = view.push.virtual_services.bound_to(&server.gateway).iter();
    services
        .filter(|service| service.is_visible_to(&view.proxy.namespace))
        .filter(|service| {
            service
                .hosts
                .iter()
                .any(|name| server.hosts().any(|allowed| host::matches(allowed, name)))
        })
        .map(AsRef::as_ref)
}

fn is_for(server: &GatewayServer, port: u32, condition_port: u32, gateways: &[String]) -> bool {
    (condition_port == 0 || condition_port == port)
        && (gateways.is_empty() || gateways.contains(&server.gateway))
}

/// TLS that is passed on by server name.
fn passthrough_chains(view: &View<'_>, server: &GatewayServer, port: u32) -> Vec<FilterChain> {
    let mut by_name: BTreeMap<Vec<String>, FilterChain> = BTreeMap::new();
    for service in bound_services(view, server) {
        for route in &service.tls {
            let conditions = route.r#match.iter();
            for condition in conditions
                .filter(|condition| is_for(server, port, condition.port, &condition.gateways))
            {
                let names: Vec<String> = condition
                    .sni_hosts
                    .iter()
                    .filter(|name| server.hosts().any(|allowed| host::matches(allowed, name)))
                    .cloned()
                    .collect();
                if names.is_empty() {
                    continue;
                }
                let matching = FilterChainMatch {
                    server_names: names.clone(),
                    prefix_ranges: condition
                        .destination_subnets
                        .iter()
                        .filter_map(|net| parse_cidr(net))
                        .collect(),
                    ..FilterChainMatch::default()
                };
                let filters = tcp_filters(view, &route.route, port);
                by_name
                    .entry(names)
                    .or_insert_with(|| chain(&server.gateway, Some(matching), filters));
            }
        }
        for (matching, routes) in routes_of(service, server, port) {
            let names = server_names(server);
            let mut matching = matching.unwrap_or_default();
            matching.server_names.clone_from(&names);
            let matching = (matching != FilterChainMatch::default()).then_some(matching);
            by_name.entry(names).or_insert_with(|| {
                chain(&server.gateway, matching, tcp_filters(view, &routes, port))
            });
        }
    }
    by_name.into_values().collect()
}

/// TCP routes of the virtual services bound to a server, up to the first that takes everything.
fn tcp_routes(
    view: &View<'_>,
    server: &GatewayServer,
    port: u32,
) -> Vec<(Option<FilterChainMatch>, Vec<RouteDestination>)> {
    let mut found: Vec<(Option<FilterChainMatch>, Vec<RouteDestination>)> = Vec::new();
    for (matching, routes) in
        bound_services(view, server).flat_map(|service| routes_of(service, server, port))
    {
        if found.iter().all(|(other, _)| *other != matching) {
            found.push((matching, routes));
        }
    }
    found
}

fn routes_of(
    service: &VirtualService,
    server: &GatewayServer,
    port: u32,
) -> Vec<(Option<FilterChainMatch>, Vec<RouteDestination>)> {
    let mut found = Vec::new();
    for route in &service.tcp {
        if route.r#match.is_empty() {
            found.push((None, route.route.clone()));
            break;
        }
        let conditions = route.r#match.iter();
        for condition in
            conditions.filter(|condition| is_for(server, port, condition.port, &condition.gateways))
        {
            let prefix_ranges: Vec<_> = condition
                .destination_subnets
                .iter()
                .filter_map(|net| parse_cidr(net))
                .collect();
            let matching = (!prefix_ranges.is_empty()).then(|| FilterChainMatch {
                prefix_ranges,
                ..FilterChainMatch::default()
            });
            found.push((matching, route.route.clone()));
        }
    }
    found
}
