//! One metric with a series for every set of label values. Counting takes a read lock and atomic additions; only a new set of
//! values takes the write lock.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::prometheus::IntCounter;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::{Kind, MetricInfo};
use crate::lang::Val;
use crate::template::DimensionSet;

/// Label values come from requests: beyond this many sets, what has a new one is counted in one series whose labels all have
/// the value [`OVERFLOW`].
const MAX_SERIES: usize = 50_000;
const OVERFLOW: &str = "__overflow__";

/// A metric.
#[derive(Debug)]
pub(super) struct Family {
    name: String,
    info: MetricInfo,
    bounds: Vec<f64>,
    /// Label names, sorted as dimensions are.
    labels: Vec<String>,
    /// By the hash of the label values; a list for the rare clash.
    series: RwLock<HashMap<u64, Vec<Arc<Series>>, foldhash::fast::RandomState>>,
    /// Counts what found no series of its own.
    overflowed: IntCounter,
    begun: Instant,
}

/// What was counted for one set of label values.
#[derive(Debug)]
struct Series {
    /// Shared with the series of other metrics.
    values: Arc<[Box<str>]>,
    /// The value, or the sum of a distribution: a double's bits.
    sum: AtomicU64,
    count: AtomicU64,
    /// Of a distribution, not cumulated.
    buckets: Box<[AtomicU64]>,
    /// Milliseconds since the family was made.
    touched: AtomicU64,
}

impl Family {
    pub(super) fn new(
        name: &str,
        info: MetricInfo,
        bounds: Vec<f64>,
        overflowed: IntCounter,
    ) -> Self {
        let mut labels = info.label_names.clone();
        labels.sort_unstable();
        Self {
            name: name.to_owned(),
            bounds: match info.kind {
                Kind::Distribution => bounds,
                _ => Vec::new(),
            },
            labels,
            info,
            series: RwLock::default(),
            overflowed,
            begun: Instant::now(),
        }
    }

    /// The description.
    pub(super) fn info(&self) -> &MetricInfo {
        &self.info
    }

    /// Whether these names, sorted, are the labels.
    pub(super) fn fits<'n>(&self, names: impl Iterator<Item = &'n str>) -> bool {
        names.eq(self.labels.iter().map(String::as_str))
    }

    /// Counts `value` for dimensions that fit.
    pub(super) fn record(&self, value: f64, dimensions: &DimensionSet<'_>, now: Instant) {
        let touched = self.millis(now);
        if self.add_to_known(dimensions, value, touched) {
            return;
        }
        if self.series.read().len() < MAX_SERIES {
            self.add_to_new(dimensions, value, touched);
            return;
        }
        self.overflowed.inc();
        let labels = self.labels.iter();
        let overflow = labels.map(|label| (label.as_str(), Val::String(OVERFLOW.into())));
        let overflow = DimensionSet::new(overflow.collect());
        if !self.add_to_known(&overflow, value, touched) {
            self.add_to_new(&overflow, value, touched);
        }
    }

    fn add_to_known(&self, dimensions: &DimensionSet<'_>, value: f64, touched: u64) -> bool {
        let all = self.series.read();
        let mut candidates = all.get(&dimensions.hash()).into_iter().flatten();
        let found = candidates.find(|series| dimensions.is(&series.values));
        found
            .map(|series| self.add(series, value, touched))
            .is_some()
    }

    fn add_to_new(&self, dimensions: &DimensionSet<'_>, value: f64, touched: u64) {
        let mut all = self.series.write();
        let series = all.entry(dimensions.hash()).or_default();
        let position = match series.iter().position(|s| dimensions.is(&s.values)) {
            Some(position) => position,
            None => {
                series.push(Arc::new(Series::new(dimensions, self.bounds.len())));
                series.len() - 1
            }
        };
        self.add(&series[position], value, touched);
    }

    fn add(&self, series: &Series, value: f64, touched: u64) {
        series.touched.store(touched, Ordering::Relaxed);
        let bits = &series.sum;
        if self.info.kind == Kind::Gauge {
            bits.store(value.to_bits(), Ordering::Relaxed);
            return;
        }
        // A counter does not go back.
        if self.info.kind == Kind::Counter && value < 0.0 {
            return;
        }
        let _ = bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            Some((f64::from_bits(bits) + value).to_bits())
        });
        if self.info.kind == Kind::Distribution {
            series.count.fetch_add(1, Ordering::Relaxed);
            let bucket = self.bounds.partition_point(|bound| *bound < value);
            if let Some(bucket) = series.buckets.get(bucket) {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.begun);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Drops what was not counted for `expiry`.
    pub(super) fn expire(&self, now: Instant, expiry: Duration) {
        let expiry = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
        let Some(oldest) = self.millis(now).checked_sub(expiry) else {
            return;
        };
        self.series.write().retain(|_, series| {
            series.retain(|series| series.touched.load(Ordering::Relaxed) > oldest);
            !series.is_empty()
        });
    }

    /// Writes the metric in Prometheus' text form, series sorted by label values.
    pub(super) fn expose(&self, text: &mut String) {
        // Nobody who counts waits for the text.
        let mut sorted: Vec<_> = self.series.read().values().flatten().cloned().collect();
        if sorted.is_empty() {
            return;
        }
        sorted.sort_by(|a, b| a.values.cmp(&b.values));
        let kind = match self.info.kind {
            Kind::Counter => "counter",
            Kind::Distribution => "histogram",
            Kind::Gauge | Kind::Unspecified => "gauge",
        };
        let help = if self.info.description.is_empty() {
            // What Istio showed for a metric without a description.
            &self.info.name
        } else {
            &self.info.description
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {} {help}", self.name);
        let _ = writeln!(text, "# TYPE {} {kind}", self.name);
        for series in sorted {
            self.expose_series(&series, text);
        }
    }

    fn expose_series(&self, series: &Series, text: &mut String) {
        let mut labels = String::new();
        for (name, value) in self.labels.iter().zip(&*series.values) {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(labels, "{name}=\"{value}\",");
        }
        let sum = f64::from_bits(series.sum.load(Ordering::Relaxed));
        let name = &self.name;
        let plain = match labels.trim_end_matches(',') {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        if self.info.kind != Kind::Distribution {
            let _ = writeln!(text, "{name}{plain} {sum}");
            return;
        }
        // The total first: a bucket may grow while we add up, and must not exceed it.
        let count = series.count.load(Ordering::Relaxed);
        let mut below = 0;
        for (bound, bucket) in self.bounds.iter().zip(&series.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let below = below.min(count);
            let _ = writeln!(text, "{name}_bucket{{{labels}le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(text, "{name}_bucket{{{labels}le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{plain} {sum}");
        let _ = writeln!(text, "{name}_count{plain} {count}");
    }
}

impl Series {
    fn new(dimensions: &DimensionSet<'_>, buckets: usize) -> Self {
        Self {
            values: dimensions.texts(),
            sum: AtomicU64::new(0f64.to_bits()),
            count: AtomicU64::new(0),
            buckets: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            touched: AtomicU64::new(0),
        }
    }
}
