//! EDS: the endpoints of a cluster by locality, with priorities (failover) and weights (distribution).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proto::envoy::config::core::v3::{Locality, Metadata};
use proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints,
    cluster_load_assignment, endpoint::AdditionalAddress, lb_endpoint::HostIdentifier,
};
use proto::istio::networking::v1alpha3::{ClientTlsSettings, client_tls_settings::TlSmode};

mod local_cluster;
mod locality;

pub use local_cluster::LOCAL_CLUSTER;

use super::View;
use super::cluster::{Places, TrafficPolicy};
use super::wire::{address, strings};
use crate::model::endpoint::split_locality;
use crate::model::{ClusterName, Endpoint, Service, ServicePort};

/// The endpoints of the cluster `name`; empty when nothing is known of it.
#[must_use]
pub fn build(view: &View<'_>, name: &str) -> ClusterLoadAssignment {
    if name == LOCAL_CLUSTER {
        return local_cluster::build(view);
    }
    let empty = || ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        ..ClusterLoadAssignment::default()
    };
    let Some(parsed) = ClusterName::parse(name) else {
        return empty();
    };
    let Some(service) = view.service(&parsed.host) else {
        return empty();
    };
    let Some(port) = service.port(parsed.port) else {
        return empty();
    };
    let policy = TrafficPolicy::of(view, service, port.number, &parsed.subset);
    // A gateway that passes lines on by their server name cannot tell whether they are the mesh's own TLS: whoever is spoken to in
    // another way is out of its reach.
    let is_passed_on = name == parsed.sni();
    let is_reached = |endpoint: &Endpoint| {
        !is_passed_on || is_spoken_to_in_mutual_tls(view, service, endpoint, port, &policy)
    };
    let mut assignment = assign(view, service, port, &parsed, &policy, is_reached);
    name.clone_into(&mut assignment.cluster_name);
    assignment
}

/// The endpoints of one cluster of `service`.
#[must_use]
pub fn build_for(
    view: &View<'_>,
    service: &Service,
    port: &ServicePort,
    name: &ClusterName,
    policy: &TrafficPolicy<'_>,
) -> ClusterLoadAssignment {
    assign(view, service, port, name, policy, |_| true)
}

fn assign(
    view: &View<'_>,
    service: &Service,
    port: &ServicePort,
    name: &ClusterName,
    policy: &TrafficPolicy<'_>,
    is_reached: impl Fn(&Endpoint) -> bool,
) -> ClusterLoadAssignment {
    let labels = subset_labels(view, service, &name.subset);
    // Failover needs outlier detection: without it nobody would notice that a place has failed. Regions are apart all the same
    // where proxies balance by zone, which they do among endpoints of equal priority.
    let places = policy.places(&view.push.mesh).filter(|places| {
        policy.outlier_detection.is_some()
            || match places {
                Places::ByLocality(setting) => !setting.distribute.is_empty(),
                Places::ByZone(_) => true,
            }
    });
    // Endpoints of one place may rank differently when labels decide.
    let by_label = places.map_or(&[][..], Places::labels);
    let mut by_locality: BTreeMap<(&str, usize), Vec<&Arc<Endpoint>>> = BTreeMap::new();
    // The cluster that clients have to be in.
    let own_cluster = view
        .proxy
        .metadata_text("CLUSTER_ID")
        .filter(|_| view.push.mesh.is_cluster_local(service));
    if let Some(labels) = labels {
        let endpoints = view.push.endpoints.of(&service.key()).iter();
        // They are tried where the first address of the pod does not answer.
        let seconds: HashSet<&str> = endpoints
            .clone()
            .filter(|_| view.proxy.is_dual_stack())
            .map(|endpoint| endpoint.second.as_str())
            .collect();
        for endpoint in endpoints.filter(|endpoint| {
            endpoint.is_ready
                && endpoint.matches(&labels)
                && own_cluster.is_none_or(|own| endpoint.is_in_cluster(own))
                && view.proxy.can_reach(&endpoint.address)
                && is_reached(endpoint)
                && !seconds.contains(endpoint.address.as_str())
        }) {
            by_locality
                .entry((
                    &endpoint.locality,
                    locality::label_priority(by_label, view.proxy, endpoint),
                ))
                .or_default()
                .push(endpoint);
        }
    }
    let failover_labels: Vec<usize> = by_locality.keys().map(|(_, priority)| *priority).collect();
    let mut localities: Vec<LocalityLbEndpoints> = by_locality
        .into_iter()
        .map(|((place, _), endpoints)| {
            let lb_endpoints: Vec<LbEndpoint> = endpoints
                .iter()
                .map(|endpoint| lb_endpoint(view, service, endpoint, port))
                .collect();
            LocalityLbEndpoints {
                locality: Some(wire_locality(place)),
                load_balancing_weight: Some(
                    lb_endpoints
                        .iter()
                        .filter_map(|endpoint| endpoint.load_balancing_weight)
                        .sum(),
                ),
                lb_endpoints,
                ..LocalityLbEndpoints::default()
            }
        })
        .collect();
    if let Some(places) = places {
        locality::apply(&mut localities, places, view.proxy, failover_labels);
    }
    ClusterLoadAssignment {
        cluster_name: name.to_string(),
        endpoints: localities,
        policy: None::<cluster_load_assignment::Policy>,
        ..ClusterLoadAssignment::default()
    }
}

