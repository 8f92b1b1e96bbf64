//! TCP proxy: connects a downstream connection with a host of a cluster and copies both ways.

mod copy;
mod logs;
mod on_demand;
mod tunnel;

pub(crate) use copy::CopySpace;
pub(crate) use tunnel::Tunnels;

use super::{FactoryContext, Filter, TerminalFilter};
use crate::{
    access_log::LogType,
    filter_state::{CLUSTER, IDLE_TIMEOUT as IDLE, Object},
    invalid::{At as _, Invalid},
    listener::{CloseType, Connection},
    overload::Action,
    stat_group,
    stats::Counter,
    stream_info::{ResponseFlag, StreamInfo},
    transport::ByteTotals,
    upstream::{
        Cluster, Discovery, Host, LoadBalancerContext, NoHost, Outcome, PoolError, PoolErrorKind,
        Priority, TcpOptions, Unresolved,
    },
    wire::duration_or,
    worker::Worker,
};
use bytes::Bytes;
use copy::{Ended, Gone, Limits, Upstream};
use futures::future::{FutureExt as _, LocalBoxFuture};
use logs::Logs;
use on_demand::OnDemand;
use prost_types::{Any, Struct};
use proto::envoy::{
    config::core::v3::{BackoffStrategy, Metadata},
    extensions::filters::network::tcp_proxy::v3::{TcpProxy as Wire, tcp_proxy::ClusterSpecifier},
    r#type::v3::hash_policy::PolicySpecifier,
};
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;
use tunnel::Tunneling;

/// QUIRK: Envoy's idle timeout is one hour unless the configuration says otherwise; zero is never.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

stat_group! {
    /// `tcp.<stat_prefix>.…`
    pub(crate) struct TcpProxyStats {
        downstream_cx_no_route: Counter, downstream_cx_rx_bytes_buffered: Gauge, downstream_cx_rx_bytes_total: Counter,
        downstream_cx_total: Counter, downstream_cx_tx_bytes_buffered: Gauge, downstream_cx_tx_bytes_total: Counter,
        downstream_flow_control_paused_reading_total: Counter, downstream_flow_control_resumed_reading_total: Counter,
        downstream_cx_overload_close: Counter, early_data_received_count_total: Counter, idle_timeout: Counter,
        max_downstream_connection_duration: Counter,
        upstream_flush_active: Gauge, upstream_flush_total: Counter,
    }
}

impl ByteTotals for TcpProxyStats {
    fn counters(&self) -> (&Counter, &Counter) {
        (
            &self.downstream_cx_rx_bytes_total,
            &self.downstream_cx_tx_bytes_total,
        )
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
    backoff: Option<Backoff>,
    tunneling: Option<Tunneling>,
    on_demand: Option<OnDemand>,
    limits: Limits,
    logs: Logs,
    stats: Arc<TcpProxyStats>,
}

/// How long an attempt to connect waits after one that failed.
#[derive(Clone, Copy, Debug)]
struct Backoff {
    base: Duration,
    most: Duration,
}

impl TryFrom<&BackoffStrategy> for Backoff {
    type Error = Invalid;

