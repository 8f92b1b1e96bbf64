//! The proxy's own cluster, which it has to know to prefer its zone fairly: how many there are like it, and where.
//!
//! As in Istio these are the endpoints of all services of its workload that are in its region and agree with it in the labels
//! that tell one group of workloads from another. Nobody calls them by this cluster: their port means nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints,
    lb_endpoint::HostIdentifier,
};

use super::wire_locality;
use crate::model::endpoint::split_locality;
use crate::model::{Endpoint, Proxy};
use crate::networking::View;
use crate::networking::wire::address;

/// Its name in the bootstrap of every proxy that has one: another one for every workload.
pub const LOCAL_CLUSTER: &str = "local_cluster";
/// Node metadata: names of the labels that all of a group have in common.
const GROUPING: &str = "SELF_DISCOVERY_GROUPING_LABEL_NAMES";
/// What a Deployment gives to all pods of one template.
const TEMPLATE: &str = "pod-template-hash";
const PORT: u32 = 1;

/// The endpoints.
pub(super) fn build(view: &View<'_>) -> ClusterLoadAssignment {
    let (proxy, endpoints) = (view.proxy, &view.push.endpoints);
    let at_proxy = proxy.ips.iter().flat_map(|ip| endpoints.at(ip));
    let services: BTreeSet<_> = at_proxy
        .map(|(service, _)| service)
        .filter(|service| service.namespace == proxy.namespace)
        .collect();
    let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for service in services {
        let alike = endpoints.of(service).iter();
        for endpoint in alike.filter(|endpoint| is_like(proxy, endpoint)) {
            let place = places.entry(&endpoint.locality).or_default();
            place.insert(&endpoint.address);
        }
    }
    let localities = places.into_iter().map(|(place, addresses)| {
        let lb_endpoints = addresses.into_iter().map(lb_endpoint);
        LocalityLbEndpoints {
            locality: Some(wire_locality(place)),
            lb_endpoints: lb_endpoints.collect(),
            ..LocalityLbEndpoints::default()
        }
    });
    ClusterLoadAssignment {
        cluster_name: LOCAL_CLUSTER.to_owned(),
        endpoints: localities.collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn is_like(proxy: &Proxy, endpoint: &Endpoint) -> bool {
    let (region, ..) = split_locality(&proxy.locality);
    let names = proxy.metadata_text(GROUPING).unwrap_or(TEMPLATE);
    endpoint.is_ready
        && endpoint.address.parse::<IpAddr>().is_ok()
        && endpoint.locality_parts().0 == region
        && names
            .split(',')
            .map(str::trim)
            .all(|name| endpoint.labels.get(name) == proxy.labels.get(name))
}

fn lb_endpoint(ip: &str) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(WireEndpoint {
            address: Some(address(ip, PORT)),
            ..WireEndpoint::default()
        })),
        ..LbEndpoint::default()
    }
}
