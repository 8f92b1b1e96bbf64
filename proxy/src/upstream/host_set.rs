//! The hosts of a cluster by priority and locality, frozen: what the load balancer chooses from.
//!
//! Rebuilt as a whole when membership or health changes. Follows Envoy: the health of a priority is
//! `min(100, 140 % × healthy share)`; traffic fills priority 0 first and spills over, first to healthy hosts, then to degraded
//! ones; when all priorities together are short of 100, a priority under its panic threshold treats all its hosts as healthy.

mod loads;

pub(crate) use loads::Loads;

use super::{
    Host, Locality,
    load_balancer::{
        LoadBalancerContext, Pool, mix,
        policy::{Balancing, LbPolicy, LocalityRule},
    },
    stats::ClusterStats,
    subset::Subsets,
    zone::{LocalHosts, ZoneRouting},
};
use crate::runtime::RuntimeView;
use loads::Census;
use std::{collections::BTreeMap, sync::Arc};

/// Endpoints of one locality as discovery told them.
#[derive(Clone)]
pub(crate) struct LocalityEndpoints {
    /// Where they are.
    pub(crate) locality: Arc<Locality>,
    /// 0 is the highest.
    pub(crate) priority: u32,
    /// The locality's weight, if it has one.
    pub(crate) weight: Option<u32>,
    /// The endpoints.
    pub(crate) hosts: Vec<Arc<Host>>,
}

/// All priorities of a cluster.
#[derive(Default)]
pub(crate) struct HostSets {
    /// As discovery told them; what a rebuild starts from.
    pub(crate) localities: Vec<LocalityEndpoints>,
    /// Priority 0 first.
    pub(crate) priorities: Vec<HostSet>,
    /// How traffic is spread over the priorities.
    pub(crate) loads: Loads,
    /// Groups by metadata.
    pub(super) subsets: Option<Box<Subsets>>,
}

/// One priority.
#[derive(Default)]
pub(crate) struct HostSet {
    /// All hosts.
    pub(crate) hosts: Arc<[Arc<Host>]>,
    /// How many are healthy.
    pub(crate) healthy: usize,
    /// How many are degraded.
    pub(crate) degraded: usize,
    /// How many do not count, because nobody has checked them yet.
    pub(crate) excluded: usize,
    /// Whether all hosts are used because too few are healthy.
    pub(crate) is_panic: bool,
    usable: Group,
    fallback: Group,
    zone: Option<ZoneRouting>,
}

/// Hosts that a request may go to: all of them, or by locality.
#[derive(Default)]
struct Group {
    all: Pool,
    /// Cumulative weights; empty unless locality weights apply.
    localities: Vec<(f64, Pool)>,
}

/// What a set is built with.
#[derive(Clone, Copy)]
pub(crate) struct BuildOptions<'a> {
    /// As configured.
    pub(crate) balancing: &'a Balancing,
    /// 140 unless the assignment says otherwise.
    pub(crate) overprovisioning: u32,
    /// Whether locality weights hold at all, and what they are scaled by (subsets).
    pub(crate) scale: Option<&'a BTreeMap<(u32, Arc<Locality>), f64>>,
    /// The proxy's own cluster, for zone-aware routing.
    pub(crate) local: Option<&'a LocalHosts>,
    /// The settings of now.
    pub(crate) runtime: &'a RuntimeView,
}

/// What is wanted of a host while a set is built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Healthy,
    Degraded,
    Anybody,
}

impl BuildOptions<'_> {
    /// The share of healthy hosts that is too small for a priority.
    fn panic_threshold(&self) -> f64 {
        let read = self.runtime.get("upstream.healthy_panic_threshold");
        read.map_or(self.balancing.panic_threshold, |percent: u64| {
            f64::from(u8::try_from(percent).map_or(100, |percent| percent.min(100)))
        })
    }
}

impl HostSets {
    /// Freezes `localities`.
    pub(crate) fn build(localities: Vec<LocalityEndpoints>, options: BuildOptions<'_>) -> Self {
        let mut sets = Self::without_subsets(localities, options);
        if let Some(config) = &options.balancing.subsets {
            sets.subsets = Some(Box::new(Subsets::build(&sets.localities, config, options)));
        }
        sets
    }

    /// As [`Self::build`], for a subset.
    pub(super) fn without_subsets(
        localities: Vec<LocalityEndpoints>,
        options: BuildOptions<'_>,
    ) -> Self {
        let count = localities
            .iter()
            .map(|one| one.priority as usize + 1)
            .max()
            .unwrap_or(0);
        let mut members: Vec<Vec<&LocalityEndpoints>> = vec![Vec::new(); count];
        for one in &localities {
            members[one.priority as usize].push(one);
        }
        let census: Vec<Census> = members
            .iter()
            .map(|members| Census::of(members, options.balancing))
            .collect();
        let (loads, panics) =
            Loads::new(&census, options.overprovisioning, options.panic_threshold());
        let priorities = members
            .iter()
            .enumerate()
            .map(|(index, members)| {
                HostSet::build(members, census[index], panics[index], index, options)
            })
            .collect();
        Self {
            localities,
            priorities,
            loads,
            subsets: None,
        }
    }

