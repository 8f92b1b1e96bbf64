//! Circuit breakers: how many connections, pending requests, requests and retries a cluster may have at once.
//!
//! The counts are of the whole process (all workers), as Envoy's are.

mod keys;
mod recent;

pub(crate) use keys::LimitKeys;

use super::stats::{BreakerStats, ClusterGroups, RemainingStats};
use crate::stats::Scope;
use proto::envoy::config::cluster::v3::{CircuitBreakers as Wire, circuit_breakers::Thresholds};
use proto::envoy::config::core::v3::RoutingPriority;
use recent::Recent;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::sync::Notify;

/// A route's priority; each has thresholds of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Priority {
    /// The usual.
    #[default]
    Default,
    /// For requests that must get through.
    High,
}

/// The breakers of one cluster.
pub(crate) struct CircuitBreakers {
    levels: [Level; 2],
    /// Connections to one host, by priority.
    by_host: [Option<u64>; 2],
    /// Told when a connection is gone, for those who wait for room.
    pub(crate) connection_freed: Notify,
}

struct Level {
    limits: Limits,
    connections: AtomicU64,
    pending: AtomicU64,
    requests: AtomicU64,
    retries: AtomicU64,
    pools: AtomicU64,
    /// What a retry budget with an interval is a share of.
    recent: Option<Box<Recent>>,
    priority: Priority,
    keys: LimitKeys,
    stats: Arc<ClusterGroups>,
    remaining: Option<Arc<RemainingStats>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Limits {
    connections: u64,
    pending: u64,
    requests: u64,
    retries: u64,
    pools: u64,
    budget: Option<(f64, u64)>,
}

/// One thing that a breaker counts; given back when dropped.
pub(crate) struct Guard {
    breakers: Arc<CircuitBreakers>,
    priority: Priority,
    what: What,
}

/// A request under way.
pub(crate) type RequestGuard = Guard;
/// A retry under way.
pub(crate) type RetryGuard = Guard;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Connection,
    Pending,
    Request,
    Retry,
    Pool,
}

impl Priority {
    /// Envoy's name.
    fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::High => "high",
        }
    }
}

impl CircuitBreakers {
    /// Breakers with the configured thresholds; Envoy's defaults where there are none.
    pub(crate) fn new(wire: Option<&Wire>, scope: &Scope, keys: &LimitKeys) -> Arc<Self> {
        let stats: Arc<ClusterGroups> = scope.group();
        let level = |priority: Priority| {
            let wanted = match priority {
                Priority::Default => RoutingPriority::Default,
                Priority::High => RoutingPriority::High,
            };
            let thresholds = wire.and_then(|wire| {
                wire.thresholds
                    .iter()
                    .find(|one| one.priority == wanted as i32)
            });
            let level = Level {
                limits: Limits::of(thresholds),
                connections: AtomicU64::new(0),
                pending: AtomicU64::new(0),
                requests: AtomicU64::new(0),
                retries: AtomicU64::new(0),
                pools: AtomicU64::new(0),
                recent: thresholds.and_then(Recent::of).map(Box::new),
                priority,
                keys: keys.clone(),
                stats: stats.clone(),
                remaining: thresholds
                    .is_some_and(|thresholds| thresholds.track_remaining)
                    .then(|| {
                        scope
                            .scope("circuit_breakers")
                            .scope(priority.name())
                            .group()
                    }),
            };
            level.show();
            level
        };
        let by_host = |wanted: RoutingPriority| {
            let mut all = wire?.per_host_thresholds.iter();
            let thresholds = all.find(|one| one.priority == wanted as i32)?;
            thresholds.max_connections.map(u64::from)
        };
        Arc::new(Self {
            by_host: [
                by_host(RoutingPriority::Default),
                by_host(RoutingPriority::High),
            ],
            levels: [level(Priority::Default), level(Priority::High)],
            connection_freed: Notify::new(),
        })
    }

    /// Room for a connection to a host that has so many.
    pub(crate) fn connection(self: &Arc<Self>, priority: Priority, has: u64) -> Option<Guard> {
        let most = self.by_host[priority as usize];
        if most.is_some_and(|most| has >= most) {
            return None;
        }
        self.take(priority, What::Connection)
    }

    /// A connection beyond the limit: a pool that has none may always have one.
    pub(crate) fn first_connection(self: &Arc<Self>, priority: Priority) -> Guard {
        self.level(priority).connections.fetch_add(1, Relaxed);
        self.level(priority).show();
        Guard {
            breakers: self.clone(),
            priority,
            what: What::Connection,
        }
    }

    /// Room for a request that waits for a connection.
    pub(crate) fn pending(self: &Arc<Self>, priority: Priority) -> Option<Guard> {
        self.take(priority, What::Pending)
    }

    /// Room for a request.
    pub(crate) fn request(self: &Arc<Self>, priority: Priority) -> Option<RequestGuard> {
        self.take(priority, What::Request)
    }

