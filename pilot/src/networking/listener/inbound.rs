//! Connections to the proxy's own workload: which ports it serves, and the listener `virtualInbound` that takes them all.
//!
//! Each workload port has filter chains by what mutual TLS demands: one that terminates mesh mTLS, and one for plaintext
//! unless that is refused. Ports that no service names are passed through under the same rules.

use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use proto::istio::networking::v1alpha3::{
    CaptureMode, ConnectionPoolSettings, IstioIngressListener, ServerTlsSettings,
};

use super::filter_chain::{chain, inbound_tcp_proxy, tcp_proxy};
use super::http::{Place, RouteSource, connection_manager};
use super::{PLAIN_HTTP, gateway_tls, http_inspector, original_dst, owned, tls_inspector};
use crate::model::name::{BLACK_HOLE, INBOUND_PASSTHROUGH, VIRTUAL_INBOUND};
use crate::model::{ClusterName, InterceptionMode, Protocol};
use crate::networking::wire::{address, seconds};
use crate::networking::{Instance, View, access_log, plugin, route, tls};
use crate::push_context::policies::MtlsMode;
use crate::push_context::status::Metric;
use crate::push_context::telemetry::Side;

/// A port of the proxy's own workload.
#[derive(Clone, Debug)]
pub struct Target {
    /// The port that clients of the workload use.
    pub port: u32,
    /// What is spoken.
    pub protocol: Protocol,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Where the cluster leads: an address of this pod, or a Unix socket.
    pub address: String,
    /// The cluster keeps the address that the client asked for.
    pub is_passthrough: bool,
    /// The service behind it.
    pub instance: Option<Instance>,
    /// The service's port; the workload's if there is no service.
    pub service_port: u32,
    /// Limits from the Sidecar resource.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// TLS for clients outside of the mesh, from the Sidecar resource.
    pub tls: Option<ServerTlsSettings>,
    /// The address to bind, for those that are not captured.
    pub bind: Option<String>,
    target_port: u32,
}

/// Every port of the workload: those of a Sidecar's ingress listeners if there are any, else those of its services.
#[must_use]
pub(in crate::networking) fn targets(view: &View<'_>) -> Vec<Target> {
    let ingress = view
        .scope
        .sidecar
        .as_ref()
        .map_or(&[][..], |sidecar| &sidecar.spec.ingress);
    if !ingress.is_empty() {
        return ingress
            .iter()
            .filter_map(|listener| from_ingress(view, listener))
            .collect();
    }
    let is_captured = view.proxy.interception != InterceptionMode::None;
    // As Istio: a workload that listens on its own ports would find them taken, so that without interception only a Sidecar
    // resource makes inbound listeners. One that listens on another address has room for them.
    if !is_captured && !view.proxy.has_application_address() {
        return Vec::new();
    }
    let is_passthrough = is_captured && view.push.mesh.is_inbound_passthrough;
    let from_instance = |instance: &Instance| Target {
        port: instance.target_port(),
        target_port: instance.target_port(),
        protocol: instance.port.protocol,
        cluster: ClusterName::inbound(
            instance.port.number,
            &instance.port.name,
            &instance.service.host,
        ),
        address: view.proxy.application_address().to_owned(),
        is_passthrough,
        instance: Some(instance.clone()),
        service_port: instance.port.number,
        connection_pool: None,
        tls: None,
        bind: (!is_captured).then(|| view.proxy.ip().to_string()),
    };
    view.instances.iter().map(from_instance).collect()
}

fn from_ingress(view: &View<'_>, listener: &IstioIngressListener) -> Option<Target> {
    let port = listener.port.as_ref()?;
    let sidecar = view.scope.sidecar.as_ref()?;
    let instance = view.instances.iter().find(|instance| {
        instance.target_port() == port.number || instance.port.number == port.number
    });
    let (address, target_port) = default_endpoint(view, &listener.default_endpoint, port.number)?;
    let is_bound = listener.capture_mode() == CaptureMode::None
        || view.proxy.interception == InterceptionMode::None;
    let host = instance.map_or_else(
        || format!("{}.{}", sidecar.meta.name, sidecar.meta.namespace),
        |instance| instance.service.host.clone(),
    );
    Some(Target {
        port: port.number,
        target_port,
        protocol: Protocol::parse(&port.protocol),
        cluster: ClusterName::inbound(port.number, &port.name, &host),
        address,
        is_passthrough: !is_bound
            && listener.default_endpoint.is_empty()
            && view.push.mesh.is_inbound_passthrough,
        instance: instance.cloned(),
        service_port: instance.map_or(port.number, |instance| instance.port.number),
        connection_pool: listener.connection_pool,
        tls: listener.tls.clone(),
        bind: is_bound.then(|| {
            if listener.bind.is_empty() {
                view.proxy.ip().to_string()
            } else {
                listener.bind.clone()
            }
        }),
    })
}

