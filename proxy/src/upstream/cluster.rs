//! A cluster at work: configuration, hosts of the moment, breakers, counters, and the choice of a host.

use super::{
    CircuitBreakers, ClusterConfig, Discovery, Host, HostAddress, HostSets, LoadBalancerContext,
    LocalityEndpoints, Outcome,
    cluster_config::{SubsetFallback, has_all},
    host::{HealthFlag, HostParts},
    host_set::{BuildOptions, Pool},
    load_balancer::mix,
    outlier::OutlierDetector,
    stats::{ClusterStats, HealthCheckStats, OriginStats, ResponseCodes},
};
use crate::{
    invalid::{At as _, Invalid},
    stats::Scope,
    wire::AnyAddress,
};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

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
    pub(crate) stats: Arc<ClusterStats>,
    /// Responses by status.
    pub(crate) response_codes: Arc<ResponseCodes>,
    /// Responses by status, of internal requests.
    pub(crate) internal_response_codes: Arc<OriginStats>,
    /// Responses by status, of external requests.
    pub(crate) external_response_codes: Arc<OriginStats>,
    /// Active health checks' counters.
    pub(crate) health_stats: Arc<HealthCheckStats>,
    /// Where its statistics are.
    pub(crate) scope: Scope,
    outlier: Option<OutlierDetector>,
    sets: ArcSwap<HostSets>,
    update: Mutex<()>,
    overprovisioning: AtomicU32,
    original: RwLock<HashMap<SocketAddr, Arc<Original>>>,
    /// Set once the first hosts are known (or known to be none).
    is_initialized: AtomicBool,
    /// Told when that happens.
    pub(crate) initialized: Notify,
    /// Told as well, once, for whoever watches many clusters.
    watcher: OnceLock<Arc<Notify>>,
    /// Counts assignments, so that one can tell whether it is still the newest.
    generation: AtomicU64,
    /// Told when the cluster is no longer wanted: its DNS and health tasks end.
    pub(crate) closed: tokio_util::sync::CancellationToken,
}

struct Original {
    host: Arc<Host>,
    used: Mutex<Instant>,
}

