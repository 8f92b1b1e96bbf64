//! How traffic is spread over priorities: by the share of their hosts that is healthy, with Envoy's overprovisioning and panic.

use super::LocalityEndpoints;
use crate::upstream::load_balancer::policy::Balancing;

/// The share of traffic of each priority, in percent; all together 100, or nothing when nobody can have any.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    pub(super) healthy: Vec<u32>,
    pub(super) degraded: Vec<u32>,
    /// What the shares were made from.
    availability: Vec<(u32, u32)>,
}

/// What a priority has.
#[derive(Clone, Copy, Default)]
pub(super) struct Census {
    pub(super) all: usize,
    pub(super) healthy: usize,
    pub(super) degraded: usize,
    pub(super) excluded: usize,
}

impl Census {
    pub(super) fn of(members: &[&LocalityEndpoints], balancing: &Balancing) -> Self {
        let mut census = Self::default();
        for host in members.iter().flat_map(|one| one.hosts.iter()) {
            census.all += 1;
            census.healthy += usize::from(host.is_healthy());
            census.degraded += usize::from(host.is_degraded());
            census.excluded += usize::from(host.is_excluded(balancing.ignores_new_hosts));
        }
        census
    }

    fn counted(self) -> usize {
        self.all - self.excluded
    }

    fn availability(self, count: usize, overprovisioning: u32) -> u32 {
        if self.counted() == 0 {
            return 0;
        }
        let share = overprovisioning as usize * count / self.counted();
        u32::try_from(share.min(100)).unwrap_or(100)
    }

    #[expect(clippy::cast_precision_loss, reason = "host counts are small")]
    fn is_below(self, threshold: f64) -> bool {
        let percent = |count: usize| {
            if self.counted() == 0 {
                0.0
            } else {
                100.0 * count as f64 / self.counted() as f64
            }
        };
        percent(self.healthy) + percent(self.degraded) < threshold
    }
}

impl Loads {
    /// The shares, and which priorities are in panic.
    pub(super) fn new(
        census: &[Census],
        overprovisioning: u32,
        threshold: f64,
    ) -> (Self, Vec<bool>) {
        let availability: Vec<(u32, u32)> = census
            .iter()
            .map(|one| {
                (
                    one.availability(one.healthy, overprovisioning),
                    one.availability(one.degraded, overprovisioning),
                )
            })
            .collect();
        let mut loads = Self::spread(availability);
        let total = loads.total();
        let nobody = total == 0 && threshold <= 0.0;
        let panics: Vec<bool> = census
            .iter()
            .map(|one| total < 100 && !nobody && one.is_below(threshold))
            .collect();
        if panics.iter().all(|is_panic| *is_panic) {
            loads.by_count(census);
        }
        (loads, panics)
    }

    fn total(&self) -> u32 {
        let sum: u32 = self
            .availability
            .iter()
            .map(|(healthy, degraded)| healthy + degraded)
            .sum();
        sum.min(100)
    }

    /// Priority 0 gets its health's worth, the next what is left, and so on; then degraded hosts; rounding goes to the first.
    fn spread(availability: Vec<(u32, u32)>) -> Self {
        let count = availability.len();
        let mut loads = Self {
            healthy: vec![0; count],
            degraded: vec![0; count],
            availability,
        };
        let total = loads.total();
        if total == 0 {
            return loads;
        }
        let mut left = 100;
        for (load, (healthy, _)) in loads.healthy.iter_mut().zip(&loads.availability) {
            *load = (healthy * 100 / total).min(left);
            left -= *load;
        }
        for (load, (_, degraded)) in loads.degraded.iter_mut().zip(&loads.availability) {
            *load = (degraded * 100 / total).min(left);
            left -= *load;
        }
        let first_healthy = loads
            .availability
            .iter()
            .position(|(healthy, _)| *healthy > 0);
        let first_degraded = loads
            .availability
            .iter()
            .position(|(_, degraded)| *degraded > 0);
        match (first_healthy, first_degraded) {
            (Some(first), _) => loads.healthy[first] += left,
            (None, Some(first)) => loads.degraded[first] += left,
            (None, None) => {}
        }
        loads
    }

    /// Everybody is in panic: traffic is spread by the number of hosts.
    fn by_count(&mut self, census: &[Census]) {
        let sum: usize = census.iter().map(|one| one.all).sum();
        self.degraded.fill(0);
        self.healthy.fill(0);
        if sum == 0 {
            return;
        }
        for (load, one) in self.healthy.iter_mut().zip(census) {
            *load = u32::try_from(one.all * 100 / sum).unwrap_or(0);
        }
        let missing = 100 - self.healthy.iter().sum::<u32>();
        if let Some(first) = census.iter().position(|one| one.all > 0) {
            self.healthy[first] += missing;
        }
    }

    /// The priority for a number below 100, and whether its degraded hosts are meant.
    pub(super) fn pick(&self, percent: u32, excluded: &[u32]) -> Option<(usize, bool)> {
        if !excluded.is_empty() {
            let left = self
                .availability
                .iter()
                .zip(0..)
                .map(|(one, index)| {
                    if excluded.contains(&index) {
                        (0, 0)
                    } else {
                        *one
                    }
                })
                .collect();
            let others = Self::spread(left);
            // When every priority has been tried they are all as good as before.
            if others.total() > 0 {
                return others.pick(percent, &[]);
            }
        }
        let mut sum = 0;
        for (loads, is_degraded) in [(&self.healthy, false), (&self.degraded, true)] {
            for (index, load) in loads.iter().enumerate() {
                sum += load;
                if percent < sum {
                    return Some((index, is_degraded));
                }
            }
        }
        None
    }
}