    /// Room for a pool of connections.
    pub(crate) fn pool(self: &Arc<Self>, priority: Priority) -> Option<Guard> {
        self.take(priority, What::Pool)
    }

    /// Room for a retry: within `max_retries`, or within the retry budget if there is one.
    pub(crate) fn retry(self: &Arc<Self>, priority: Priority) -> Option<RetryGuard> {
        self.take(priority, What::Retry)
    }

    /// The limits of a priority: connections, pending, requests, retries.
    pub(crate) fn limits(&self, priority: Priority) -> [u64; 4] {
        let level = self.level(priority);
        [
            level.limit(What::Connection),
            level.limit(What::Pending),
            level.limit(What::Request),
            level.retries(),
        ]
    }

    fn take(self: &Arc<Self>, priority: Priority, what: What) -> Option<Guard> {
        let level = self.level(priority);
        let (count, limit) = (level.count(what), level.limit(what));
        // Two workers may both see the last place; undone at once by the one that went over.
        if count.fetch_add(1, Relaxed) >= limit {
            count.fetch_sub(1, Relaxed);
            return None;
        }
        if let (What::Request, Some(recent)) = (what, &level.recent) {
            recent.note();
        }
        level.show_one(what);
        Some(Guard {
            breakers: self.clone(),
            priority,
            what,
        })
    }

    fn level(&self, priority: Priority) -> &Level {
        &self.levels[priority as usize]
    }
}

/// Nothing else is counted by host.
pub(super) fn bounds_connections_only(thresholds: &Thresholds) -> bool {
    let only = Thresholds {
        priority: thresholds.priority,
        max_connections: thresholds.max_connections,
        // Accepted and without effect, as in Envoy.
        track_remaining: thresholds.track_remaining,
        ..Thresholds::default()
    };
    *thresholds == only
}

impl Limits {
    fn of(wire: Option<&Thresholds>) -> Self {
        let Some(wire) = wire else {
            return Self {
                connections: 1024,
                pending: 1024,
                requests: 1024,
                retries: 3,
                pools: u64::MAX,
                budget: None,
            };
        };
        let limit = |value: Option<u32>, default: u64| value.map_or(default, u64::from);
        let budget = wire.retry_budget.as_ref().map(|budget| {
            let percent = budget
                .budget_percent
                .as_ref()
                .map_or(20.0, |percent| percent.value);
            (percent / 100.0, limit(budget.min_retry_concurrency, 3))
        });
        Self {
            connections: limit(wire.max_connections, 1024),
            pending: limit(wire.max_pending_requests, 1024),
            requests: limit(wire.max_requests, 1024),
            retries: limit(wire.max_retries, 3),
            pools: limit(wire.max_connection_pools, u64::MAX),
            budget,
        }
    }
}

impl Level {
    fn stats(&self) -> &BreakerStats {
        &self.stats.breakers[self.priority as usize]
    }

    fn count(&self, what: What) -> &AtomicU64 {
        match what {
            What::Connection => &self.connections,
            What::Pending => &self.pending,
            What::Request => &self.requests,
            What::Retry => &self.retries,
            What::Pool => &self.pools,
        }
    }