    /// Every host.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.localities.iter().flat_map(|one| one.hosts.iter())
    }

    /// Whether there is nobody.
    pub(crate) fn is_empty(&self) -> bool {
        self.hosts().next().is_none()
    }

    /// The priority that has `host`.
    pub(crate) fn priority_of(&self, host: &Arc<Host>) -> Option<u32> {
        let has = |set: &HostSet| set.hosts.iter().any(|one| Arc::ptr_eq(one, host));
        let priority = self.priorities.iter().position(has)?;
        u32::try_from(priority).ok()
    }

    /// Chooses a host. `attempt` counts the times that another was wanted, `active` the cluster's requests under way.
    pub(crate) fn choose(
        &self,
        context: &LoadBalancerContext<'_>,
        balancing: &Balancing,
        random: u64,
        attempt: u32,
        stats: &ClusterStats,
    ) -> Option<Arc<Host>> {
        let (pool, random) = self.pool(context, balancing, random, stats)?;
        let active = stats.upstream_rq_active.value();
        pool.choose(context.hash, random, attempt, active).cloned()
    }

    /// The host that [`Self::choose`] will come to by `random` after `before` other choices, where that can be known.
    pub(crate) fn peek(
        &self,
        balancing: &Balancing,
        random: u64,
        before: usize,
        stats: &ClusterStats,
    ) -> Option<Arc<Host>> {
        let (pool, random) =
            self.pool(&LoadBalancerContext::default(), balancing, random, stats)?;
        // The least busy of one is not known either, as in Envoy.
        let is_least = matches!(balancing.algorithm, LbPolicy::LeastRequest { .. });
        if is_least && pool.hosts.len() < 2 {
            return None;
        }
        pool.peek(random, before).cloned()
    }

    /// The hosts among which the choice is, and what it is drawn by.
    fn pool(
        &self,
        context: &LoadBalancerContext<'_>,
        balancing: &Balancing,
        random: u64,
        stats: &ClusterStats,
    ) -> Option<(&Pool, u64)> {
        let is_hashed = matches!(
            balancing.algorithm,
            LbPolicy::RingHash(..) | LbPolicy::Maglev { .. }
        );
        // Where hosts are hashed the priority is drawn from the hash too, so that equal requests stay on one host.
        let seed = context.hash.filter(|_| is_hashed).unwrap_or(random);
        let (priority, is_degraded) = self.loads.pick(
            u32::try_from(seed % 100).unwrap_or(0),
            context.excluded_priorities,
        )?;
        let set = self.priorities.get(priority)?;
        let random = mix(random);
        if set.is_panic {
            stats.lb_healthy_panic.inc();
            if balancing.fails_on_panic {
                return None;
            }
        }
        if let Some(zone) = set.zone.as_ref().filter(|_| !is_degraded && !set.is_panic)
            && let Some(pool) = zone.choose(mix(random), stats)
        {
            return Some((pool, random));
        }
        let group = if is_degraded && !set.is_panic {
            &set.fallback
        } else {
            &set.usable
        };
        Some((group.pool(mix(random)), random))
    }
}

impl Group {
    fn pool(&self, random: u64) -> &Pool {
        let Some((total, _)) = self.localities.last() else {
            return &self.all;
        };
        let at = super::load_balancer::fraction(random) * total;
        let index = self.localities.partition_point(|(sum, _)| *sum <= at);
        &self.localities[index.min(self.localities.len() - 1)].1
    }
}

impl HostSet {
    fn build(
        members: &[&LocalityEndpoints],
        census: Census,
        is_panic: bool,
        priority: usize,
        options: BuildOptions<'_>,
    ) -> Self {
        let hosts: Arc<[Arc<Host>]> = members
            .iter()
            .flat_map(|one| one.hosts.iter().cloned())
            .collect();
        let usable = if is_panic {
            Wanted::Anybody
        } else {
            Wanted::Healthy
        };
        let group = |wanted| Group::build(members, &hosts, census, wanted, options);
        let zone = (priority == 0 && !is_panic)
            .then(|| ZoneRouting::build(members, options))
            .flatten();
        Self {
            usable: group(usable),
            fallback: if census.degraded > 0 && !is_panic {
                group(Wanted::Degraded)
            } else {
                Group::default()
            },
            zone,
            hosts,
            healthy: census.healthy,
            degraded: census.degraded,
            excluded: census.excluded,
            is_panic,
        }
    }
}

