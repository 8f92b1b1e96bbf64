//! What went wrong while configuration was made for proxies: counted by kind, shown at `/debug/push_status`.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::Serialize;

/// Most events kept of one kind: enough to see what is wrong, and no more.
const LIMIT: usize = 100;

/// Kinds of trouble, by Istio's metric names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Two virtual hosts want the same domain.
    DuplicateDomain,
    /// Two rules declare the same subset.
    DuplicateSubset,
    /// Two clusters have one name.
    DuplicateCluster,
    /// Two services want one inbound port.
    InboundConflict,
    /// A TCP service wants a listener that an HTTP service has.
    TcpOverHttp,
    /// An HTTP service wants a listener that a TCP service has.
    HttpOverTcp,
    /// A TCP service wants a listener that another TCP service has.
    TcpOverTcp,
    /// Plain HTTP on port 443.
    HttpOverHttps,
    /// A server that cannot be merged with older ones.
    RejectedGateway,
    /// A cluster without any endpoint.
    NoInstances,
    /// A route that leads nowhere: it fails closed.
    InvalidRoute,
    /// A policy that cannot be carried out: it fails closed.
    InvalidPolicy,
    /// A listener that cannot be made.
    InvalidListener,
    /// A cluster that cannot be made as asked.
    InvalidCluster,
    /// A patch that cannot be read or applied.
    InvalidEnvoyFilter,
    /// Telemetry that cannot be carried out.
    InvalidTelemetry,
    /// A plugin that cannot be carried out as asked.
    InvalidExtension,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 17] = [
        Metric::DuplicateDomain,
        Metric::DuplicateSubset,
        Metric::DuplicateCluster,
        Metric::InboundConflict,
        Metric::TcpOverHttp,
        Metric::HttpOverTcp,
        Metric::TcpOverTcp,
        Metric::HttpOverHttps,
        Metric::RejectedGateway,
        Metric::NoInstances,
        Metric::InvalidRoute,
        Metric::InvalidPolicy,
        Metric::InvalidListener,
        Metric::InvalidCluster,
        Metric::InvalidEnvoyFilter,
        Metric::InvalidTelemetry,
        Metric::InvalidExtension,
    ];

    /// The metric's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Metric::DuplicateDomain => "pilot_vservice_dup_domain",
            Metric::DuplicateSubset => "pilot_destrule_subsets",
            Metric::DuplicateCluster => "pilot_duplicate_envoy_clusters",
            Metric::InboundConflict => "pilot_conflict_inbound_listener",
            Metric::TcpOverHttp => "pilot_conflict_outbound_listener_tcp_over_current_http",
            Metric::HttpOverTcp => "pilot_conflict_outbound_listener_http_over_current_tcp",
            Metric::TcpOverTcp => "pilot_conflict_outbound_listener_tcp_over_current_tcp",
            Metric::HttpOverHttps => "pilot_conflict_outbound_listener_http_over_https",
            Metric::RejectedGateway => "pilot_rejected_gateway_servers",
            Metric::NoInstances => "pilot_eds_no_instances",
            Metric::InvalidRoute => "pilot_invalid_routes",
            Metric::InvalidPolicy => "pilot_invalid_policies",
            Metric::InvalidListener => "pilot_invalid_out_listeners",
            Metric::InvalidCluster => "pilot_invalid_clusters",
            Metric::InvalidEnvoyFilter => "pilot_envoy_filter_errors",
            Metric::InvalidTelemetry => "pilot_invalid_telemetry",
            Metric::InvalidExtension => "pilot_invalid_extensions",
        }
    }
}

impl Metric {
    /// What routes of HTTP requests are made of is in trouble.
    #[must_use]
    pub fn is_of_routes(self) -> bool {
        matches!(self, Metric::DuplicateDomain | Metric::InvalidRoute)
    }

    /// What the metric counts.
    #[must_use]
    pub fn help(self) -> &'static str {
        match self {
            Metric::DuplicateDomain => "Virtual hosts whose domains another one has.",
            Metric::DuplicateSubset => "Subsets that are declared twice for one host.",
            Metric::DuplicateCluster => "Clusters of which there are two with one name.",
            Metric::InboundConflict => "Services that want an inbound port which another one has.",
            Metric::TcpOverHttp => "TCP services that want a listener which an HTTP service has.",
            Metric::HttpOverTcp => "HTTP services that want a listener which a TCP service has.",
            Metric::TcpOverTcp => "TCP services that want a listener which another one has.",
            Metric::HttpOverHttps => "HTTP services on port 443.",
            Metric::RejectedGateway => "Gateway servers that cannot be merged with older ones.",
            Metric::NoInstances => "Clusters without any endpoint.",
            Metric::InvalidRoute => "Routes that lead nowhere.",
            Metric::InvalidPolicy => "Policies that cannot be carried out.",
            Metric::InvalidListener => "Listeners that cannot be made.",
            Metric::InvalidCluster => "Clusters that cannot be made as asked.",
            Metric::InvalidEnvoyFilter => "Patches that cannot be read or applied.",
            Metric::InvalidTelemetry => "Telemetry that cannot be carried out.",
            Metric::InvalidExtension => "Plugins that cannot be carried out as asked.",
        }
    }
}

/// One event.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// The proxy, empty if it concerns all.
    pub proxy: String,
    /// What happened.
    pub message: String,
}

/// All events of one push context.
#[derive(Debug, Default)]
pub struct PushStatus {
    events: Mutex<BTreeMap<Metric, BTreeMap<String, Event>>>,
}

impl PushStatus {
    /// Notes that `what` (a resource) had the trouble `metric` for `proxy`.
    pub fn record(&self, metric: Metric, what: &str, proxy: &str, message: &str) {
        let mut events = self.events.lock();
        let of_kind = events.entry(metric).or_default();
        if of_kind.len() < LIMIT && !of_kind.contains_key(what) {
            tracing::debug!(target: "model", metric = metric.name(), resource = what, proxy, reason = message, "trouble in configuration");
            of_kind.insert(
                what.to_owned(),
                Event {
                    proxy: proxy.to_owned(),
                    message: message.to_owned(),
                },
            );
        }
    }

    /// Takes over what was noted before of things that are not made anew.
    pub fn keep(&self, previous: &PushStatus, is_kept: impl Fn(Metric) -> bool) {
        let previous = previous.events.lock();
        let kept = previous.iter().filter(|(metric, _)| is_kept(**metric));
        let kept = kept.map(|(metric, events)| (*metric, events.clone()));
        self.events.lock().extend(kept);
    }

    /// How many resources have the trouble `metric`.
    #[must_use]
    pub fn count(&self, metric: Metric) -> usize {
        self.events.lock().get(&metric).map_or(0, BTreeMap::len)
    }

    /// By metric name, then by resource.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, BTreeMap<String, Event>> {
        self.events
            .lock()
            .iter()
            .map(|(metric, events)| (metric.name(), events.clone()))
            .collect()
    }
}
