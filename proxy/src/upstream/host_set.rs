//! The hosts of a cluster by priority and locality, frozen: what the load balancer chooses from.
//!
//! Rebuilt as a whole when membership or health changes. Follows Envoy: a priority's health is `min(100, 140 % × healthy share)`;
//! traffic fills priority 0 first and spills over; when all priorities together are short of 100, a priority under its panic
//! threshold treats all its hosts as healthy.

use super::{Host, Locality, cluster_config::LbPolicy, load_balancer::Table};
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
    /// The share of traffic of each priority, in percent; their sum is 100, or 0 when there are no hosts.
    pub(crate) loads: Vec<u32>,
}

/// One priority.
#[derive(Default)]
pub(crate) struct HostSet {
    /// All hosts.
    pub(crate) hosts: Vec<Arc<Host>>,
    /// How many are healthy.
    pub(crate) healthy: usize,
    /// Whether all hosts are used because too few are healthy.
    pub(crate) is_panic: bool,
    /// What traffic goes to: the healthy hosts, or all in panic.
    pub(crate) usable: Pool,
    /// The same by locality, with cumulative weights; empty unless locality weights apply.
    pub(crate) by_locality: Vec<(u64, Pool)>,
}

/// Hosts to choose from, and what the algorithm has prepared.
#[derive(Default)]
pub(crate) struct Pool {
    /// The hosts.
    pub(crate) hosts: Vec<Arc<Host>>,
    /// The algorithm's table.
    pub(crate) table: Table,
}

/// What the cluster's configuration says about building sets.
#[derive(Clone, Copy)]
pub(crate) struct BuildOptions<'a> {
    /// The algorithm.
    pub(crate) policy: &'a LbPolicy,
    /// Percent under which a priority panics.
    pub(crate) panic_threshold: f64,
    /// Whether locality weights apply.
    pub(crate) is_locality_weighted: bool,
    /// 140 unless the assignment says otherwise.
    pub(crate) overprovisioning: u32,
}

impl HostSets {
    /// Freezes `localities`.
    pub(crate) fn build(localities: Vec<LocalityEndpoints>, options: BuildOptions<'_>) -> Self {
        let count = localities
            .iter()
            .map(|one| one.priority as usize + 1)
            .max()
            .unwrap_or(0);
        let mut members: Vec<Vec<&LocalityEndpoints>> = vec![Vec::new(); count];
        for one in &localities {
            members[one.priority as usize].push(one);
        }
        let health: Vec<u32> = members
            .iter()
            .map(|members| health(members, options.overprovisioning))
            .collect();
        let total: u32 = health.iter().sum::<u32>().min(100);
        let priorities: Vec<HostSet> = members
            .iter()
            .map(|members| HostSet::build(members, total, options))
            .collect();
        let loads = loads(&health, total, &priorities);
        Self {
            localities,
            priorities,
            loads,
        }
    }

    /// Every host.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.localities.iter().flat_map(|one| one.hosts.iter())
    }

    /// The priority for a number below 100.
    pub(crate) fn priority_for(&self, percent: u32) -> Option<usize> {
        let mut sum = 0;
        for (index, load) in self.loads.iter().enumerate() {
            sum += load;
            if percent < sum {
                return Some(index);
            }
        }
        None
    }
}

fn health(members: &[&LocalityEndpoints], overprovisioning: u32) -> u32 {
    let (mut all, mut healthy) = (0_u64, 0_u64);
    for host in members.iter().flat_map(|one| one.hosts.iter()) {
        all += 1;
        healthy += u64::from(host.is_healthy());
    }
    if all == 0 {
        return 0;
    }
    u32::try_from((u64::from(overprovisioning) * healthy / all).min(100)).unwrap_or(100)
}

/// Priority 0 gets its health's worth, the next what is left, and so on; rounding goes to the first that has any.
fn loads(health: &[u32], total: u32, priorities: &[HostSet]) -> Vec<u32> {
    if total == 0 {
        // Nobody is healthy: everything goes to the first priority in panic, as Envoy spreads by host count.
        let hosts: Vec<usize> = priorities
            .iter()
            .map(|set| if set.is_panic { set.hosts.len() } else { 0 })
            .collect();
        let sum: usize = hosts.iter().sum();
        if sum == 0 {
            return vec![0; priorities.len()];
        }
        let mut loads: Vec<u32> = hosts
            .iter()
            .map(|count| u32::try_from(count * 100 / sum).unwrap_or(0))
            .collect();
        round_up(&mut loads);
        return loads;
    }
    let mut left = 100;
    let mut loads: Vec<u32> = health
        .iter()
        .map(|health| {
            let load = (health * 100 / total).min(left);
            left -= load;
            load
        })
        .collect();
    round_up(&mut loads);
    loads
}