    fn try_from(wire: &BackoffStrategy) -> Result<Self, Invalid> {
        let base = duration_or(wire.base_interval.as_ref(), Duration::ZERO, "base_interval")?;
        if base < Duration::from_millis(1) {
            return Err(Invalid::new("it must be at least 1ms").at("base_interval"));
        }
        let most = duration_or(wire.max_interval.as_ref(), base * 10, "max_interval")?;
        if most < base {
            return Err(Invalid::new(
                "max_interval must be greater than or equal to the base_interval",
            ));
        }
        Ok(Self { base, most })
    }
}

impl Backoff {
    /// Any time up to the bound that doubles with every attempt.
    fn pause(self, attempt: u32, random: u64) -> Duration {
        let bound = self
            .base
            .saturating_mul(1 << attempt.min(20))
            .min(self.most);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(random % nanos)
    }
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    for (is_set, field) in [
        (
            wire.max_downstream_connection_duration_jitter_percentage
                .is_some(),
            "max_downstream_connection_duration_jitter_percentage",
        ),
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
    let scope = context
        .stats
        .scope("tcp")
        .tagged("", "envoy.tcp_prefix", &wire.stat_prefix);
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
        backoff: wire
            .backoff_options
            .as_ref()
            .map(Backoff::try_from)
            .transpose()
            .at("backoff_options")?,
        tunneling: wire
            .tunneling_config
            .as_ref()
            .map(Tunneling::try_from)
            .transpose()
            .at("tunneling_config")?,
        on_demand: OnDemand::new(wire.on_demand.as_ref(), context, &scope).at("on_demand")?,
        max_connect_attempts: wire.max_connect_attempts.unwrap_or(1).max(1),
        limits: Limits {
            idle: (!idle.is_zero()).then_some(idle),
            longest,
        },
        logs: Logs::new(&wire, context)?,
        stats: scope.group(),
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
    fn serve(self: Arc<Self>, mut connection: Connection) -> LocalBoxFuture<'static, ()> {
        async move {
            let mut info = StreamInfo::new(connection.info.clone(), None);
            self.stats.downstream_cx_total.inc();
            connection.stream.add_up_in(self.stats.clone());
            if self.logs.is_start_logged {
                self.logs.write(&mut info, LogType::TcpConnectionStart);
            }
            self.proxy(connection, &mut info).await;
            info.end = Some(Instant::now());
            self.logs.write(&mut info, LogType::TcpConnectionEnd);
        }
        .boxed_local()
    }
}

impl TcpProxy {
    async fn proxy(&self, mut connection: Connection, info: &mut StreamInfo) {
        let worker = connection.worker.clone();
        if worker.sheds(Action::ShedTcpConnect) {
            self.stats.downstream_cx_overload_close.inc();
            info.flags.set(ResponseFlag::OverloadManager);
            return;
        }
        info.upstream.close = Some(CloseType::Normal);
        let (name, metadata) = self.choose_cluster(&connection, worker.random());
        let cluster = tokio::select! {
            biased;
            cluster = self.cluster(&worker, &name) => cluster,
            () = connection.stream.broken() => {
                info.flags.set(ResponseFlag::DownstreamConnectionTermination);
                return;
            }
        };
        let Some(cluster) = cluster else {
            self.stats.downstream_cx_no_route.inc();
            info.flags.set(ResponseFlag::NoClusterFound);
            info.connection.meter.because("tcp_initializion_failure:3");
            return;
        };
        info.upstream.cluster = Some(cluster.clone());
        let Some(upstream) = self
            .connect(&worker, &cluster, metadata, &connection, info)
            .await
        else {
            return;
        };
        info.upstream.connection = upstream.facts(info).map(Rc::new);
        info.upstream.ready = Some(Instant::now());
        if self.logs.is_connected_logged {
            self.logs.write(info, LogType::TcpUpstreamConnected);
        }
        let limits = self.limits_of(&connection);
        let copying = copy::run(&mut connection, upstream, limits);
        let ended = self.logs.meanwhile(copying, info).await;
        match ended {
            Ended::Idle => {
                self.stats.idle_timeout.inc();
                close_both(info, "tcp_session_idle_timeout");
            }
            Ended::TooLong => {
                self.stats.max_downstream_connection_duration.inc();
                info.flags.set(ResponseFlag::DurationTimeout);
                close_both(info, "max_connection_duration_reached");
            }
            Ended::Shed => {
                self.stats.downstream_cx_overload_close.inc();
                info.flags.set(ResponseFlag::OverloadManager);
            }
            Ended::Drained => info
                .connection
                .meter
                .because("filter_chain_is_being_removed"),
            Ended::UpstreamGone(Gone::Reset) => {
                info.flags.set(ResponseFlag::UpstreamRemoteReset);
                info.upstream.close = Some(CloseType::RemoteReset);
                info.connection.meter.set_reset_by_us();
            }
            Ended::DownstreamGone(Gone::Reset) => info.connection.meter.set_reset(),
            Ended::Finished
            | Ended::UpstreamGone(Gone::Otherwise)
            | Ended::DownstreamGone(Gone::Otherwise) => {}
        }
    }

    /// The limits of a connection; a filter may have left an idle timeout of its own.
    fn limits_of(&self, connection: &Connection) -> Limits {
        let mut limits = self.limits;
        if let Some(Object::Milliseconds(idle)) = connection.info.filter_state.get(IDLE) {
            limits.idle = (*idle > 0).then(|| Duration::from_millis(*idle));
        }
        limits
    }

    /// The cluster called `name`, asked for if it is not known.
    async fn cluster(&self, worker: &Worker, name: &str) -> Option<Arc<Cluster>> {
        let known = worker.clusters.get(name);
        match &self.on_demand {
            Some(on_demand) if known.is_none() => on_demand.find(worker, name).await,
            _ => known,
        }
    }

