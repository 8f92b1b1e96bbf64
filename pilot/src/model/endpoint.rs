//! One place where a service can be reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::service::ServicePort;

/// Label that says whether the workload behind an endpoint terminates mutual TLS.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// One address of a service with all its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// IP, DNS name, or `unix:///path`.
    pub address: String,
    /// Port by the service port's name, where it differs from the service's.
    pub ports: BTreeMap<String, u32>,
    /// The workload's labels: subsets and selectors look at them.
    pub labels: BTreeMap<String, String>,
    /// SPIFFE id of the workload, empty if unknown.
    pub identity: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Share of the load; 0 is "not given".
    pub weight: u32,
    /// Network that the address belongs to.
    pub network: String,
    /// False when the endpoint is known but must not get traffic.
    pub is_ready: bool,
    /// Its name below a headless service's, empty if it has none.
    pub name: String,
    /// The IPv6 address of the same pod, empty if it has none. It is an endpoint itself.
    pub second: String,
    /// The cluster that the workload is in; empty for what users declare.
    pub cluster: Arc<str>,
}

impl Endpoint {
    /// True in that cluster, and for what users declare without one.
    #[must_use]
    pub fn is_in_cluster(&self, cluster: &str) -> bool {
        self.cluster.is_empty() || *self.cluster == *cluster
    }

    /// The port that serves `port` here.
    #[must_use]
    pub fn port_for(&self, port: &ServicePort) -> u32 {
        self.ports
            .get(&port.name)
            .copied()
            .unwrap_or(if port.target_port > 0 {
                port.target_port
            } else {
                port.number
            })
    }

    /// True when the proxy beside the workload terminates mesh mTLS.
    #[must_use]
    pub fn is_mtls(&self) -> bool {
        self.labels
            .get(TLS_MODE_LABEL)
            .is_some_and(|mode| mode == "istio")
    }

    /// True when every label of `wanted` is there with the same value.
    #[must_use]
    pub fn matches(&self, wanted: &BTreeMap<String, String>) -> bool {
        wanted
            .iter()
            .all(|(key, value)| self.labels.get(key) == Some(value))
    }

    /// Region, zone and subzone.
    #[must_use]
    pub fn locality_parts(&self) -> (&str, &str, &str) {
        split_locality(&self.locality)
    }
}

/// Takes `region/zone/subzone` apart; missing parts are empty.
#[must_use]
pub fn split_locality(locality: &str) -> (&str, &str, &str) {
    let mut parts = locality.splitn(3, '/');
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}
