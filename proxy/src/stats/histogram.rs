//! Histograms with the bucket bounds that Envoy uses for Prometheus; memory is taken at the first value only.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Upper bounds of the buckets, in the statistic's unit (milliseconds for times, bytes for sizes).
pub(crate) const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// The quantiles of Envoy's text form.
pub(crate) const QUANTILES: [f64; 10] =
    [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// How often which values were seen.
#[derive(Debug, Default)]
pub(crate) struct Histogram(OnceLock<Box<Buckets>>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
    largest: AtomicU64,
}

/// A histogram as read at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// Values in each bucket (not cumulative); the last is everything above the last bound.
    pub(crate) counts: [u64; BOUNDS.len() + 1],
    /// Sum of all values.
    pub(crate) sum: u64,
    largest: u64,
}

impl Histogram {
    /// Records one value.
    pub(crate) fn record(&self, value: u64) {
        let buckets = self.0.get_or_init(Box::default);
        #[expect(
            clippy::cast_precision_loss,
            reason = "only compared with coarse bounds"
        )]
        let index = BOUNDS.partition_point(|bound| *bound < value as f64);
        buckets.counts[index].fetch_add(1, Relaxed);
        buckets.sum.fetch_add(value, Relaxed);
        buckets.largest.fetch_max(value, Relaxed);
    }

    /// Reads it; `None` when nothing was recorded.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let buckets = self.0.get()?;
        let mut summary = Summary {
            sum: buckets.sum.load(Relaxed),
            largest: buckets.largest.load(Relaxed),
            ..Summary::default()
        };
        for (count, bucket) in summary.counts.iter_mut().zip(&buckets.counts) {
            *count = bucket.load(Relaxed);
        }
        Some(summary)
    }
}

impl Summary {
    /// How many values were recorded.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value below which `percent` of all values are, interpolated inside its bucket.
    #[expect(clippy::cast_precision_loss, reason = "an estimate by nature")]
    pub(crate) fn quantile(&self, percent: f64) -> f64 {
        let wanted = self.count() as f64 * percent / 100.0;
        let mut seen = 0.0;
        for (index, count) in self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let count = *count as f64;
            if seen + count >= wanted {
                let low = index.checked_sub(1).map_or(0.0, |below| BOUNDS[below]);
                let largest = self.largest as f64;
                let high = BOUNDS
                    .get(index)
                    .map_or(largest, |bound| bound.min(largest));
                return low + (high - low).max(0.0) * ((wanted - seen) / count).clamp(0.0, 1.0);
            }
            seen += count;
        }
        self.largest as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_stay_inside_the_range_of_the_values() {
        let histogram = Histogram::default();
        assert!(histogram.summary().is_none());
        for value in [1, 3, 7, 80] {
            histogram.record(value);
        }
        let summary = histogram.summary().unwrap();
        assert_eq!((summary.count(), summary.sum), (4, 91));
        assert!(summary.quantile(50.0) <= 5.0);
        assert!((summary.quantile(100.0) - 80.0).abs() < f64::EPSILON);
    }
}