/// The labels of a subset; `None` when there is no such subset.
fn subset_labels(
    view: &View<'_>,
    service: &Service,
    subset: &str,
) -> Option<BTreeMap<String, String>> {
    if subset.is_empty() {
        return Some(BTreeMap::new());
    }
    let rule = view.destination_rule(service)?;
    rule.subset(subset).map(|subset| subset.labels.clone())
}

/// True when the proxy beside the endpoint takes mutual TLS on what serves `port`.
pub(super) fn takes_mutual_tls(
    view: &View<'_>,
    service: &Service,
    endpoint: &Endpoint,
    port: &ServicePort,
) -> bool {
    endpoint.is_mtls() && !is_plain(view, service, endpoint, port)
}

/// True when clients in the mesh speak mutual TLS with the endpoint, by a rule or by themselves.
fn is_spoken_to_in_mutual_tls(
    view: &View<'_>,
    service: &Service,
    endpoint: &Endpoint,
    port: &ServicePort,
    policy: &TrafficPolicy<'_>,
) -> bool {
    match policy.tls.map(ClientTlsSettings::mode) {
        None => takes_mutual_tls(view, service, endpoint, port),
        Some(TlSmode::IstioMutual) => !is_plain(view, service, endpoint, port),
        Some(TlSmode::Disable | TlSmode::Simple | TlSmode::Mutual) => false,
    }
}

/// True when the workload's policy is plaintext.
fn is_plain(view: &View<'_>, service: &Service, endpoint: &Endpoint, port: &ServicePort) -> bool {
    let (labels, port) = (&endpoint.labels, endpoint.port_for(port));
    let policies = &view.push.policies;
    policies.disables_workload(&service.namespace, labels, port)
}

fn lb_endpoint(
    view: &View<'_>,
    service: &Service,
    endpoint: &Endpoint,
    port: &ServicePort,
) -> LbEndpoint {
    let mut filter_metadata = BTreeMap::new();
    if takes_mutual_tls(view, service, endpoint, port) {
        filter_metadata.insert(
            "envoy.transport_socket_match".to_owned(),
            strings([("tlsMode", "istio")]),
        );
    }
    let metadata = (!filter_metadata.is_empty()).then(|| Metadata {
        filter_metadata,
        ..Metadata::default()
    });
    let number = endpoint.port_for(port);
    let has_both = view.proxy.is_dual_stack() && !endpoint.second.is_empty();
    let second = has_both.then(|| AdditionalAddress {
        address: Some(address(&endpoint.second, number)),
    });
    LbEndpoint {
        metadata,
        load_balancing_weight: Some(endpoint.weight.max(1)),
        host_identifier: Some(HostIdentifier::Endpoint(WireEndpoint {
            address: Some(address(&endpoint.address, number)),
            additional_addresses: second.into_iter().collect(),
            ..WireEndpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

fn wire_locality(place: &str) -> Locality {
    let (region, zone, sub_zone) = split_locality(place);
    Locality {
        region: region.to_owned(),
        zone: zone.to_owned(),
        sub_zone: sub_zone.to_owned(),
    }
}
