//! LDS: for a sidecar `virtualInbound`, one listener for each outbound port or address, `virtualOutbound` and, where nothing
//! is intercepted, the HTTP proxy; for a gateway one listener for each port of its servers.

use proto::envoy::config::core::v3::{Address, SocketAddress, address};
use proto::envoy::config::listener::v3::{AdditionalAddress, Listener, ListenerFilter};
use proto::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
    proxy_protocol::v3::ProxyProtocol, tls_inspector::v3::TlsInspector,
};

mod api;
mod filter_chain;
mod gateway;
mod gateway_tls;
mod http;
pub(super) mod inbound;
mod outbound;
mod virtual_listener;

pub use api::build as api;
pub(super) use filter_chain::{cluster_of, egress_cluster as destination_cluster};

use proto::istio::networking::v1alpha3::envoy_filter::PatchContext;

use self::outbound::Part;
use super::wire::listener_filter;
use super::{View, envoy_filter};
use crate::model::proxy::{ANY_IPV4, ANY_IPV6};
use crate::push_context::status::Metric;

/// What http_inspector finds in plain HTTP.
const PLAIN_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// All listeners of a proxy, by name.
#[must_use]
pub fn build(view: &View<'_>) -> Vec<Listener> {
    let mut listeners = own(view);
    listeners.extend(shared(view));
    deduplicate(view, listeners)
}

/// The listeners that depend on what the proxy can see, and not on the proxy itself.
#[must_use]
pub fn shared(view: &View<'_>) -> Vec<Listener> {
    if view.proxy.is_router() {
        return Vec::new();
    }
    let mut listeners = outbound::build(view, Part::Shared);
    listeners
        .iter_mut()
        .for_each(|listener| use_families(view, listener));
    envoy_filter::listener::apply(view, PatchContext::SidecarOutbound, &mut listeners, false);
    listeners
}

/// The listeners of the proxy's own workload and addresses; all of a gateway.
#[must_use]
pub fn own(view: &View<'_>) -> Vec<Listener> {
    if view.proxy.is_router() {
        let mut listeners = gateway::build(view);
        listeners
            .iter_mut()
            .for_each(|listener| use_families(view, listener));
        envoy_filter::listener::apply(view, PatchContext::Gateway, &mut listeners, true);
        return deduplicate(view, listeners);
    }
    let mut listeners = outbound::build(view, Part::Own);
    listeners.extend(virtual_listener::build(view));
    listeners
        .iter_mut()
        .for_each(|listener| use_families(view, listener));
    envoy_filter::listener::apply(view, PatchContext::SidecarOutbound, &mut listeners, true);
    let mut inbound = inbound::build(view);
    inbound
        .iter_mut()
        .for_each(|listener| use_families(view, listener));
    envoy_filter::listener::apply(view, PatchContext::SidecarInbound, &mut inbound, true);
    inbound.extend(listeners);
    deduplicate(view, inbound)
}

/// A listener for every address binds those of the families that the workload has.
fn use_families(view: &View<'_>, listener: &mut Listener) {
    let Some(address::Address::SocketAddress(socket)) =
        (listener.address.as_mut()).and_then(|address| address.address.as_mut())
    else {
        return;
    };
    if socket.address != ANY_IPV4 {
        return;
    }
    if !view.proxy.families().0 {
        ANY_IPV6.clone_into(&mut socket.address);
    } else if view.proxy.is_dual_stack() {
        let second = SocketAddress {
            address: ANY_IPV6.to_owned(),
            ..socket.clone()
        };
        listener.additional_addresses.push(AdditionalAddress {
            address: Some(Address {
                address: Some(address::Address::SocketAddress(second)),
            }),
            ..AdditionalAddress::default()
        });
    }
}

fn deduplicate(view: &View<'_>, mut listeners: Vec<Listener>) -> Vec<Listener> {
    listeners.sort_by(|a, b| a.name.cmp(&b.name));
    listeners.dedup_by(|later, earlier| {
        let is_duplicate = later.name == earlier.name;
        if is_duplicate {
            view.record(
                Metric::InvalidListener,
                &later.name,
                "two listeners have this name; the first counts",
            );
        }
        is_duplicate
    });
    listeners
}

fn original_dst() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.original_dst",
        &OriginalDst::default(),
    )
}

/// Reads the client's address where a balancer in front tells it; whoever does not tell it is turned away.
fn proxy_protocol() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.proxy_protocol",
        &ProxyProtocol::default(),
    )
}

fn tls_inspector() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.tls_inspector",
        &TlsInspector::default(),
    )
}

fn http_inspector() -> ListenerFilter {
    listener_filter(
        "envoy.filters.listener.http_inspector",
        &HttpInspector::default(),
    )
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}
