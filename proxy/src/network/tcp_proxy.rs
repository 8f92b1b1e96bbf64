//! TCP proxy: connects a downstream connection with a host of a cluster and copies both ways.

mod copy;

use super::{FactoryContext, Filter, TerminalFilter, log_connection};
use crate::{
    access_log::AccessLogs,
    invalid::{At as _, Invalid},
    listener::Connection,
    stat_group,
    stream_info::{ResponseFlag, StreamInfo},
    upstream::{
        Cluster, LoadBalancerContext, NoHost, Outcome, PoolErrorKind, Priority, TcpConnection,
    },
    wire::duration_or,
    worker::Worker,
};
use copy::{Ended, Limits};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::{Any, Struct};
use proto::envoy::{
    config::core::v3::Metadata,
    extensions::filters::network::tcp_proxy::v3::{TcpProxy as Wire, tcp_proxy::ClusterSpecifier},
    r#type::v3::hash_policy::PolicySpecifier,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::Instant;

/// QUIRK: Envoy's idle timeout is one hour unless the configuration says otherwise; zero is never.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

stat_group! {
    /// `tcp.<stat_prefix>.…`
    pub(crate) struct TcpProxyStats {
        downstream_cx_no_route: Counter, downstream_cx_rx_bytes_buffered: Gauge, downstream_cx_rx_bytes_total: Counter,
        downstream_cx_total: Counter, downstream_cx_tx_bytes_buffered: Gauge, downstream_cx_tx_bytes_total: Counter,
        downstream_flow_control_paused_reading_total: Counter, downstream_flow_control_resumed_reading_total: Counter,
        early_data_received_count_total: Counter, idle_timeout: Counter, max_downstream_connection_duration: Counter,
        upstream_flush_active: Gauge, upstream_flush_total: Counter,
    }
}

/// Cumulative weight, name, metadata that its hosts must have.
type WeightedCluster = (u64, Arc<str>, Option<Struct>);

/// A checked configuration.
struct TcpProxy {
    clusters: Vec<WeightedCluster>,
    metadata_match: Option<Struct>,
    is_hashed_by_source: bool,
    max_connect_attempts: u32,
    limits: Limits,
    logs: AccessLogs,
    stats: Arc<TcpProxyStats>,
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    for (is_set, field) in [
        (wire.tunneling_config.is_some(), "tunneling_config"),
        (wire.on_demand.is_some(), "on_demand"),
        (wire.backoff_options.is_some(), "backoff_options"),
        (wire.upstream_connect_mode != 0, "upstream_connect_mode"),
        (!wire.proxy_protocol_tlvs.is_empty(), "proxy_protocol_tlvs"),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    if wire.stat_prefix.is_empty() {
        return Err(Invalid::new("it is needed").at("stat_prefix"));
    }
    let is_hashed_by_source = match wire.hash_policy.as_slice() {
        [] => false,
        [policy] if matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_))) => true,
        _ => return Err(Invalid::unsupported("anything but source_ip").at("hash_policy")),
    };
    let idle = duration_or(wire.idle_timeout.as_ref(), IDLE_TIMEOUT, "idle_timeout")?;
    let longest = wire
        .max_downstream_connection_duration
        .as_ref()
        .map(crate::wire::duration)
        .transpose()
        .at("max_downstream_connection_duration")?;
    Ok(Filter::Terminal(Arc::new(TcpProxy {
        clusters: clusters(&wire)?,
        metadata_match: wire.metadata_match.as_ref().and_then(lb_fields),
        is_hashed_by_source,
        max_connect_attempts: wire.max_connect_attempts.unwrap_or(1).max(1),
        limits: Limits {
            idle: (!idle.is_zero()).then_some(idle),
            longest,
        },
        logs: AccessLogs::try_new(&wire.access_log, context.server).at("access_log")?,
        stats: context
            .stats
            .scope("tcp")
            .tagged("", "envoy.tcp_prefix", &wire.stat_prefix)
            .group(),
    })))
}

fn lb_fields(metadata: &Metadata) -> Option<Struct> {
    metadata.filter_metadata.get("envoy.lb").cloned()
}

/// Clusters with cumulative weights.
fn clusters(wire: &Wire) -> Result<Vec<WeightedCluster>, Invalid> {
    match &wire.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Ok(vec![(1, name.as_str().into(), None)]),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let mut sum = 0;
            let clusters: Vec<_> = weighted
                .clusters
                .iter()
                .map(|one| {
                    sum += u64::from(one.weight);
                    (
                        sum,
                        Arc::from(one.name.as_str()),
                        one.metadata_match.as_ref().and_then(lb_fields),
                    )
                })
                .collect();
            if sum == 0 {
                return Err(
                    Invalid::new("the weights must not all be zero").at("weighted_clusters")
                );
            }
            Ok(clusters)
        }
        None => Err(Invalid::new("cluster or weighted_clusters is needed")),
    }
}

