//! Clusters of the proxy's own workload: one for each port, towards the loopback address, or (`inboundTrafficPolicy: PASSTHROUGH`)
//! towards the address that the client asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use prost_types::{ListValue, Struct, Value, value::Kind};
use proto::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
};
use proto::envoy::config::core::v3::Metadata;
use proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::{TrafficPolicy, protocol_options};
use crate::model::{Protocol, Service};
use crate::networking::View;
use crate::networking::listener::inbound::{Target, targets};
use crate::networking::wire::{address, string_value};

/// All inbound clusters.
pub(super) fn build(view: &View<'_>) -> Vec<Cluster> {
    targets(view)
        .iter()
        .map(|target| build_one(view, target))
        .collect()
}

fn build_one(view: &View<'_>, target: &Target) -> Cluster {
    let mesh = &view.push.mesh;
    let service = target
        .instance
        .as_ref()
        .map(|instance| instance.service.as_ref());
    let rule = service.and_then(|service| view.destination_rule(service));
    let rule_policy = TrafficPolicy::of_mesh(mesh).merge(
        rule.and_then(|rule| rule.traffic_policy.as_ref()),
        target.service_port,
    );
    let sidecar = view.scope.sidecar.as_ref();
    // Only the pool counts at this end; the Sidecar resource's goes before the destination rule's.
    let policy = TrafficPolicy {
        connection_pool: target
            .connection_pool
            .as_ref()
            .or_else(|| sidecar.and_then(|sidecar| sidecar.spec.inbound_connection_pool.as_ref()))
            .or(rule_policy.connection_pool),
        ..TrafficPolicy::default()
    };
    let name = target.cluster.to_string();
    let mut cluster = Cluster {
        name: name.clone(),
        alt_stat_name: target
            .instance
            .as_ref()
            .map(|instance| mesh.inbound_stat_name(&instance.service, &instance.port))
            .unwrap_or_default(),
        lb_policy: LbPolicy::RoundRobin as i32,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(load_assignment(&name, target)),
        metadata: service.map(|service| service_metadata(&[(service, target.service_port)])),
        ..Cluster::default()
    };
    if target.is_passthrough {
        cluster.lb_policy = LbPolicy::ClusterProvided as i32;
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst as i32,
        ));
        cluster.load_assignment = None;
    }
    let address = target.address.parse::<IpAddr>();
    if target.is_passthrough || address.is_ok_and(|address| !address.is_loopback()) {
        // What the proxy sends to its own pod's address would be captured again if it came from anywhere else.
        cluster.upstream_bind_config = Some(super::inbound_source(view));
    }
    policy.apply_connection_pool(&mut cluster, mesh);
    let common = policy.common_http_options();
    cluster.typed_extension_protocol_options = match target.protocol {
        protocol if protocol.is_http2() => protocol_options::http2(&common, policy.http2_options()),
        Protocol::Http => protocol_options::http1(&common),
        Protocol::Unsupported => protocol_options::downstream(&common, policy.http2_options()),
        _ => protocol_options::Options::new(),
    };
    cluster
}

fn load_assignment(name: &str, target: &Target) -> ClusterLoadAssignment {
    let endpoint = Endpoint {
        address: Some(address(&target.address, target.upstream_port())),
        ..Endpoint::default()
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..LbEndpoint::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

/// Which services a cluster stands for, for telemetry.
pub(super) fn service_metadata(services: &[(&Service, u32)]) -> Metadata {
    let list = services
        .iter()
        .map(|(service, _)| {
            let fields = [
                ("host", &service.host),
                ("name", &service.name),
                ("namespace", &service.namespace),
            ];
            let fields = fields
                .into_iter()
                .map(|(key, value)| (key.to_owned(), string_value(value)))
                .collect();
            Value {
                kind: Some(Kind::StructValue(Struct { fields })),
            }
        })
        .collect();
    let services = Value {
        kind: Some(Kind::ListValue(ListValue { values: list })),
    };
    let istio = Struct {
        fields: BTreeMap::from([("services".to_owned(), services)]),
    };
    Metadata {
        filter_metadata: BTreeMap::from([("istio".to_owned(), istio)]),
        ..Metadata::default()
    }
}
