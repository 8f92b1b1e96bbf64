//! Who belongs to a cluster: assignments taken over, hosts kept as the same objects, host sets built anew.

use super::{
    Cluster, Host, HostAddress, HostSets, LocalityEndpoints,
    cluster_config::Discovery,
    endpoints::{Resolved, drops},
    host::HealthFlag,
    host_set::BuildOptions,
};
use crate::{invalid::Invalid, wire::AnyAddress};
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

impl Cluster {
    /// Takes over an assignment whose endpoints have addresses (EDS).
    pub(crate) fn apply_assignment(
        &self,
        assignment: &ClusterLoadAssignment,
    ) -> Result<(), Invalid> {
        let localities = self.localities(assignment, &|address| match address {
            AnyAddress::Socket(address) => Ok(vec![HostAddress::Socket(*address).into()]),
            AnyAddress::Pipe(path) => Ok(vec![HostAddress::Pipe(Arc::new(path.clone())).into()]),
            AnyAddress::Name(name, _) => Err(Invalid::new(format!("malformed IP address: {name}"))),
        })?;
        self.stats.update_success.inc();
        self.generation.fetch_add(1, Relaxed);
        self.set_hosts(localities, assignment);
        Ok(())
    }

    /// The endpoints of an assignment in place, which have addresses.
    pub(super) fn static_localities(
        &self,
        assignment: &ClusterLoadAssignment,
    ) -> Result<Vec<LocalityEndpoints>, Invalid> {
        self.localities(assignment, &|address| -> Result<Vec<Resolved>, Invalid> {
            match address {
                AnyAddress::Name(name, _) => Err(Invalid::new(format!("malformed IP address: {name}. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"))),
                AnyAddress::Socket(address) => Ok(vec![HostAddress::Socket(*address).into()]),
                AnyAddress::Pipe(path) => Ok(vec![HostAddress::Pipe(Arc::new(path.clone())).into()]),
            }
        })
    }

