//! Token buckets that fill continuously, one atomic number each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::envoy::r#type::v3::TokenBucket;
use tokio::time::Instant;

use crate::invalid::{At as _, Invalid};
use crate::router::timeout::duration;

/// The shortest interval that is worth a timer, in Envoy's eyes.
const SHORTEST: Duration = Duration::from_millis(50);

/// How a bucket fills.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BucketRules {
    max: u32,
    /// Tokens a second.
    rate: f64,
}

/// A bucket. What is kept is the moment at which it was, or would have been, empty: seconds since it was made.
#[derive(Debug)]
pub(super) struct Bucket {
    rules: BucketRules,
    made: Instant,
    empty_at: AtomicU64,
}

/// Buckets for values that only the requests know, the least recently used one makes room.
pub(super) struct DynamicBuckets {
    limit: usize,
    buckets: Mutex<Used>,
}

type Values = Vec<(String, String)>;

#[derive(Default)]
struct Used {
    clock: u64,
    by_value: HashMap<Values, (Arc<Bucket>, u64)>,
}

impl TryFrom<&TokenBucket> for BucketRules {
    type Error = Invalid;

    fn try_from(bucket: &TokenBucket) -> Result<Self, Invalid> {
        let interval = duration(bucket.fill_interval.as_ref())
            .at("fill_interval")?
            .ok_or_else(|| Invalid::new("a fill_interval is needed"))?;
        if interval < SHORTEST {
            return Err(Invalid::new(
                "local rate limit token bucket fill timer must be >= 50ms",
            ));
        }
        let fill = bucket.tokens_per_fill.unwrap_or(1);
        if fill == 0 {
            return Err(Invalid::new("tokens_per_fill must be greater than 0"));
        }
        Ok(BucketRules {
            max: bucket.max_tokens,
            rate: f64::from(fill) / interval.as_secs_f64(),
        })
    }
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rules: BucketRules) -> Self {
        let full_for = -f64::from(rules.max) / rules.rate;
        Bucket {
            rules,
            made: Instant::now(),
            empty_at: AtomicU64::new(full_for.to_bits()),
        }
    }

    /// Another one, full.
    pub(super) fn fresh(&self) -> Self {
        Bucket::new(self.rules)
    }

    /// Takes tokens if there are enough.
    pub(super) fn take(&self, count: u64) -> bool {
        if count == 0 {
            return true;
        }
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let wanted = count as f64;
        let now = self.now();
        let earliest = now - f64::from(self.rules.max) / self.rules.rate;
        self.empty_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
                let empty_at = f64::from_bits(bits).max(earliest);
                let available = (now - empty_at) * self.rules.rate;
                // A hair's breadth, lost in rounding, is not a token.
                (available + 1e-6 >= wanted)
                    .then(|| (empty_at + wanted / self.rules.rate).to_bits())
            })
            .is_ok()
    }

    /// Tokens that are left.
    pub(super) fn remaining(&self) -> u64 {
        let available =
            (self.now() - f64::from_bits(self.empty_at.load(Ordering::Relaxed))) * self.rules.rate;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped"
        )]
        let whole = (available + 1e-6).clamp(0.0, f64::from(self.rules.max)) as u64;
        whole
    }

    /// Tokens of a full bucket.
    pub(super) fn max(&self) -> u64 {
        u64::from(self.rules.max)
    }

    /// Seconds until the next token.
    pub(super) fn reset_seconds(&self) -> u64 {
        let available =
            (self.now() - f64::from_bits(self.empty_at.load(Ordering::Relaxed))) * self.rules.rate;
        let missing = (1.0 - available).max(0.0) / self.rules.rate;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative; `as` cuts what is too large"
        )]
        let seconds = missing.ceil() as u64;
        seconds
    }

    /// Tokens a second.
    pub(super) fn rate(&self) -> f64 {
        self.rules.rate
    }

    fn now(&self) -> f64 {
        self.made.elapsed().as_secs_f64()
    }
}

impl DynamicBuckets {
    /// Room for so many values.
    pub(super) fn new(limit: usize) -> Self {
        DynamicBuckets {
            limit: limit.max(1),
            buckets: Mutex::default(),
        }
    }

    /// As much room, nothing in it.
    pub(super) fn fresh(&self) -> Self {
        DynamicBuckets::new(self.limit)
    }

    /// The bucket of some values.
    pub(super) fn get(&self, values: &[(String, String)], rules: BucketRules) -> Arc<Bucket> {
        let mut used = self.buckets.lock();
        used.clock += 1;
        let clock = used.clock;
        if let Some((bucket, last)) = used.by_value.get_mut(values) {
            *last = clock;
            return bucket.clone();
        }
        if used.by_value.len() >= self.limit {
            let oldest = used
                .by_value
                .iter()
                .min_by_key(|(_, (_, last))| *last)
                .map(|(values, _)| values.clone());
            if let Some(oldest) = oldest {
                used.by_value.remove(&oldest);
            }
        }
        let bucket = Arc::new(Bucket::new(rules));
        used.by_value
            .insert(values.to_vec(), (bucket.clone(), clock));
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills_with_time() {
        let rules = BucketRules { max: 2, rate: 1.0 };
        let bucket = Bucket::new(rules);
        assert_eq!(bucket.remaining(), 2);
        assert!(bucket.take(1) && bucket.take(1) && !bucket.take(1));
        assert_eq!(bucket.reset_seconds(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(bucket.take(1) && !bucket.take(1));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(bucket.take(2) && !bucket.take(1));
        assert!(!Bucket::new(BucketRules { max: 0, rate: 1.0 }).take(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_value_makes_room() {
        let rules = BucketRules { max: 1, rate: 0.01 };
        let buckets = DynamicBuckets::new(2);
        let value = |text: &str| vec![("k".to_owned(), text.to_owned())];
        assert!(buckets.get(&value("a"), rules).take(1));
        assert!(buckets.get(&value("b"), rules).take(1));
        assert!(!buckets.get(&value("a"), rules).take(1));
        assert!(buckets.get(&value("c"), rules).take(1));
        assert!(!buckets.get(&value("a"), rules).take(1));
        assert!(buckets.get(&value("b"), rules).take(1), "b had to go");
    }
}
