//! What the whole process shares: identity, clusters, statistics, drain; made once by `run`, immutable afterwards.

use crate::{
    config::Demand,
    http::CodecStats,
    overload::{Overload, OverloadConfig},
    runtime::Runtime,
    stats::{Scope, Store},
    upstream::ClusterManager,
};
use parking_lot::Mutex;
use proto::envoy::config::core::v3::Node;
use proto_component::drain::{Drain, Trigger};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

crate::stat_group! {
    /// `server.…`
    pub(crate) struct ServerStats {
        concurrency: Gauge, days_until_first_cert_expiring: Gauge, hot_restart_epoch: Gauge, initialization_time_ms: Histogram,
        live: Gauge, memory_allocated: Gauge, memory_heap_size: Gauge, memory_physical_size: Gauge, parent_connections: Gauge,
        state: Gauge, stats_recent_lookups: Gauge, total_connections: Gauge, uptime: Gauge, version: Gauge,
    }
}

/// The shared parts, passed as `Arc<ServerContext>`.
pub(crate) struct ServerContext {
    /// The proxy's own node, as sent to xDS servers.
    pub(crate) node: Node,
    /// Every cluster.
    pub(crate) clusters: Arc<ClusterManager>,
    /// Every statistic.
    pub(crate) store: Arc<Store>,
    /// The root of all names.
    pub(crate) stats: Scope,
    /// What codecs of clients' connections count.
    pub(crate) codecs: CodecStats,
    /// Values that can be changed while it runs.
    pub(crate) runtime: Runtime,
    /// `server.…`
    pub(crate) server_stats: Arc<ServerStats>,
    /// When the process began, by the clock on the wall.
    pub(crate) started_at: SystemTime,
    /// When the process began.
    pub(crate) started: Instant,
    /// How long connections may linger when their listener or chain goes away.
    pub(crate) drain_time: Duration,
    /// Signalled when the process shuts down.
    pub(crate) drain: Drain,
    /// Open access-log files.
    pub(crate) sinks: crate::access_log::Sinks,
    /// The tracer of connection managers that name none.
    pub(crate) tracing: OnceLock<proto::envoy::config::trace::v3::tracing::Http>,
    /// What is done when resources run out.
    pub(crate) overload: Overload,
    /// Token buckets that several filters share.
    pub(crate) shared_buckets: crate::network::SharedBuckets,
    /// What requests ask xDS servers for.
    pub(crate) demand: Demand,
    /// Starts the shutdown from inside.
    pub(crate) quit: Trigger,
    /// How many workers there are.
    pub(crate) concurrency: usize,
    /// Text of the access log files that is yet to be written and other things to be done at the very end.
    pub(crate) state: Mutex<ServerState>,
    fails_health_checks: AtomicBool,
}

/// Where the process is in its life, as `/server_info` and `/ready` tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerState {
    /// Before static resources are up.
    PreInitializing,
    /// Waiting for xDS.
    Initializing,
    /// Serving.
    Live,
    /// Told to go.
    Draining,
}

/// What a new [`ServerContext`] is made of.
pub(crate) struct ServerParts {
    /// See [`ServerContext::node`].
    pub(crate) node: Node,
    /// See [`ServerContext::drain_time`].
    pub(crate) drain_time: Duration,
    /// How long a line of an access log may wait.
    pub(crate) log_flush_interval: Duration,
    /// See [`ServerContext::drain`].
    pub(crate) drain: Drain,
    /// See [`ServerContext::quit`].
    pub(crate) quit: Trigger,
    /// See [`ServerContext::concurrency`].
    pub(crate) concurrency: usize,
    /// See [`ServerContext::overload`].
    pub(crate) overload: OverloadConfig,
}

impl ServerContext {
    /// The shared parts of a new process.
    pub(crate) fn new(parts: ServerParts) -> Arc<Self> {
        let store = Arc::new(Store::default());
        let stats = store.root();
        let runtime = Runtime::new(&stats);
        Arc::new(Self {
            node: parts.node,
            clusters: Arc::new(ClusterManager::new(&stats, runtime.view())),
            store,
            codecs: CodecStats::default(),
            runtime,
            server_stats: stats.scope("server").group(),
            started_at: SystemTime::now(),
            started: Instant::now(),
            drain_time: parts.drain_time,
            drain: parts.drain,
            sinks: crate::access_log::Sinks::new(parts.log_flush_interval),
            tracing: OnceLock::new(),
            overload: Overload::new(parts.overload, &stats),
            shared_buckets: crate::network::SharedBuckets::default(),
            demand: Demand::default(),
            quit: parts.quit,
            concurrency: parts.concurrency,
            state: Mutex::new(ServerState::PreInitializing),
            fails_health_checks: AtomicBool::new(false),
            stats,
        })
    }

    /// Whether health checks are to fail (`/healthcheck/fail`).
    pub(crate) fn fails_health_checks(&self) -> bool {
        self.fails_health_checks.load(Relaxed)
    }

    /// Lets health checks fail, or not any more.
    pub(crate) fn fail_health_checks(&self, fails: bool) {
        self.fails_health_checks.store(fails, Relaxed);
    }

    /// Where the process is in its life.
    pub(crate) fn state(&self) -> ServerState {
        if self.drain.is_draining() || self.fails_health_checks() {
            ServerState::Draining
        } else {
            *self.state.lock()
        }
    }
}
