//! A cluster at work: configuration, hosts of the moment, breakers, counters, and the choice of a host.

use super::{
    CircuitBreakers, ClusterConfig, Discovery, Host, HostSets, LoadBalancerContext, Outcome,
    Resolver,
    circuit_breaker::LimitKeys,
    dns_cache::DnsCache,
    event_log::EventLog,
    load_balancer::{Foresight, mix, policy::LbPolicy},
    original_dst::Originals,
    outlier::OutlierDetector,
    stats::{ClusterGroups, HealthCheckStats, OriginStats},
    zone::LocalCluster,
};
use crate::{
    http::CodecStats,
    invalid::{At as _, Invalid},
    runtime::RuntimeView,
    stats::Scope,
};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Why no host could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoHost {
    /// There is none, or none is healthy.
    #[error("no healthy upstream")]
    NoHealthyHost,
    /// An original destination is needed and not known.
    #[error("no original destination")]
    NoDestination,
}

/// A cluster; passed as `Arc<Cluster>`.
pub(crate) struct Cluster {
    /// As configured.
    pub(crate) config: ClusterConfig,
    /// Circuit breakers.
    pub(crate) breakers: Arc<CircuitBreakers>,
    /// What it counts.
    pub(crate) stats: Arc<ClusterGroups>,
    /// Responses by status that were not good enough; most clusters never have any.
    retried_response_codes: OnceLock<Arc<OriginStats>>,
    /// Active health checks' counters.
    pub(crate) health_stats: Arc<HealthCheckStats>,
    /// What codecs of its connections count.
    pub(crate) codecs: CodecStats,
    /// Where its statistics are.
    pub(crate) scope: Scope,
    pub(super) outlier: Option<Box<OutlierDetector>>,
    pub(super) sets: ArcSwap<HostSets>,
    pub(super) update: Mutex<()>,
    pub(super) overprovisioning: AtomicU32,
    /// The share of requests that is not forwarded, in millionths.
    pub(super) drops: AtomicU32,
    pub(super) original: Originals,
    /// What the next hosts are drawn by, where connections are made to them ahead.
    foresight: Option<Box<Foresight>>,
    pub(super) dns_cache: Option<Box<DnsCache>>,
    /// Told when hosts have come.
    pub(super) membership: Notify,
    /// What all clusters share.
    pub(super) shared: Arc<Shared>,
    /// Set once the first hosts are known (or known to be none).
    is_initialized: AtomicBool,
    /// Told when that happens.
    pub(crate) initialized: Notify,
    /// Told as well, once, for whoever watches many clusters.
    watcher: OnceLock<Arc<Notify>>,
    /// Counts assignments, so that one can tell whether it is still the newest.
    pub(super) generation: AtomicU64,
    /// Told when the cluster is no longer wanted: its DNS and health tasks end.
    pub(crate) closed: tokio_util::sync::CancellationToken,
}

/// What all clusters share.
#[derive(Default)]
pub(crate) struct Shared {
    /// The settings of now.
    pub(crate) runtime: RuntimeView,
    /// The proxy's own cluster.
    pub(crate) local: LocalCluster,
    /// What nobody counts: of clusters whose hosts are not checked.
    unchecked: Arc<HealthCheckStats>,
    /// Where ejections are told.
    pub(crate) outlier_log: OnceLock<EventLog>,
    /// Who is asked for the names of clusters that do not say.
    pub(crate) resolver: OnceLock<Resolver>,
}

impl Shared {
    /// Settings are read there.
    pub(super) fn new(runtime: RuntimeView) -> Self {
        Self {
            runtime,
            ..Self::default()
        }
    }
}

impl Cluster {
    /// A cluster by itself.
    #[cfg(test)]
    pub(crate) fn new(config: ClusterConfig, root: &Scope) -> Result<Arc<Self>, Invalid> {
        Self::with_shared(config, root, &Arc::default())
    }

    /// Who is asked for names: whom the cluster says, or else the bootstrap.
    pub(super) fn resolver(&self, own: Option<&Resolver>) -> Resolver {
        let resolver = own.or(self.shared.resolver.get()).cloned();
        resolver.unwrap_or_default()
    }

