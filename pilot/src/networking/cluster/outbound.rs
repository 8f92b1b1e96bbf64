//! Clusters of the services that the proxy can reach.

use proto::envoy::config::cluster::v3::{
    Cluster,
    cluster::{
        ClusterDiscoveryType, CustomClusterType, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
        LbPolicy,
    },
};
use proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::{
    ClusterConfig as DynamicForwardProxy, cluster_config::ClusterImplementationSpecifier,
};
use proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use proto::istio::networking::v1alpha3::{
    connection_pool_settings::{HttpSettings, http_settings::H2UpgradePolicy},
    server_tls_settings::TlSmode,
};

use super::protocol_options::{Common, ServerNames};
use super::{TrafficPolicy, protocol_options, upstream_tls};
use crate::model::{ClusterName, Protocol, Resolution, Service, ServicePort};
use crate::networking::wire::{ads, any};
use crate::networking::{View, endpoint};
use crate::push_context::status::Metric;

/// All outbound clusters.
pub(super) fn build(view: &View<'_>) -> Vec<Cluster> {
    let mut clusters = Vec::new();
    let has_sni_routing = view.proxy.is_router() && is_auto_passthrough(view);
    for service in &view.scope.services {
        let rule = view.destination_rule(service);
        for port in &service.ports {
            let host_policy = TrafficPolicy::of_mesh(&view.push.mesh).merge(
                rule.and_then(|rule| rule.traffic_policy.as_ref()),
                port.number,
            );
            let name = ClusterName::outbound(port.number, "", &service.host);
            clusters.push(build_one(view, service, port, &name, &host_policy));
            for subset in rule.iter().flat_map(|rule| &rule.subsets) {
                let policy = host_policy.merge(subset.traffic_policy.as_ref(), port.number);
                let name = ClusterName::outbound(port.number, &subset.name, &service.host);
                clusters.push(build_one(view, service, port, &name, &policy));
            }
        }
    }
    if has_sni_routing {
        let forwarded: Vec<Cluster> = clusters.iter().filter_map(sni_cluster).collect();
        clusters.extend(forwarded);
    }
    clusters
}

/// True when a server of the gateway passes connections on by the cluster in the server name.
fn is_auto_passthrough(view: &View<'_>) -> bool {
    let servers = view.gateway.ports.values().flat_map(|port| &port.tcp);
    servers
        .into_iter()
        .any(|server| server.tls_mode() == Some(TlSmode::AutoPassthrough))
}

/// The same cluster under the name that clients put into the SNI; TLS is already spoken end to end.
fn sni_cluster(cluster: &Cluster) -> Option<Cluster> {
    let name = ClusterName::parse(&cluster.name)?;
    let is_eds = cluster.eds_cluster_config.is_some();
    is_eds.then(|| Cluster {
        name: name.sni(),
        transport_socket: None,
        transport_socket_matches: Vec::new(),
        typed_extension_protocol_options: protocol_options::Options::new(),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.sni(),
        }),
        ..cluster.clone()
    })
}

fn build_one(
    view: &View<'_>,
    service: &Service,
    port: &ServicePort,
    name: &ClusterName,
    policy: &TrafficPolicy<'_>,
) -> Cluster {
    let mesh = &view.push.mesh;
    let mut cluster = Cluster {
        name: name.to_string(),
        alt_stat_name: mesh.outbound_stat_name(service, port, &name.subset),
        metadata: Some(super::inbound::service_metadata(std::slice::from_ref(&(
            service,
            port.number,
        )))),
        ..Cluster::default()
    };
    policy.apply_load_balancer(&mut cluster, mesh);
    policy.apply_connection_pool(&mut cluster, mesh);
    policy.apply_outlier_detection(&mut cluster);
    apply_discovery(view, service, port, name, policy, &mut cluster);
    let is_http2 = apply_protocol(view, service, port, policy, &mut cluster);
    upstream_tls::apply(view, &mut cluster, service, port, name, policy, is_http2);
    cluster
}

