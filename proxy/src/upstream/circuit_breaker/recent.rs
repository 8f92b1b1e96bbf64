//! What a retry budget with an interval is a share of: requests that began lately.

use proto::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::time::Instant;

/// Parts that an interval is counted in.
const PARTS: u64 = 10;
/// The lower half of a number.
const LOWER: u64 = u32::MAX as u64;
/// One more, as the newest is not over.
const SLOTS: usize = 11;

/// How many requests have begun within the last interval, to a tenth of it.
pub(super) struct Recent {
    since: Instant,
    /// Nanoseconds of one part.
    part: u64,
    /// Each of one part: its number in the upper half, how many in the lower.
    slots: [AtomicU64; SLOTS],
}

impl Recent {
    /// Counts if the retry budget has an interval.
    pub(super) fn of(wire: &Thresholds) -> Option<Self> {
        let interval = wire.retry_budget.as_ref()?.budget_interval?;
        let interval = std::time::Duration::try_from(interval).ok()?;
        let part = u64::try_from(interval.as_nanos()).ok()? / PARTS;
        (part > 0).then(|| Recent {
            since: Instant::now(),
            part,
            slots: Default::default(),
        })
    }

    fn now(&self) -> u64 {
        let elapsed = u64::try_from(self.since.elapsed().as_nanos());
        elapsed.unwrap_or(u64::MAX) / self.part
    }

    pub(super) fn note(&self) {
        let now = self.now();
        let slot = usize::try_from(now).unwrap_or_default() % SLOTS;
        let add = |old: u64| {
            let is_same = old >> 32 == now & LOWER;
            Some(if is_same { old + 1 } else { (now << 32) | 1 })
        };
        // There is always something to put there.
        let _ = self.slots[slot].fetch_update(Relaxed, Relaxed, add);
    }

    pub(super) fn count(&self) -> u64 {
        // Another worker may be in the next part already.
        let next = self.now() + 1;
        let slots = self.slots.iter().map(|slot| slot.load(Relaxed));
        let is_recent = |slot: &u64| next.wrapping_sub(slot >> 32) & LOWER <= PARTS + 1;
        slots.filter(is_recent).map(|slot| slot & LOWER).sum()
    }
}