    /// Counts of responses that were retried.
    pub(crate) fn retried_response_codes(&self) -> &OriginStats {
        self.retried_response_codes
            .get_or_init(|| self.scope.scope("retry").group())
    }

    /// A cluster without hosts, or with those of its static assignment; `shared` is what it shares with the others.
    pub(crate) fn with_shared(
        mut config: ClusterConfig,
        root: &Scope,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Self>, Invalid> {
        let assignment = match config.discovery {
            Discovery::Static => config.assignment.take(),
            _ => None,
        };
        let scope = root.tagged("cluster", "envoy.cluster_name", &config.stat_name);
        let outlier = config.outlier.take().map(|mut outlier| {
            outlier
                .error_statuses
                .clone_from(&config.http.error_statuses);
            let log = shared.outlier_log.get().cloned();
            Box::new(OutlierDetector::new(
                *outlier,
                scope.scope("outlier_detection").group(),
                log,
            ))
        });
        let cluster = Self {
            breakers: CircuitBreakers::new(
                config.circuit_breakers.take().as_deref(),
                &scope,
                &LimitKeys::new(&config.name, &shared.runtime),
            ),
            stats: scope.group(),
            retried_response_codes: OnceLock::new(),
            // Shown only where hosts are checked.
            health_stats: if config.health_checks.is_empty() {
                shared.unchecked.clone()
            } else {
                scope.scope("health_check").group()
            },
            codecs: CodecStats::default(),
            outlier,
            sets: ArcSwap::default(),
            update: Mutex::new(()),
            overprovisioning: AtomicU32::new(140),
            drops: AtomicU32::new(0),
            original: Originals::default(),
            foresight: (config.preconnect.predictive > 1.0).then(Box::default),
            dns_cache: match &config.discovery {
                Discovery::DynamicForwardProxy(cache) => {
                    Some(Box::new(DnsCache::new(cache.clone(), root)))
                }
                _ => None,
            },
            membership: Notify::new(),
            shared: shared.clone(),
            is_initialized: AtomicBool::new(false),
            initialized: Notify::new(),
            watcher: OnceLock::new(),
            generation: AtomicU64::new(0),
            closed: tokio_util::sync::CancellationToken::new(),
            scope,
            config,
        };
        match (&cluster.config.discovery, assignment) {
            (Discovery::Static, Some(assignment)) => {
                let localities = cluster
                    .static_localities(&assignment)
                    .at("load_assignment")?;
                cluster.set_hosts(localities, &assignment);
            }
            (Discovery::Static | Discovery::OriginalDst { .. }, None) => cluster.set_initialized(),
            (Discovery::StrictDns(_) | Discovery::LogicalDns(_), _)
                if cluster.config.assignment.is_none() =>
            {
                return Err(Invalid::new("a DNS cluster needs names").at("load_assignment"));
            }
            _ => {}
        }
        Ok(Arc::new(cluster))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// The hosts of the moment.
    pub(crate) fn hosts(&self) -> arc_swap::Guard<Arc<HostSets>> {
        self.sets.load()
    }

    /// Outlier ejection, if configured.
    pub(crate) fn outlier(&self) -> Option<&OutlierDetector> {
        self.outlier.as_deref()
    }

    /// Whether its hosts are known.
    pub(crate) fn is_initialized(&self) -> bool {
        self.is_initialized.load(Relaxed)
    }

    /// Its hosts are known now, even if they are none.
    pub(crate) fn set_initialized(&self) {
        if !self.is_initialized.swap(true, Relaxed) {
            self.initialized.notify_waiters();
            if let Some(watcher) = self.watcher.get() {
                watcher.notify_one();
            }
        }
    }

    /// `watcher` is told, too, when its hosts are known.
    pub(crate) fn tell_when_initialized(&self, watcher: Arc<Notify>) {
        // There is one store, which says so once.
        let _ = self.watcher.set(watcher);
    }

    /// The number of the assignment in force.
    pub(crate) fn assignment_generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Notes the version of an assignment that was taken over.
    pub(crate) fn note_version(&self, version: &str) {
        self.stats
            .version
            .set(xxhash_rust::xxh64::xxh64(version.as_bytes(), 0));
    }

    /// Waits until its hosts are known.
    pub(crate) async fn ready(&self) {
        loop {
            let told = self.initialized.notified();
            if self.is_initialized() {
                return;
            }
            told.await;
        }
    }

    /// Takes note of how a request to `host` went; may eject it.
    pub(crate) fn report(&self, host: &Host, outcome: Outcome, random: u64) {
        if let Some(outlier) = &self.outlier
            && outlier.report(self, host, outcome, random)
        {
            self.rebuild();
        }
    }

    /// The priority that a host has now.
    pub(crate) fn priority_of(&self, host: &Arc<Host>) -> Option<u32> {
        self.sets.load().priority_of(host)
    }

    /// Chooses a host for a request.
    pub(crate) fn choose_host(
        &self,
        context: &LoadBalancerContext<'_>,
    ) -> Result<Arc<Host>, NoHost> {
        match self.config.discovery {
            Discovery::OriginalDst { .. } => return self.choose_original(context),
            Discovery::DynamicForwardProxy(_) => return self.choose_resolved(context),
            _ => {}
        }
        let sets = self.sets.load();
        let mut random = self.draw(context.random);
        let mut chosen = self.choose_once(&sets, context, random, 0);
        if let Some(another) = context.should_select_another {
            for attempt in 1..=context.select_attempts {
                if chosen.as_ref().is_none_or(|host| !another(host)) {
                    break;
                }
                random = self.draw(mix(random));
                chosen = self.choose_once(&sets, context, random, attempt);
            }
        }
        chosen.ok_or_else(|| {
            self.stats.upstream_cx_none_healthy.inc();
            NoHost::NoHealthyHost
        })
    }

    fn draw(&self, own: u64) -> u64 {
        let foresight = self.foresight.as_ref();
        foresight.map_or(own, |foresight| foresight.take(own))
    }

    /// The host of a request to come, which will be drawn by `random`; nothing where it cannot be known, or is known of as many
    /// requests as there are hosts.
    pub(super) fn peek_host(&self, random: u64) -> Option<Arc<Host>> {
        let is_unknown = matches!(
            self.config.balancing.algorithm,
            LbPolicy::RingHash(..) | LbPolicy::Maglev { .. } | LbPolicy::ClusterProvided
        );
        let sets = self.sets.load();
        if is_unknown || sets.subsets.is_some() {
            return None;
        }
        let healthy = sets.priorities.iter().map(|set| set.healthy).sum();
        let before = self.foresight.as_ref()?.keep(random, healthy)?;
        sets.peek(&self.config.balancing, random, before, &self.stats)
    }

    fn choose_once(
        &self,
        sets: &HostSets,
        context: &LoadBalancerContext<'_>,
        random: u64,
        attempt: u32,
    ) -> Option<Arc<Host>> {
        match &sets.subsets {
            Some(subsets) => subsets.choose(sets, context, random, attempt, &self.stats),
            None => sets.choose(
                context,
                &self.config.balancing,
                random,
                attempt,
                &self.stats,
            ),
        }
    }

    /// A health check has found `host` well: an ejection may end.
    pub(super) fn checked_healthy(&self, host: &Host) {
        if let Some(outlier) = &self.outlier {
            outlier.checked_healthy(self, host);
        }
    }

    /// Builds the host sets anew while hosts are new enough to get less than their share, until the cluster is closed.
    pub(crate) async fn run_slow_start(self: Arc<Self>) {
        let Some(slow) = self.config.balancing.slow_start else {
            return;
        };
        let pause = (slow.window / 100).clamp(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.closed.cancelled() => return,
            }
            // Once more after the window, so that everybody ends with a whole share.
            let is_new = |host: &Arc<Host>| host.age() < slow.window + pause * 2;
            if self.sets.load().hosts().any(is_new) {
                self.rebuild();
            }
        }
    }

    /// The cluster is gone: so are its hosts.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        for host in self.sets.load().hosts() {
            host.set_removed(true);
        }
        for host in self.made_hosts() {
            host.set_removed(true);
        }
    }
}