    fn limit(&self, what: What) -> u64 {
        let read = |name, configured| self.keys.read(self.priority, name).unwrap_or(configured);
        match (what, self.budget()) {
            (What::Connection, _) => read("max_connections", self.limits.connections),
            (What::Pending, _) => read("max_pending_requests", self.limits.pending),
            (What::Request, _) => read("max_requests", self.limits.requests),
            (What::Pool, _) => read("max_connection_pools", self.limits.pools),
            (What::Retry, None) => self.retries(),
            (What::Retry, Some((share, least))) => {
                let active = match &self.recent {
                    Some(recent) => recent.count(),
                    None => self.requests.load(Relaxed) + self.pending.load(Relaxed),
                };
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a share of a small count"
                )]
                let allowed = (active as f64 * share) as u64;
                allowed.max(least)
            }
        }
    }

    fn retries(&self) -> u64 {
        let read = self.keys.read(self.priority, "max_retries");
        read.unwrap_or(self.limits.retries)
    }

    /// The share that retries may have, and how many they always may be.
    fn budget(&self) -> Option<(f64, u64)> {
        let percent: Option<f64> = self.keys.read(self.priority, "retry_budget.budget_percent");
        let least = (self.keys).read(self.priority, "retry_budget.min_retry_concurrency");
        if percent.is_none() && least.is_none() {
            return self.limits.budget;
        }
        let (configured, at_least) = self.limits.budget.unwrap_or((0.2, 3));
        let share = percent.map_or(configured, |percent| percent / 100.0);
        Some((share, least.unwrap_or(at_least)))
    }

    fn show(&self) {
        for what in [
            What::Connection,
            What::Pending,
            What::Request,
            What::Retry,
            What::Pool,
        ] {
            self.show_one(what);
        }
    }

    fn show_one(&self, what: What) {
        let (count, limit) = (self.count(what).load(Relaxed), self.limit(what));
        let stats = self.stats();
        let open = match what {
            What::Connection => &stats.cx_open,
            What::Pending => &stats.rq_pending_open,
            What::Request => &stats.rq_open,
            What::Retry => &stats.rq_retry_open,
            What::Pool => &stats.cx_pool_open,
        };
        open.set(u64::from(count >= limit));
        if let Some(remaining) = &self.remaining {
            let gauge = match what {
                What::Connection => &remaining.remaining_cx,
                What::Pending => &remaining.remaining_pending,
                What::Request => &remaining.remaining_rq,
                What::Retry => &remaining.remaining_retries,
                What::Pool => &remaining.remaining_cx_pools,
            };
            // QUIRK: what is left of a retry budget is not shown.
            let is_budget = what == What::Retry && self.budget().is_some();
            let left = limit.saturating_sub(count);
            gauge.set(if is_budget { 0 } else { left });
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let level = self.breakers.level(self.priority);
        level.count(self.what).fetch_sub(1, Relaxed);
        level.show_one(self.what);
        if self.what == What::Connection {
            let freed = &self.breakers.connection_freed;
            if self.breakers.by_host == [None; 2] {
                freed.notify_one();
            } else {
                // It may be of use to those only who wait for that host.
                freed.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{runtime::Runtime, stats::Store};
    use proto::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
    use proto::envoy::r#type::v3::Percent;

    #[test]
    fn a_full_breaker_refuses_until_something_is_given_back() {
        let scope = Arc::new(Store::default()).root();
        let wire = Wire {
            thresholds: vec![Thresholds {
                max_requests: Some(1),
                max_connection_pools: Some(1),
                ..Thresholds::default()
            }],
            ..Wire::default()
        };
        let breakers = CircuitBreakers::new(Some(&wire), &scope, &LimitKeys::default());
        let first = breakers.request(Priority::Default).unwrap();
        assert!(breakers.request(Priority::Default).is_none());
        assert!(breakers.request(Priority::High).is_some());
        drop(first);
        assert!(breakers.request(Priority::Default).is_some());
        let _pool = breakers.pool(Priority::Default).unwrap();
        assert!(breakers.pool(Priority::Default).is_none());
        assert_eq!(
            breakers.levels[0].stats().cx_pool_open.value(),
            1,
            "the gauge tells"
        );
    }

    #[test]
    fn runtime_says_otherwise() {
        let scope = Arc::new(Store::default()).root();
        let runtime = Runtime::new(&scope);
        runtime.configure(None).unwrap();
        let keys = LimitKeys::new(&"c".into(), &runtime.view());
        let breakers = CircuitBreakers::new(None, &scope, &keys);
        let set = |threshold: &str, value| {
            let key = format!("circuit_breakers.c.default.{threshold}");
            runtime.modify([(key.as_str(), value)].into_iter()).unwrap();
        };
        assert_eq!(breakers.limits(Priority::Default), [1024, 1024, 1024, 3]);
        set("max_requests", "0");
        assert!(breakers.request(Priority::Default).is_none());
        assert!(breakers.request(Priority::High).is_some());
        set("max_requests", "");
        assert!(breakers.request(Priority::Default).is_some());
        set("retry_budget.min_retry_concurrency", "1");
        let retry = breakers.retry(Priority::Default);
        assert!(retry.is_some() && breakers.retry(Priority::Default).is_none());
        set("retry_budget.min_retry_concurrency", "");
        assert!(breakers.retry(Priority::Default).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_budget_with_an_interval_counts_what_has_begun_in_it() {
        let scope = Arc::new(Store::default()).root();
        let budget = RetryBudget {
            budget_percent: Some(Percent { value: 50.0 }),
            min_retry_concurrency: Some(0),
            budget_interval: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
        };
        let wire = Wire {
            thresholds: vec![Thresholds {
                retry_budget: Some(budget),
                ..Thresholds::default()
            }],
            ..Wire::default()
        };
        let breakers = CircuitBreakers::new(Some(&wire), &scope, &LimitKeys::default());
        let pass = |millis| tokio::time::advance(std::time::Duration::from_millis(millis));
        let allowed = || {
            let taken = std::iter::from_fn(|| breakers.retry(Priority::Default));
            taken.collect::<Vec<_>>().len()
        };
        assert_eq!(allowed(), 0);
        // Each is over at once.
        for _ in 0..8 {
            drop(breakers.request(Priority::Default));
        }
        assert_eq!(allowed(), 4);
        pass(600).await;
        for _ in 0..2 {
            drop(breakers.request(Priority::Default));
        }
        assert_eq!(allowed(), 5);
        pass(390).await;
        assert_eq!(allowed(), 5, "all within the interval");
        pass(200).await;
        assert_eq!(allowed(), 1, "the first ones are forgotten");
        pass(3_600_000).await;
        assert_eq!(allowed(), 0);
    }
}
