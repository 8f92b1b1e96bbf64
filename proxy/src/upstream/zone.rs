//! Zone-aware routing: traffic stays in the proxy's own locality as far as that is fair to the others.
//!
//! Follows Envoy: the share of the proxy's cluster in each locality is set against the upstream's share there. Where the upstream
//! has at least as large a share, everything stays; otherwise the rest goes to localities with capacity to spare.

use super::{
    Host, Locality, LocalityEndpoints,
    host_set::{BuildOptions, pool},
    load_balancer::{
        Pool,
        policy::{LbPolicy, LocalityRule},
    },
    stats::ClusterStats,
};
use crate::runtime;
use arc_swap::ArcSwapOption;
use std::{collections::BTreeMap, sync::Arc};

/// Shares are in hundredths of a percent.
const WHOLE: u64 = 10_000;

/// The proxy's own cluster at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalHosts {
    /// Where the proxy is.
    pub(crate) locality: Locality,
    /// Healthy hosts in each locality.
    pub(crate) counts: BTreeMap<Locality, u64>,
}

/// Where the proxy's own cluster is told.
#[derive(Default)]
pub(crate) struct LocalCluster {
    /// Its name and the proxy's locality; none when the bootstrap names no such cluster.
    pub(crate) own: std::sync::OnceLock<(Arc<str>, Locality)>,
    hosts: ArcSwapOption<LocalHosts>,
    /// Told when it changes, so that other clusters are built anew.
    pub(crate) changed: tokio::sync::Notify,
}

/// How requests to one priority are spread over localities.
pub(super) struct ZoneRouting {
    enabled: u64,
    /// Of 10,000 requests so many stay.
    stay: u64,
    /// The proxy's own locality.
    own: Pool,
    /// The others, with cumulative spare capacity.
    others: Vec<(u64, Pool)>,
}

impl LocalCluster {
    /// The hosts of the moment.
    pub(super) fn hosts(&self) -> Option<Arc<LocalHosts>> {
        self.hosts.load_full()
    }

    /// Takes note of the hosts of a cluster, if it is the one.
    pub(super) fn note(&self, cluster: &str, localities: &[LocalityEndpoints]) {
        let Some((_, locality)) = self.own.get().filter(|(name, _)| **name == *cluster) else {
            return;
        };
        let mut hosts = LocalHosts {
            locality: locality.clone(),
            counts: BTreeMap::new(),
        };
        for one in localities.iter().filter(|one| one.priority == 0) {
            let count = one.hosts.iter().filter(|host| host.is_healthy()).count() as u64;
            *hosts.counts.entry((*one.locality).clone()).or_default() += count;
        }
        if self.hosts.load().as_deref() != Some(&hosts) {
            self.hosts.store(Some(Arc::new(hosts)));
            self.changed.notify_one();
        }
    }
}