fn apply_discovery(
    view: &View<'_>,
    service: &Service,
    port: &ServicePort,
    name: &ClusterName,
    policy: &TrafficPolicy<'_>,
    cluster: &mut Cluster,
) {
    let resolution = if policy.is_passthrough() {
        Resolution::Passthrough
    } else {
        service.resolution
    };
    let discovery = match resolution {
        Resolution::DynamicDns => {
            resolve_each_request(view, cluster);
            return;
        }
        Resolution::Static => DiscoveryType::Eds,
        Resolution::Dns => DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
        // A gateway's connections have no original destination worth keeping.
        Resolution::Passthrough if view.proxy.is_router() => DiscoveryType::Eds,
        Resolution::Passthrough => DiscoveryType::OriginalDst,
    };
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(discovery as i32));
    match discovery {
        DiscoveryType::Eds => {
            cluster.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: cluster.name.clone(),
            });
            if cluster.lb_policy == LbPolicy::ClusterProvided as i32 {
                cluster.lb_policy = LbPolicy::LeastRequest as i32;
            }
        }
        DiscoveryType::OriginalDst => {
            cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            cluster.lb_config = None;
            if let Some(common) = &mut cluster.common_lb_config {
                common.locality_config_specifier = None;
            }
        }
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns | DiscoveryType::Static => {
            cluster.dns_lookup_family = lookup_family(view) as i32;
            resolve_names(view, cluster);
            let mut assignment = endpoint::build_for(view, service, port, name, policy);
            if discovery == DiscoveryType::LogicalDns {
                keep_first_endpoint(&mut assignment);
            }
            if assignment
                .endpoints
                .iter()
                .all(|locality| locality.lb_endpoints.is_empty())
            {
                view.record(Metric::NoInstances, &cluster.name, "no endpoint");
                // Envoy refuses a logical DNS cluster that has nothing to resolve.
                cluster.cluster_discovery_type =
                    Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
            }
            cluster.load_assignment = Some(assignment);
        }
    }
}

#[allow(
    deprecated,
    reason = "Envoy still reads these fields, and its successor for them is not understood by older ones"
)]
fn resolve_names(view: &View<'_>, cluster: &mut Cluster) {
    cluster.dns_refresh_rate = Some(view.push.mesh.dns_refresh_rate);
    cluster.respect_dns_ttl = true;
}

/// Which addresses of a name are looked for: those that the workload can reach.
fn lookup_family(view: &View<'_>) -> DnsLookupFamily {
    match view.proxy.families() {
        (false, true) => DnsLookupFamily::V6Only,
        _ if view.proxy.is_dual_stack() => DnsLookupFamily::All,
        _ => DnsLookupFamily::V4Only,
    }
}

/// The name of each request is resolved when it comes: the filter of the same name in the listeners does it.
fn resolve_each_request(view: &View<'_>, cluster: &mut Cluster) {
    let config = DynamicForwardProxy {
        cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(
            dns_cache(view),
        )),
        ..DynamicForwardProxy::default()
    };
    cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    cluster.lb_config = None;
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
        typed_config: Some(any(&config)),
    }));
}

/// The cache of names that clusters and listeners share.
pub(in crate::networking) fn dns_cache(view: &View<'_>) -> DnsCacheConfig {
    DnsCacheConfig {
        name: "dynamic_forward_proxy_cache".to_owned(),
        dns_lookup_family: lookup_family(view) as i32,
        ..DnsCacheConfig::default()
    }
}

fn keep_first_endpoint(assignment: &mut proto::envoy::config::endpoint::v3::ClusterLoadAssignment) {
    assignment.endpoints.truncate(1);
    if let Some(locality) = assignment.endpoints.first_mut() {
        locality.lb_endpoints.truncate(1);
    }
}

/// Chooses the HTTP version; true for HTTP/2.
fn apply_protocol(
    view: &View<'_>,
    service: &Service,
    port: &ServicePort,
    policy: &TrafficPolicy<'_>,
    cluster: &mut Cluster,
) -> bool {
    let http = policy.connection_pool.and_then(|pool| pool.http.as_ref());
    let common = Common {
        server_names: if service.resolution == Resolution::DynamicDns {
            // Envoy demands it where any name may be asked for.
            ServerNames::Checked
        } else {
            upstream_tls::server_names(view, service, policy)
        },
        ..policy.common_http_options()
    };
    let upgrade = match http.map(HttpSettings::h2_upgrade_policy) {
        Some(H2UpgradePolicy::Upgrade) => true,
        Some(H2UpgradePolicy::DoNotUpgrade) => false,
        Some(H2UpgradePolicy::Default) | None => view.push.mesh.is_h2_upgraded,
    };
    let is_http1 = port.protocol == Protocol::Http;
    let is_http2 = port.protocol.is_http2() || (is_http1 && upgrade);
    cluster.typed_extension_protocol_options = if http.is_some_and(|http| http.use_client_protocol)
    {
        protocol_options::downstream(&common, policy.http2_options())
    } else if is_http2 {
        protocol_options::http2(&common, policy.http2_options())
    } else if port.protocol == Protocol::Unsupported {
        protocol_options::downstream(&common, policy.http2_options())
    } else if is_http1 || common.server_names != ServerNames::Fixed {
        // Requests are led to a port for TLS, too, where it is the proxy that speaks it.
        protocol_options::http1(&common)
    } else {
        protocol_options::Options::new()
    };
    is_http2
}