/// `127.0.0.1:p`, `[::1]:p`, `0.0.0.0:p` (the pod's own address) or `unix:///path`; empty: the same port on the loopback.
fn default_endpoint(view: &View<'_>, endpoint: &str, port: u32) -> Option<(String, u32)> {
    if endpoint.is_empty() {
        return Some((view.proxy.application_address().to_owned(), port));
    }
    if endpoint.starts_with("unix://") {
        return Some((endpoint.to_owned(), 0));
    }
    let (host, port) = endpoint.rsplit_once(':')?;
    let host = match host.trim_matches(['[', ']']) {
        "0.0.0.0" | "::" => view.proxy.ip().to_string(),
        "" | "127.0.0.1" => view.proxy.application_address().to_owned(),
        host => host.to_owned(),
    };
    Some((host, port.parse().ok()?))
}

impl Target {
    /// The port that the cluster connects to.
    #[must_use]
    pub fn upstream_port(&self) -> u32 {
        self.target_port
    }
}

/// `virtualInbound`, and a listener of its own for each port that is not captured.
pub(super) fn build(view: &View<'_>) -> Vec<Listener> {
    let targets = targets(view);
    let (bound, captured): (Vec<_>, Vec<_>) = targets
        .into_iter()
        .partition(|target| target.bind.is_some());
    let mut listeners: Vec<Listener> = bound
        .iter()
        .map(|target| bound_listener(view, target))
        .collect();
    if view.proxy.interception != InterceptionMode::None {
        listeners.push(virtual_inbound(view, &captured));
    }
    listeners
}

fn virtual_inbound(view: &View<'_>, targets: &[Target]) -> Listener {
    let mesh = &view.push.mesh;
    let black_hole = FilterChainMatch {
        destination_port: Some(mesh.inbound_port),
        ..FilterChainMatch::default()
    };
    let mut chains = vec![chain(
        "virtualInbound-blackhole",
        Some(black_hole),
        vec![tcp_proxy(view, BLACK_HOLE, BLACK_HOLE)],
    )];
    for target in targets {
        let on_port = FilterChainMatch {
            destination_port: Some(target.port),
            ..FilterChainMatch::default()
        };
        chains.extend(target_chains(view, target, &on_port));
    }
    // Ports without a service that have a mode of their own.
    for (port, mode) in &view.peer_policy.by_port {
        if targets.iter().all(|target| target.port != *port) {
            let on_port = FilterChainMatch {
                destination_port: Some(*port),
                ..FilterChainMatch::default()
            };
            chains.extend(passthrough_chains(view, *mode, &on_port));
        }
    }
    chains.extend(passthrough_chains(
        view,
        view.peer_policy.mode,
        &FilterChainMatch::default(),
    ));
    let mut listener = listener(view, VIRTUAL_INBOUND, "0.0.0.0", mesh.inbound_port, chains);
    listener.listener_filters.insert(0, original_dst());
    listener.access_log = access_log::build_for_listener(view, Side::Server);
    listener.transparent = (view.proxy.interception == InterceptionMode::Tproxy).then_some(true);
    listener
}

fn bound_listener(view: &View<'_>, target: &Target) -> Listener {
    let bind = target.bind.clone().unwrap_or_default();
    let chains = target_chains(view, target, &FilterChainMatch::default());
    listener(
        view,
        &format!("{bind}_{}", target.port),
        &bind,
        target.port,
        chains,
    )
}

/// A listener with the inspectors that its chains need.
fn listener(
    view: &View<'_>,
    name: &str,
    bind: &str,
    port: u32,
    filter_chains: Vec<FilterChain>,
) -> Listener {
    let matches = || {
        filter_chains
            .iter()
            .filter_map(|chain| chain.filter_chain_match.as_ref())
    };
    let mut listener_filters = Vec::new();
    if matches().any(|matching| !matching.transport_protocol.is_empty()) {
        listener_filters.push(tls_inspector());
    }
    if matches().any(|matching| {
        matching
            .application_protocols
            .iter()
            .any(|name| PLAIN_HTTP.contains(&name.as_str()))
    }) {
        listener_filters.push(http_inspector());
    }
    let needs_bytes = !listener_filters.is_empty();
    // A server that speaks first must not wait for ever for its client's first bytes.
    let patience = view.push.mesh.detection_timeout.unwrap_or(seconds(1));
    Listener {
        name: name.to_owned(),
        address: Some(address(bind, port)),
        traffic_direction: TrafficDirection::Inbound as i32,
        filter_chains,
        listener_filters,
        listener_filters_timeout: needs_bytes.then_some(patience),
        continue_on_listener_filters_timeout: needs_bytes,
        ..Listener::default()
    }
}

/// What comes after the transport.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Application {
    Http,
    Tcp,
}

