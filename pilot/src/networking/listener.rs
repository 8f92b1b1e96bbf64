//! LDS: for a sidecar `virtualInbound`, one listener for each outbound port or address, `virtualOutbound` and, where nothing
//! is intercepted, the HTTP proxy; for a gateway one listener for each port of its servers.

use proto::envoy::config::listener::v3::{Listener, ListenerFilter};
use proto::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
    tls_inspector::v3::TlsInspector,
};

mod filter_chain;
mod gateway;
mod http;
pub(super) mod inbound;
mod outbound;
mod virtual_listener;

pub(super) use filter_chain::{cluster_of, egress_cluster as destination_cluster};
pub(super) use outbound::virtual_services_for;

use super::View;
use super::wire::listener_filter;
use crate::push_context::status::Metric;

/// What http_inspector finds in plain HTTP.
const PLAIN_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// All listeners of a proxy, by name.
#[must_use]
pub fn build(view: &View<'_>) -> Vec<Listener> {
    let mut listeners = if view.proxy.is_router() {
        gateway::build(view)
    } else {
        let mut listeners = inbound::build(view);
        listeners.extend(outbound::build(view));
        listeners.extend(virtual_listener::build(view));
        listeners
    };
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