impl TerminalFilter for TcpProxy {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        async move {
            let mut info = StreamInfo::new(connection.info.clone(), None);
            self.stats.downstream_cx_total.inc();
            let meter = connection.info.meter.clone();
            self.proxy(connection, &mut info).await;
            info.bytes_received = meter.received();
            info.bytes_sent = meter.sent();
            info.end = Some(Instant::now());
            self.stats
                .downstream_cx_rx_bytes_total
                .add(info.bytes_received);
            self.stats.downstream_cx_tx_bytes_total.add(info.bytes_sent);
            log_connection(&self.logs, &info);
        }
        .boxed_local()
    }
}

impl TcpProxy {
    async fn proxy(&self, mut connection: Connection, info: &mut StreamInfo) {
        let worker = connection.worker.clone();
        let (name, metadata) = self.choose_cluster(&connection, worker.random());
        info.upstream.cluster = Some(name.clone());
        let Some(cluster) = worker.clusters.get(&name) else {
            self.stats.downstream_cx_no_route.inc();
            info.flags.set(ResponseFlag::NoClusterFound);
            return;
        };
        let Some(upstream) = self
            .connect(&worker, &cluster, metadata, &connection, info)
            .await
        else {
            return;
        };
        info.upstream.local_address = upstream.stream.local_address();
        let ended = copy::run(&mut connection, upstream.stream, self.limits).await;
        match ended {
            Ended::Idle => self.stats.idle_timeout.inc(),
            Ended::TooLong => {
                self.stats.max_downstream_connection_duration.inc();
                info.flags.set(ResponseFlag::DurationTimeout);
            }
            Ended::UpstreamReset => info.flags.set(ResponseFlag::UpstreamConnectionTermination),
            Ended::DownstreamReset => info
                .flags
                .set(ResponseFlag::DownstreamConnectionTermination),
            Ended::Finished | Ended::Drained => {}
        }
    }

    fn choose_cluster(&self, connection: &Connection, random: u64) -> (Arc<str>, Option<&Struct>) {
        if let Some(name) = &connection.info.cluster_override {
            return (name.clone(), self.metadata_match.as_ref());
        }
        let total = self.clusters.last().map_or(1, |(sum, _, _)| *sum);
        let index = self
            .clusters
            .partition_point(|(sum, _, _)| *sum <= random % total);
        let (_, name, metadata) = &self.clusters[index];
        (
            name.clone(),
            metadata.as_ref().or(self.metadata_match.as_ref()),
        )
    }

    async fn connect(
        &self,
        worker: &Worker,
        cluster: &Arc<Cluster>,
        metadata: Option<&Struct>,
        connection: &Connection,
        info: &mut StreamInfo,
    ) -> Option<TcpConnection> {
        let hash = self
            .is_hashed_by_source
            .then(|| hash_ip(connection.info.remote_address));
        for attempt in 1..=self.max_connect_attempts {
            let context = LoadBalancerContext {
                random: worker.random(),
                hash,
                metadata_match: metadata,
                original_destination: connection
                    .info
                    .is_local_restored
                    .then_some(connection.info.local_address),
                ..LoadBalancerContext::default()
            };
            let host = match cluster.choose_host(&context) {
                Ok(host) => host,
                Err(NoHost::NoHealthyHost | NoHost::NoDestination) => {
                    info.flags.set(ResponseFlag::NoHealthyUpstream);
                    return None;
                }
            };
            info.upstream.attempts = attempt;
            info.upstream.host = Some(host.address_text.clone());
            info.upstream.host_name = Some(host.hostname.clone());
            match worker.pools.tcp(cluster, &host, Priority::Default).await {
                Ok(upstream) => {
                    cluster.report(&host, Outcome::Connected, worker.random());
                    return Some(upstream);
                }
                Err(error) if error.kind == PoolErrorKind::Overflow => {
                    info.flags.set(ResponseFlag::UpstreamOverflow);
                    return None;
                }
                Err(error) => {
                    let outcome = if error.kind == PoolErrorKind::ConnectTimeout {
                        Outcome::Timeout
                    } else {
                        Outcome::LocalFailure
                    };
                    cluster.report(&host, outcome, worker.random());
                    info.upstream.transport_failure = Some(error.text);
                }
            }
        }
        cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
        info.flags.set(ResponseFlag::UpstreamConnectionFailure);
        None
    }
}

fn hash_ip(address: SocketAddr) -> u64 {
    xxhash_rust::xxh64::xxh64(address.ip().to_string().as_bytes(), 0)
}