fn target_chains(view: &View<'_>, target: &Target, base: &FilterChainMatch) -> Vec<FilterChain> {
    let name = format!(
        "{}_{}",
        target.bind.as_deref().unwrap_or("0.0.0.0"),
        target.port
    );
    let filters = |application| match application {
        Application::Http => http_filters(view, target, &name),
        Application::Tcp => tcp_filters(view, target.port, &target.cluster.to_string()),
    };
    // HTTPS is HTTP behind a TLS that ends here.
    let is_ended = target.tls.is_some() && target.protocol == Protocol::Https;
    let declared = if target.protocol.is_http() || is_ended {
        Application::Http
    } else {
        Application::Tcp
    };
    if let Some(settings) = &target.tls {
        if view.peer_policy.mode_of(target.port) == MtlsMode::Disable {
            let chain = ended_chain(view, settings, &name, base, declared, filters);
            return chain.into_iter().collect();
        }
        view.record(
            Metric::InvalidListener,
            &name,
            "tls of a Sidecar's ingress needs mutual TLS of mode DISABLE on the port: it does not count",
        );
    }
    let is_unknown = target.protocol == Protocol::Unsupported;
    mode_chains(
        view,
        &name,
        view.peer_policy.mode_of(target.port),
        base,
        declared,
        is_unknown,
        filters,
    )
}

/// The chain of a port whose TLS is the Sidecar resource's. Without what it needs nobody is let in.
fn ended_chain(
    view: &View<'_>,
    settings: &ServerTlsSettings,
    name: &str,
    base: &FilterChainMatch,
    declared: Application,
    filters: impl Fn(Application) -> Vec<Filter>,
) -> Option<FilterChain> {
    let alpn: &[&str] = match declared {
        Application::Http => &["h2", "http/1.1"],
        Application::Tcp => &[],
    };
    let context = gateway_tls::context(view, settings, alpn)
        .map_err(|reason| view.record(Metric::InvalidListener, name, &reason))
        .ok()?;
    let matching = FilterChainMatch {
        transport_protocol: "tls".to_owned(),
        ..base.clone()
    };
    let mut ended = chain(name, Some(matching), filters(declared));
    ended.transport_socket = Some(tls::server(&context));
    Some(ended)
}

fn passthrough_chains(
    view: &View<'_>,
    mode: MtlsMode,
    base: &FilterChainMatch,
) -> Vec<FilterChain> {
    let port = base.destination_port.unwrap_or(0);
    let filters = |_| tcp_filters(view, port, INBOUND_PASSTHROUGH);
    mode_chains(
        view,
        VIRTUAL_INBOUND,
        mode,
        base,
        Application::Tcp,
        false,
        filters,
    )
}

/// The chains of one port. Envoy does not go back once a criterion has matched, so every transport has its own catch-all.
fn mode_chains(
    view: &View<'_>,
    name: &str,
    mode: MtlsMode,
    base: &FilterChainMatch,
    declared: Application,
    is_unknown: bool,
    filters: impl Fn(Application) -> Vec<Filter>,
) -> Vec<FilterChain> {
    let with = |transport: &str, alpn: &[&str]| FilterChainMatch {
        transport_protocol: transport.to_owned(),
        application_protocols: owned(alpn),
        ..base.clone()
    };
    let mut chains = Vec::new();
    if mode != MtlsMode::Disable {
        let alpn: &[&str] = if mode == MtlsMode::Permissive {
            &[tls::ALPN_PEER_EXCHANGE, tls::ALPN_ISTIO]
        } else {
            &[]
        };
        let server_alpn: &[&str] = match declared {
            Application::Http => &["h2", "http/1.1", tls::ALPN_ISTIO],
            Application::Tcp => &[tls::ALPN_ISTIO, "h2", "http/1.1"],
        };
        let mut terminating = chain(name, Some(with("tls", alpn)), filters(declared));
        terminating.transport_socket = Some(tls::mesh_server(&view.push.mesh, server_alpn));
        chains.push(terminating);
    }
    if mode == MtlsMode::Strict {
        return chains;
    }
    if is_unknown {
        chains.push(chain(
            name,
            Some(with("raw_buffer", &PLAIN_HTTP)),
            filters(Application::Http),
        ));
    }
    match (mode, declared, is_unknown) {
        (MtlsMode::Disable, _, false) => {
            let matching = (*base != FilterChainMatch::default()).then(|| base.clone());
            chains.push(chain(name, matching, filters(declared)));
        }
        (_, Application::Http, false) => chains.push(chain(
            name,
            Some(with("raw_buffer", &[])),
            filters(declared),
        )),
        _ => {
            chains.push(chain(
                name,
                Some(with("raw_buffer", &[])),
                filters(Application::Tcp),
            ));
            chains.push(chain(
                name,
                Some(with("tls", &[])),
                filters(Application::Tcp),
            ));
        }
    }
    chains
}

fn http_filters(view: &View<'_>, target: &Target, name: &str) -> Vec<Filter> {
    let routes = route::inbound(view, target);
    let prefix = format!("inbound_{name}");
    vec![connection_manager(
        view,
        Place::Inbound(target, RouteSource::Inline(&routes)),
        &prefix,
    )]
}

fn tcp_filters(view: &View<'_>, port: u32, cluster: &str) -> Vec<Filter> {
    let mut filters = plugin::authz::tcp_filters(view);
    filters.extend(plugin::mixer::tcp_inbound(view, port));
    filters.push(inbound_tcp_proxy(view, cluster));
    filters
}