    fn choose_cluster(&self, connection: &Connection, random: u64) -> (Arc<str>, Option<&Struct>) {
        // As in Envoy what a filter says by name comes before what the client says.
        let named = match connection.info.filter_state.get(CLUSTER) {
            Some(Object::Cluster(name)) => Some(name),
            _ => connection.info.cluster_override.as_ref(),
        };
        if let Some(name) = named {
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
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        metadata: Option<&Struct>,
        connection: &Connection,
        info: &mut StreamInfo,
    ) -> Option<Upstream> {
        let hash = self
            .is_hashed_by_source
            .then(|| hash_ip(connection.info.remote_address));
        let authority = resolve(cluster, connection, info).await?;
        for attempt in 1..=self.max_connect_attempts {
            let context = LoadBalancerContext {
                random: worker.random(),
                hash,
                metadata_match: metadata,
                original_destination: info.original_destination(),
                authority: authority.as_deref(),
                ..LoadBalancerContext::default()
            };
            let host = match cluster.choose_host(&context) {
                Ok(host) => host,
                Err(NoHost::NoHealthyHost | NoHost::NoDestination) => {
                    info.flags.set(ResponseFlag::NoHealthyUpstream);
                    info.connection.meter.because("tcp_initializion_failure:1");
                    return None;
                }
            };
            info.upstream.attempts = attempt;
            info.upstream.set_host(host.clone());
            info.upstream.began = Some(Instant::now());
            match self.open(worker, cluster, &host, info).await {
                Ok(upstream) => {
                    cluster.report(&host, Outcome::Connected, worker.random());
                    return Some(upstream);
                }
                Err(error) if error.kind == PoolErrorKind::Shed => {
                    cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
                    info.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
                    return None;
                }
                Err(error) if error.kind == PoolErrorKind::Overflow => {
                    info.flags.set(ResponseFlag::UpstreamOverflow);
                    info.connection.meter.because("tcp_initializion_failure:2");
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
                    if let Some(backoff) = self.backoff
                        && attempt < self.max_connect_attempts
                    {
                        tokio::time::sleep(backoff.pause(attempt, worker.random())).await;
                    }
                }
            }
        }
        cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
        info.flags.set(ResponseFlag::UpstreamConnectionFailure);
        info.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
        info.connection.meter.because("tcp_initializion_failure:0");
        None
    }
}

impl TcpProxy {
    async fn open(
        &self,
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        info: &StreamInfo,
    ) -> Result<Upstream, PoolError> {
        if let Some(tunneling) = &self.tunneling {
            return tunneling.open(worker, cluster, host, info).await;
        }
        let options = TcpOptions {
            source: info.connection.upstream_source,
            client: Some(info.connection.addresses()),
            ..TcpOptions::default()
        };
        let connected = worker
            .pools
            .tcp_with(cluster, host, Priority::Default, options)
            .await?;
        Ok(Upstream::Stream(Box::new(connected.stream), Bytes::new()))
    }
}

/// Where a connection is to go whose cluster finds hosts by name; nothing for the others. It waits until the name is resolved.
async fn resolve(
    cluster: &Arc<Cluster>,
    connection: &Connection,
    info: &mut StreamInfo,
) -> Option<Option<Arc<str>>> {
    let Discovery::DynamicForwardProxy(cache) = &cluster.config.discovery else {
        return Some(None);
    };
    let host = connection.info.dynamic_host.as_ref();
    let Some(host) = host.filter(|host| *host.cache == *cache.name) else {
        return Some(None);
    };
    match cluster.clone().resolve(&host.authority).await {
        // QUIRK: as in Envoy a name without an address is a cluster without a host.
        Ok(()) | Err(Unresolved::Failed) => Some(Some(host.authority.clone())),
        Err(Unresolved::Overflow) => {
            info.flags.set(ResponseFlag::UpstreamOverflow);
            None
        }
    }
}

/// Both connections are closed by us, for the same reason.
fn close_both(info: &mut StreamInfo, reason: &'static str) {
    info.connection.meter.because(reason);
    info.upstream.close_reason = Some(reason);
}

fn hash_ip(address: SocketAddr) -> u64 {
    xxhash_rust::xxh64::xxh64(address.ip().to_string().as_bytes(), 0)
}
