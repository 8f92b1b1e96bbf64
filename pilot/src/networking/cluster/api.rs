//! Clusters for gRPC clients that configure themselves: what their own implementation of xDS understands, and no more.

use proto::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster,
    circuit_breakers::Thresholds,
    cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy},
};
use proto::istio::networking::v1alpha3::client_tls_settings::TlSmode;

use super::TrafficPolicy;
use super::upstream_tls::accounts;
use crate::model::ClusterName;
use crate::networking::wire::ads;
use crate::networking::{View, tls};

/// The cluster called `name`, if there is such a thing.
#[must_use]
pub fn build(view: &View<'_>, name: &str) -> Option<Cluster> {
    let parsed = ClusterName::parse(name)?;
    let service = view.service(&parsed.host)?;
    let port = service.port(parsed.port)?;
    if !parsed.subset.is_empty() {
        view.destination_rule(service)?.subset(&parsed.subset)?;
    }
    let policy = TrafficPolicy::of(view, service, port.number, &parsed.subset);
    let http = policy.connection_pool.and_then(|pool| pool.http.as_ref());
    let max_requests = http
        .and_then(|http| u32::try_from(http.http2_max_requests).ok())
        .filter(|max| *max > 0);
    let is_mutual = policy
        .tls
        .is_some_and(|settings| settings.mode() == TlSmode::IstioMutual);
    Some(Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.to_owned(),
        }),
        connect_timeout: Some(view.push.mesh.connect_timeout),
        lb_policy: LbPolicy::RoundRobin as i32,
        circuit_breakers: max_requests.map(|max| CircuitBreakers {
            thresholds: vec![Thresholds {
                max_requests: Some(max),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        transport_socket: is_mutual
            .then(|| tls::grpc_client(&accounts(view, service), &parsed.sni())),
        ..Cluster::default()
    })
}