impl ZoneRouting {
    /// Works out the shares; nothing where localities do not matter.
    pub(super) fn build(members: &[&LocalityEndpoints], options: BuildOptions<'_>) -> Option<Self> {
        let LocalityRule::ZoneAware { enabled, minimum } = options.balancing.locality else {
            return None;
        };
        let local = options.local?;
        if matches!(
            options.balancing.algorithm,
            LbPolicy::RingHash(..) | LbPolicy::Maglev { .. }
        ) {
            return None;
        }
        let mut upstream: BTreeMap<&Locality, Vec<Arc<Host>>> = BTreeMap::new();
        for one in members {
            let healthy = one.hosts.iter().filter(|host| host.is_healthy());
            upstream
                .entry(&one.locality)
                .or_default()
                .extend(healthy.cloned());
        }
        let total: u64 = upstream.values().map(|hosts| hosts.len() as u64).sum();
        let all: u64 = local.counts.values().sum();
        let own = upstream
            .get(&local.locality)
            .filter(|hosts| !hosts.is_empty())?;
        let least = options
            .runtime
            .get("upstream.zone_routing.min_cluster_size");
        if upstream.len() < 2 || total < least.unwrap_or(minimum) || all == 0 {
            return None;
        }
        let here =
            |locality: &Locality| local.counts.get(locality).copied().unwrap_or(0) * WHOLE / all;
        let there = |hosts: &[Arc<Host>]| hosts.len() as u64 * WHOLE / total;
        let (ours, theirs) = (here(&local.locality), there(own));
        let stay = if theirs >= ours {
            WHOLE
        } else {
            theirs * WHOLE / ours
        };
        let mut spare = 0;
        let mut others = Vec::new();
        if stay < WHOLE {
            for (locality, hosts) in &upstream {
                let (ours, theirs) = (here(locality), there(hosts));
                if **locality == local.locality || theirs <= ours {
                    continue;
                }
                spare += theirs - ours;
                let members: Arc<[Arc<Host>]> = hosts.iter().cloned().collect();
                others.push((spare, pool(members, options, |_| 1.0)));
            }
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a percentage"
        )]
        let enabled = (enabled.clamp(0.0, 100.0) * 100.0) as u64;
        Some(Self {
            enabled,
            stay,
            own: pool(own.iter().cloned().collect(), options, |_| 1.0),
            others,
        })
    }

    /// The pool of a locality; nothing for all of them.
    pub(super) fn choose(&self, random: u64, stats: &ClusterStats) -> Option<&Pool> {
        let enabled = runtime::current("upstream.zone_routing.enabled");
        if random % WHOLE >= enabled.map_or(self.enabled, |percent: u64| percent * WHOLE / 100) {
            return None;
        }
        if self.stay == WHOLE {
            stats.lb_zone_routing_all_directly.inc();
            return Some(&self.own);
        }
        let random = random / WHOLE;
        if random % WHOLE < self.stay {
            stats.lb_zone_routing_sampled.inc();
            return Some(&self.own);
        }
        stats.lb_zone_routing_cross_zone.inc();
        let Some((spare, _)) = self.others.last() else {
            stats.lb_zone_no_capacity_left.inc();
            return None;
        };
        let at = (random / WHOLE) % spare;
        let index = self.others.partition_point(|(sum, _)| *sum <= at);
        self.others.get(index).map(|(_, pool)| pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{
        Discovery,
        host::testing::host_at,
        load_balancer::{mix, policy::Balancing},
    };

    fn routing(upstream: &[(&str, u8)], local: &[(&str, u64)]) -> Option<ZoneRouting> {
        let zone = |name: &str| Locality {
            zone: name.to_owned(),
            ..Locality::default()
        };
        let members: Vec<LocalityEndpoints> = upstream
            .iter()
            .map(|(name, count)| LocalityEndpoints {
                locality: Arc::new(zone(name)),
                priority: 0,
                weight: None,
                hosts: (0..*count).map(|last| host_at(name, last, true)).collect(),
            })
            .collect();
        let wire = proto::yaml::from_str("{name: a}").unwrap();
        let balancing = Balancing::of(&wire, &Discovery::Static).unwrap();
        let local = LocalHosts {
            locality: zone("a"),
            counts: local
                .iter()
                .map(|(name, count)| (zone(name), *count))
                .collect(),
        };
        let options = BuildOptions {
            balancing: &balancing,
            overprovisioning: 140,
            scale: None,
            local: Some(&local),
            runtime: &runtime::RuntimeView::default(),
        };
        ZoneRouting::build(&members.iter().collect::<Vec<_>>(), options)
    }

    #[test]
    fn traffic_stays_while_that_is_fair() {
        let fair = routing(&[("a", 3), ("b", 3)], &[("a", 1), ("b", 1)]).unwrap();
        assert_eq!(fair.stay, WHOLE);
        // Our zone has half of the proxies and a quarter of the hosts: half of our traffic has to leave.
        let unfair = routing(&[("a", 2), ("b", 6)], &[("a", 1), ("b", 1)]).unwrap();
        assert_eq!(unfair.stay, WHOLE / 2);
        let stats = ClusterStats::default();
        for seed in 0..1000 {
            assert!(unfair.choose(mix(seed), &stats).is_some());
        }
        let sampled = stats.lb_zone_routing_sampled.value();
        assert!((400..600).contains(&sampled), "{sampled}");
    }

    #[test]
    fn small_clusters_and_lone_zones_are_left_alone() {
        assert!(routing(&[("a", 2), ("b", 2)], &[("a", 1)]).is_none());
        assert!(routing(&[("a", 9)], &[("a", 1)]).is_none());
        assert!(routing(&[("b", 9), ("c", 9)], &[("a", 1)]).is_none());
    }
}