    /// Replaces the hosts; those that are there already stay the same objects, with their connections and health.
    pub(crate) fn set_hosts(
        &self,
        mut localities: Vec<LocalityEndpoints>,
        assignment: &ClusterLoadAssignment,
    ) {
        let _writer = self.update.lock();
        // Checked with the endpoints.
        let drops = assignment
            .policy
            .as_ref()
            .and_then(|policy| drops(policy).ok());
        self.drops.store(drops.unwrap_or(0), Relaxed);
        let overprovisioning = assignment
            .policy
            .as_ref()
            .and_then(|policy| policy.overprovisioning_factor)
            .unwrap_or(140);
        let mut is_touched =
            self.overprovisioning.swap(overprovisioning, Relaxed) != overprovisioning;
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
            let is_same = before.metadata == host.metadata
                && before.locality == host.locality
                && before.hostname == host.hostname
                && before.more_addresses == host.more_addresses
                && before.health_check == host.health_check;
            if is_same {
                is_touched |= before.weight() != host.weight();
                before.set_weight(host.weight());
                is_touched |= before.set_eds_health(host);
                is_touched |= before.lower(HealthFlag::PENDING_REMOVAL);
                *host = before;
            } else {
                host.inherit(&before);
                before.set_removed(true);
                has_changed = true;
            }
        }
        let stays = !self.config.health_checks.is_empty() && !self.config.drops_removed_hosts;
        for one in &old.localities {
            for gone in one
                .hosts
                .iter()
                .filter(|host| known.contains_key(&host.address))
            {
                let is_unhealthy = gone.has(HealthFlag::FAILED_ACTIVE)
                    || gone.has(HealthFlag::FAILED_EDS)
                    || gone.has(HealthFlag::DRAINING_EDS);
                if stays && !is_unhealthy {
                    // Discovery may be wrong; a host that answers is kept until it does not.
                    gone.raise(HealthFlag::PENDING_REMOVAL);
                    keep(&mut localities, one, gone);
                    continue;
                }
                has_changed = true;
                self.forget(gone);
            }
        }
        if has_changed {
            self.stats.membership_change.inc();
        } else {
            self.stats.update_no_rebuild.inc();
        }
        // Most assignments say what the one before said: tables are not built again for that.
        if has_changed || is_touched || !are_same(&old.localities, &localities) {
            self.store(localities);
        }
        if has_changed {
            self.membership.notify_one();
        }
        self.check_initialized();
    }

    fn forget(&self, gone: &Host) {
        gone.set_removed(true);
        if let Some(outlier) = &self.outlier {
            outlier.host_left(gone);
        }
    }

    /// Health has changed: hosts that only stayed because they were healthy go, the others are sorted anew.
    pub(super) fn health_changed(&self) {
        let _writer = self.update.lock();
        let mut localities = self.sets.load().localities.clone();
        let is_over = |host: &Host| {
            host.has(HealthFlag::PENDING_REMOVAL) && host.has(HealthFlag::FAILED_ACTIVE)
        };
        for one in &mut localities {
            one.hosts.retain(|host| {
                if is_over(host) {
                    self.forget(host);
                    self.stats.membership_change.inc();
                }
                !is_over(host)
            });
        }
        self.store(localities);
        self.check_initialized();
    }

    /// Once its hosts are known, and each has been checked once if they are checked.
    fn check_initialized(&self) {
        if self.config.health_checks.is_empty()
            || !self
                .sets
                .load()
                .hosts()
                .any(|host| host.has(HealthFlag::PENDING_ACTIVE))
        {
            self.set_initialized();
        }
    }

    /// Builds the host sets anew after a change of health or of the shares.
    pub(crate) fn rebuild(&self) {
        let _writer = self.update.lock();
        self.store(self.sets.load().localities.clone());
    }

    pub(super) fn store(&self, localities: Vec<LocalityEndpoints>) {
        let local = self.shared.local.hosts();
        let options = BuildOptions {
            balancing: &self.config.balancing,
            overprovisioning: self.overprovisioning.load(Relaxed),
            scale: None,
            local: local.as_deref(),
            runtime: &self.shared.runtime,
        };
        let sets = HostSets::build(localities, options);
        let stats = &self.stats;
        let sum = |count: fn(&super::host_set::HostSet) -> usize| {
            sets.priorities.iter().map(count).sum::<usize>() as u64
        };
        stats.membership_total.set(sum(|set| set.hosts.len()));
        stats.membership_healthy.set(sum(|set| set.healthy));
        stats.membership_degraded.set(sum(|set| set.degraded));
        stats.membership_excluded.set(sum(|set| set.excluded));
        // QUIRK: Envoy does not look at the weights of hosts that are in the configuration.
        if !matches!(self.config.discovery, Discovery::Static) {
            let heaviest = sets.hosts().map(|host| u64::from(host.weight())).max();
            stats.max_host_weight.set(heaviest.unwrap_or(0));
        }
        if let Some(subsets) = &sets.subsets {
            let (before, now) = (stats.lb_subsets_active.value(), subsets.count() as u64);
            stats.lb_subsets_active.set(now);
            stats.lb_subsets_created.add(now.saturating_sub(before));
            stats.lb_subsets_removed.add(before.saturating_sub(now));
        }
        if local.is_some() {
            stats.lb_recalculate_zone_structures.inc();
        }
        self.shared.local.note(self.name(), &sets.localities);
        self.sets.store(Arc::new(sets));
    }
}

/// Whether two lists have the same hosts in the same places.
fn are_same(old: &[LocalityEndpoints], new: &[LocalityEndpoints]) -> bool {
    let is_same = |(old, new): (&LocalityEndpoints, &LocalityEndpoints)| {
        (old.priority, old.weight) == (new.priority, new.weight)
            && old.locality == new.locality
            && old.hosts.len() == new.hosts.len()
            && old
                .hosts
                .iter()
                .zip(&new.hosts)
                .all(|(old, new)| Arc::ptr_eq(old, new))
    };
    old.len() == new.len() && old.iter().zip(new).all(is_same)
}

/// Puts a host back into its place.
fn keep(localities: &mut Vec<LocalityEndpoints>, place: &LocalityEndpoints, host: &Arc<Host>) {
    let found = localities
        .iter_mut()
        .find(|one| one.locality == place.locality && one.priority == place.priority);
    match found {
        Some(one) => one.hosts.push(host.clone()),
        None => localities.push(LocalityEndpoints {
            locality: place.locality.clone(),
            hosts: vec![host.clone()],
            ..*place
        }),
    }
}