impl Cluster {
    /// A cluster without hosts, or with those of its static assignment.
    pub(crate) fn new(mut config: ClusterConfig, root: &Scope) -> Result<Arc<Self>, Invalid> {
        let assignment = match config.discovery {
            Discovery::Static => config.assignment.take(),
            _ => None,
        };
        let scope = root.tagged("cluster", "envoy.cluster_name", &config.stat_name);
        let outlier = config
            .outlier
            .clone()
            .map(|outlier| OutlierDetector::new(outlier, scope.scope("outlier_detection").group()));
        let cluster = Self {
            breakers: CircuitBreakers::new(config.circuit_breakers.as_ref(), &scope),
            stats: scope.group(),
            response_codes: ResponseCodes::of(&scope),
            internal_response_codes: scope.scope("internal").group(),
            external_response_codes: scope.scope("external").group(),
            // Shown only where hosts are checked.
            health_stats: if config.health_checks.is_empty() {
                Arc::default()
            } else {
                scope.scope("health_check").group()
            },
            outlier,
            sets: ArcSwap::default(),
            update: Mutex::new(()),
            overprovisioning: AtomicU32::new(140),
            original: RwLock::default(),
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
                let localities = cluster.localities(&assignment, &|address| match address {
                    AnyAddress::Name(name, _) => Err(Invalid::new(format!("malformed IP address: {name}. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"))),
                    AnyAddress::Socket(address) => Ok(vec![HostAddress::Socket(*address)]),
                    AnyAddress::Pipe(path) => Ok(vec![HostAddress::Pipe(Arc::new(path.clone()))]),
                }).at("load_assignment")?;
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
        self.outlier.as_ref()
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

    /// Chooses a host for a request.
    pub(crate) fn choose_host(
        &self,
        context: &LoadBalancerContext<'_>,
    ) -> Result<Arc<Host>, NoHost> {
        if let Discovery::OriginalDst { port_override, .. } = self.config.discovery {
            let mut address = context.original_destination.ok_or(NoHost::NoDestination)?;
            if let Some(port) = port_override {
                address.set_port(port);
            }
            return Ok(self.original_host(address));
        }
        let sets = self.sets.load();
        let mut random = context.random;
        let mut chosen = self.choose_once(&sets, context, random);
        if let Some(another) = context.should_select_another {
            for _ in 0..context.select_attempts {
                if chosen.as_ref().is_none_or(|host| !another(host)) {
                    break;
                }
                random = mix(random);
                // A hash always leads to the same host: a retry elsewhere goes without it.
                let context = LoadBalancerContext {
                    hash: None,
                    ..*context
                };
                chosen = self.choose_once(&sets, &context, random);
            }
        }
        chosen.ok_or_else(|| {
            self.stats.upstream_cx_none_healthy.inc();
            NoHost::NoHealthyHost
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "a number below 100")]
    fn choose_once(
        &self,
        sets: &HostSets,
        context: &LoadBalancerContext<'_>,
        random: u64,
    ) -> Option<Arc<Host>> {
        // The priority is drawn from the hash too, so that equal requests stay on one host.
        let percent = (context.hash.unwrap_or(random) % 100) as u32;
        let mut priority = sets.priority_for(percent)?;
        if !context.excluded_priorities.is_empty() {
            priority = (0..sets.loads.len())
                .find(|index| {
                    sets.loads[*index] > 0
                        && !context.excluded_priorities.contains(&(*index as u32))
                })
                .unwrap_or(priority);
        }
        let set = &sets.priorities[priority];
        if set.is_panic {
            self.stats.lb_healthy_panic.inc();
        }
        let random = mix(random);
        let pool = match set.by_locality.last() {
            Some((total, _)) if !set.is_panic => {
                let at = context.hash.unwrap_or(random) % total;
                &set.by_locality[set.by_locality.partition_point(|(sum, _)| *sum <= at)].1
            }
            _ => &set.usable,
        };
        let random = mix(random);
        match (context.metadata_match, self.config.subset_fallback) {
            (Some(criteria), Some(fallback)) => {
                choose_matching(pool, criteria, random).or_else(|| match fallback {
                    SubsetFallback::None => None,
                    SubsetFallback::Any => pool.choose(context.hash, random).cloned(),
                })
            }
            _ => pool.choose(context.hash, random).cloned(),
        }
    }

    fn original_host(&self, address: SocketAddr) -> Arc<Host> {
        if let Some(known) = self.original.read().get(&address) {
            *known.used.lock() = Instant::now();
            return known.host.clone();
        }
        let mut original = self.original.write();
        let entry = original.entry(address).or_insert_with(|| {
            let host = Host::new(HostParts {
                address: HostAddress::Socket(address),
                hostname: "".into(),
                health_check_address: None,
                locality: Arc::default(),
                metadata: None,
                transport: self.config.transport.of_endpoint(None),
                weight: 1,
                health: 0,
            });
            Arc::new(Original {
                host,
                used: Mutex::new(Instant::now()),
            })
        });
        let host = entry.host.clone();
        self.stats.membership_total.set(original.len() as u64);
        self.stats.membership_healthy.set(original.len() as u64);
        host
    }

    /// Forgets original destinations that nobody has used for `unused`.
    pub(crate) fn clean_original(&self, unused: Duration) {
        let mut original = self.original.write();
        original.retain(|_, known| {
            let is_kept =
                known.host.stats.cx_active.value() > 0 || known.used.lock().elapsed() < unused;
            known.host.set_removed(!is_kept);
            is_kept
        });
        self.stats.membership_total.set(original.len() as u64);
        self.stats.membership_healthy.set(original.len() as u64);
    }

    /// The original destinations known now.
    pub(crate) fn original_hosts(&self) -> Vec<Arc<Host>> {
        self.original
            .read()
            .values()
            .map(|known| known.host.clone())
            .collect()
    }

    /// Takes over an assignment whose endpoints have addresses (EDS).
    pub(crate) fn apply_assignment(
        &self,
        assignment: &ClusterLoadAssignment,
    ) -> Result<(), Invalid> {
        let localities = self.localities(assignment, &|address| match address {
            AnyAddress::Socket(address) => Ok(vec![HostAddress::Socket(*address)]),
            AnyAddress::Pipe(path) => Ok(vec![HostAddress::Pipe(Arc::new(path.clone()))]),
            AnyAddress::Name(name, _) => Err(Invalid::new(format!("malformed IP address: {name}"))),
        })?;
        self.stats.update_success.inc();
        self.generation.fetch_add(1, Relaxed);
        self.set_hosts(localities, assignment);
        Ok(())
    }

    /// Replaces the hosts; those that are there already stay the same objects, with their connections and health.
    pub(crate) fn set_hosts(
        &self,
        mut localities: Vec<LocalityEndpoints>,
        assignment: &ClusterLoadAssignment,
    ) {
        let _writer = self.update.lock();
        let overprovisioning = assignment
            .policy
            .as_ref()
            .and_then(|policy| policy.overprovisioning_factor)
            .unwrap_or(140);
        self.overprovisioning.store(overprovisioning, Relaxed);
        let old = self.sets.load_full();
        let mut known: HashMap<HostAddress, Arc<Host>> = old
            .hosts()
            .map(|host| (host.address.clone(), host.clone()))
            .collect();
        let mut has_changed = false;
        for host in localities.iter_mut().flat_map(|one| one.hosts.iter_mut()) {
            let Some(before) = known.remove(&host.address) else {
                has_changed = true;
                continue;
            };
            if before.metadata == host.metadata
                && before.locality == host.locality
                && before.hostname == host.hostname
            {
                before.set_weight(host.weight());
                before.set_eds_health(host_eds(host));
                *host = before;
            } else {
                host.inherit(&before);
                before.set_removed(true);
                has_changed = true;
            }
        }
        for gone in known.values() {
            gone.set_removed(true);
            has_changed = true;
            if let Some(outlier) = &self.outlier {
                outlier.host_left(gone);
            }
        }
        if has_changed {
            self.stats.membership_change.inc();
        }
        self.store(localities);
        self.set_initialized();
    }

    /// Builds the host sets anew after a change of health.
    pub(crate) fn rebuild(&self) {
        let _writer = self.update.lock();
        self.store(self.sets.load().localities.clone());
    }

    fn store(&self, localities: Vec<LocalityEndpoints>) {
        let options = BuildOptions {
            policy: &self.config.policy,
            panic_threshold: self.config.panic_threshold,
            is_locality_weighted: self.config.is_locality_weighted,
            overprovisioning: self.overprovisioning.load(Relaxed),
        };
        let sets = HostSets::build(localities, options);
        let (total, healthy) = sets
            .priorities
            .iter()
            .fold((0, 0), |(total, healthy), set| {
                (total + set.hosts.len(), healthy + set.healthy)
            });
        self.stats.membership_total.set(total as u64);
        self.stats.membership_healthy.set(healthy as u64);
        self.stats.max_host_weight.set(
            sets.hosts()
                .map(|host| u64::from(host.weight()))
                .max()
                .unwrap_or(0),
        );
        self.sets.store(Arc::new(sets));
    }

    /// The cluster is gone: so are its hosts.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        for host in self.sets.load().hosts() {
            host.set_removed(true);
        }
        for host in self.original_hosts() {
            host.set_removed(true);
        }
    }
}

fn host_eds(host: &Host) -> u8 {
    [
        HealthFlag::FAILED_EDS,
        HealthFlag::DRAINING_EDS,
        HealthFlag::DEGRADED_EDS,
    ]
    .iter()
    .filter(|flag| host.has(**flag))
    .map(|flag| flag.0)
    .sum()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the remainder is below a count of hosts"
)]
fn choose_matching(pool: &Pool, criteria: &prost_types::Struct, random: u64) -> Option<Arc<Host>> {
    let matches = || {
        pool.hosts
            .iter()
            .filter(|host| has_all(host.metadata_of("envoy.lb"), criteria))
    };
    let count = matches().count() as u64;
    let index = random.checked_rem(count)?;
    matches().nth(index as usize).cloned()
}