fn round_up(loads: &mut [u32]) {
    let missing = 100 - loads.iter().sum::<u32>().min(100);
    if let Some(first) = loads.iter_mut().find(|load| **load > 0) {
        *first += missing;
    }
}

impl HostSet {
    #[expect(clippy::cast_precision_loss, reason = "host counts are small")]
    fn build(members: &[&LocalityEndpoints], total_health: u32, options: BuildOptions<'_>) -> Self {
        let hosts: Vec<Arc<Host>> = members
            .iter()
            .flat_map(|one| one.hosts.iter().cloned())
            .collect();
        let healthy = hosts.iter().filter(|host| host.is_healthy()).count();
        let share = if hosts.is_empty() {
            100.0
        } else {
            healthy as f64 * 100.0 / hosts.len() as f64
        };
        let is_panic = total_health < 100 && share < options.panic_threshold && !hosts.is_empty();
        let usable = |host: &&Arc<Host>| is_panic || host.is_healthy();
        let pool = |hosts: Vec<Arc<Host>>| Pool {
            table: Table::build(options.policy, &hosts),
            hosts,
        };
        let mut by_locality = Vec::new();
        if options.is_locality_weighted {
            let mut merged: BTreeMap<&Locality, (u32, Vec<&Arc<Host>>)> = BTreeMap::new();
            for one in members {
                let entry = merged.entry(&one.locality).or_default();
                entry.0 = entry.0.max(one.weight.unwrap_or(0));
                entry.1.extend(&one.hosts);
            }
            let mut cumulative = 0;
            for (weight, members) in merged.into_values() {
                let chosen: Vec<Arc<Host>> =
                    members.iter().copied().filter(usable).cloned().collect();
                // Effective weight: a locality with few healthy hosts gets less.
                let available = if members.is_empty() {
                    0
                } else {
                    u64::from(options.overprovisioning) * chosen.len() as u64 / members.len() as u64
                };
                let effective = u64::from(weight) * available.min(100);
                if effective > 0 {
                    cumulative += effective;
                    by_locality.push((cumulative, pool(chosen)));
                }
            }
        }
        let usable = pool(hosts.iter().filter(usable).cloned().collect());
        Self {
            hosts,
            healthy,
            is_panic,
            usable,
            by_locality,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::host::testing::host;

    fn locality(priority: u32, hosts: Vec<Arc<Host>>) -> LocalityEndpoints {
        LocalityEndpoints {
            locality: Arc::default(),
            priority,
            weight: None,
            hosts,
        }
    }

    fn build(localities: Vec<LocalityEndpoints>) -> HostSets {
        let options = BuildOptions {
            policy: &LbPolicy::RoundRobin,
            panic_threshold: 50.0,
            is_locality_weighted: false,
            overprovisioning: 140,
        };
        HostSets::build(localities, options)
    }

    #[test]
    fn traffic_spills_to_the_next_priority_with_overprovisioning() {
        let first = vec![host(1, true), host(2, false)];
        let sets = build(vec![locality(0, first), locality(1, vec![host(3, true)])]);
        assert_eq!(sets.loads, vec![70, 30]);
        assert!(!sets.priorities[0].is_panic);
        assert_eq!(sets.priorities[0].usable.hosts.len(), 1);
    }

    #[test]
    fn all_hosts_are_used_when_too_few_are_healthy() {
        let sets = build(vec![locality(
            0,
            vec![host(1, false), host(2, false), host(3, true)],
        )]);
        assert!(sets.priorities[0].is_panic);
        assert_eq!(sets.priorities[0].usable.hosts.len(), 3);
        assert_eq!(sets.loads, vec![100]);
    }

    #[test]
    fn no_hosts_means_no_load() {
        assert_eq!(build(vec![]).priority_for(0), None);
        assert_eq!(build(vec![locality(0, vec![])]).priority_for(0), None);
    }
}
