//! Where requests go: clusters, their hosts, load balancing, circuit breakers, outlier ejection, connection pools.
//!
//! A [`Cluster`] is immutable but for its host sets (an atomic pointer, rebuilt when membership or health changes) and its
//! counters. Pools belong to a worker.

mod circuit_breaker;
mod cluster;
mod cluster_config;
mod cluster_manager;
mod connect;
mod dns;
mod dns_cache;
mod endpoints;
mod event_log;
mod families;
mod grpc_channel;
mod health_check;
mod host;
mod host_set;
mod load_balancer;
mod membership;
mod original_dst;
mod outlier;
mod pool;
mod protocol_options;
mod stats;
mod subset;
mod zone;

pub(crate) use circuit_breaker::{CircuitBreakers, Priority, RequestGuard, RetryGuard};
pub(crate) use cluster::{Cluster, NoHost, Shared};
pub(crate) use cluster_config::{ClusterConfig, Discovery};
pub(crate) use cluster_manager::{ClusterManager, run_zone_routing};
pub(crate) use connect::{Aim, ConnectError, ConnectionGuard, Load, connect};
pub(crate) use dns::{Resolver, run_dns};
pub(crate) use dns_cache::{DnsCacheConfig, Unresolved, run_dns_cache};
pub(crate) use endpoints::Dropped;
pub(crate) use event_log::EventLog;
pub(crate) use grpc_channel::GrpcChannel;
pub(crate) use health_check::run_health_checks;
#[cfg(test)]
pub(crate) use host::testing;
pub(crate) use host::{HealthFlag, Host, HostAddress, Locality};
pub(crate) use host_set::{HostSets, LocalityEndpoints};
pub(crate) use load_balancer::LoadBalancerContext;
pub(crate) use outlier::{Outcome, run_outlier_sweep};
pub(crate) use pool::{
    HttpConnection, PoolError, PoolErrorKind, PoolRequest, Pools, TcpOptions, UpstreamBody,
    UpstreamBodyError,
};
pub(crate) use protocol_options::{Http1Options, HttpProtocolOptions, UpstreamProtocol};
pub(crate) use stats::OriginStats;