impl Wanted {
    fn takes(self, host: &Host) -> bool {
        match self {
            Self::Healthy => host.is_healthy(),
            Self::Degraded => host.is_degraded(),
            Self::Anybody => true,
        }
    }
}

impl Group {
    fn build(
        members: &[&LocalityEndpoints],
        hosts: &Arc<[Arc<Host>]>,
        census: Census,
        wanted: Wanted,
        options: BuildOptions<'_>,
    ) -> Self {
        let is_everybody = wanted == Wanted::Anybody
            || (wanted == Wanted::Healthy && census.healthy == census.all);
        let chosen: Arc<[Arc<Host>]> = if is_everybody {
            hosts.clone()
        } else {
            let fitting = hosts.iter().filter(|host| wanted.takes(host));
            fitting.cloned().collect()
        };
        if options.balancing.locality != LocalityRule::Weighted || wanted == Wanted::Anybody {
            return Self {
                all: pool(chosen, options, |_| 1.0),
                localities: Vec::new(),
            };
        }
        let localities = weigh(members, wanted, options);
        let is_hashed = matches!(
            options.balancing.algorithm,
            LbPolicy::RingHash(..) | LbPolicy::Maglev { .. }
        );
        if is_hashed {
            // One table for all, in which each host has its part of its locality's weight.
            let factor = |host: &Host| {
                let (weight, hosts) = localities.get(&host.locality)?;
                let sum: f64 = hosts.iter().map(|host| f64::from(host.weight())).sum();
                Some(weight / sum)
            };
            return Self {
                all: pool(chosen, options, |host| factor(host).unwrap_or(0.0)),
                localities: Vec::new(),
            };
        }
        let mut sum = 0.0;
        let localities: Vec<(f64, Pool)> = localities
            .into_values()
            .filter(|(weight, _)| *weight > 0.0)
            .map(|(weight, hosts)| {
                sum += weight;
                (sum, pool(hosts.into(), options, |_| 1.0))
            })
            .collect();
        let all = if localities.is_empty() {
            pool(chosen, options, |_| 1.0)
        } else {
            Pool::default()
        };
        Self { all, localities }
    }
}

/// The weight, the priority and the hosts of a locality that may be named more than once.
type Merged<'a> = (u32, u32, Vec<&'a Arc<Host>>);

/// Each locality's effective weight, its own times its health, with the hosts that are wanted of it.
#[expect(clippy::cast_precision_loss, reason = "host counts are small")]
fn weigh(
    members: &[&LocalityEndpoints],
    wanted: Wanted,
    options: BuildOptions<'_>,
) -> BTreeMap<Arc<Locality>, (f64, Vec<Arc<Host>>)> {
    let mut merged: BTreeMap<Arc<Locality>, Merged<'_>> = BTreeMap::new();
    for one in members {
        let entry = merged.entry(one.locality.clone()).or_default();
        entry.0 = entry.0.max(one.weight.unwrap_or(0));
        entry.1 = one.priority;
        entry.2.extend(&one.hosts);
    }
    let effective = |(locality, (weight, priority, all)): (Arc<Locality>, Merged<'_>)| {
        let ignores_new = options.balancing.ignores_new_hosts;
        let counted = all
            .iter()
            .filter(|host| !host.is_excluded(ignores_new))
            .count();
        let chosen: Vec<Arc<Host>> = all
            .into_iter()
            .filter(|host| wanted.takes(host))
            .cloned()
            .collect();
        let share = if counted == 0 {
            0.0
        } else {
            chosen.len() as f64 / counted as f64
        };
        let available = (f64::from(options.overprovisioning) / 100.0 * share).min(1.0);
        let scale = options.scale.map_or(1.0, |scale| {
            scale
                .get(&(priority, locality.clone()))
                .copied()
                .unwrap_or(1.0)
        });
        (locality, (f64::from(weight) * scale * available, chosen))
    };
    merged.into_iter().map(effective).collect()
}

/// The pool of `hosts` with their weights of the moment.
pub(super) fn pool(
    hosts: Arc<[Arc<Host>]>,
    options: BuildOptions<'_>,
    factor: impl Fn(&Host) -> f64,
) -> Pool {
    let balancing = options.balancing;
    let weights: Vec<f64> = hosts
        .iter()
        .map(|host| {
            let share = balancing
                .slow_start
                .as_ref()
                .map_or(1.0, |slow| slow.share(host.age()));
            f64::from(host.weight()) * share * factor(host)
        })
        .collect();
    Pool::build(&balancing.algorithm, hosts, &weights)
}

#[cfg(test)]
mod tests;
