//! Statistics under Envoy's names: handles are made once per object and are plain atomics, nothing is looked up on the way.
//!
//! Two ways to have them: a [`stat_group!`](crate::stat_group) (a struct of counters whose names are known; one per cluster, listener,
//! filter configuration: eight bytes a counter, no name stored), or single ones from a [`Scope`] for names that the
//! configuration decides. The [`Store`] holds weak references only: what is gone from the configuration is gone from `/stats`.
//! Tags (Prometheus labels) are said where a scope is opened, so that no regular expression has to find them again.

mod histogram;
mod prometheus;
mod store;

pub(crate) use histogram::{BOUNDS, Histogram, QUANTILES, Summary};
pub(crate) use prometheus::write_prometheus;
pub(crate) use store::{Reading, Scope, Store, Value};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

/// One statistic of a group, for reading.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stat<'a> {
    /// A counter.
    Counter(&'a Counter),
    /// A gauge.
    Gauge(&'a Gauge),
    /// A histogram.
    Histogram(&'a Histogram),
}

/// A struct of statistics; written by [`stat_group!`](crate::stat_group).
pub(crate) trait StatGroup: std::any::Any + Send + Sync {
    /// Shows each statistic with its name.
    fn visit(&self, visitor: &mut dyn FnMut(&str, Stat<'_>));
}

impl Counter {
    /// Adds one.
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Adds `count`.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The sum so far.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Back to zero (`/reset_counters`).
    pub(crate) fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

impl Gauge {
    /// Adds one.
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Takes one away.
    pub(crate) fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Adds so many.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// Takes so many away.
    pub(crate) fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Relaxed);
    }

    /// Sets it.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Declares a struct of statistics whose field names are the statistics' names.
///
/// ```ignore
/// stat_group! {
///     /// What a listener counts.
///     pub(crate) struct ListenerStats { downstream_cx_total: Counter, downstream_cx_active: Gauge }
/// }
/// let stats: Arc<ListenerStats> = scope.group();
/// ```
#[macro_export]
macro_rules! stat_group {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($field:ident: $kind:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name { $(pub(crate) $field: $crate::stats::$kind),* }
        impl $crate::stats::StatGroup for $name {
            fn visit(&self, visitor: &mut dyn FnMut(&str, $crate::stats::Stat<'_>)) {
                $(visitor(stringify!($field), $crate::stats::Stat::$kind(&self.$field));)*
            }
        }
    };
}
