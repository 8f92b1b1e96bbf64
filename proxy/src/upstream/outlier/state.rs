//! What outlier detection remembers of a host.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// One host's memory.
#[derive(Debug, Default)]
pub(crate) struct OutlierState {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// How often it was ejected; sinks again while it behaves.
    ejections: AtomicU32,
    /// How often it was ejected in all.
    total: AtomicU32,
    /// When it was ejected last.
    ejected_at: AtomicU64,
    jitter: AtomicU64,
    /// What the host answered.
    pub(crate) external: Window,
    /// What became of the way to the host.
    pub(crate) local: Window,
}

/// Requests of the running interval, and the rate of the one before.
#[derive(Debug, Default)]
pub(crate) struct Window {
    all: AtomicU64,
    good: AtomicU64,
    /// Bits of a float; zero bits for none yet, since a rate of zero is written as -0.
    rate: AtomicU64,
}

/// What an interval came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    pub(super) volume: u64,
    /// In percent.
    pub(super) success: f64,
}

impl Window {
    /// Takes note of one request.
    pub(super) fn record(&self, is_good: bool) {
        self.all.fetch_add(1, Relaxed);
        if is_good {
            self.good.fetch_add(1, Relaxed);
        }
    }

    /// Ends the interval; what has less than `volume` is not shown as a rate.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of requests in an interval"
    )]
    pub(super) fn close(&self, volume: u64) -> Rate {
        let (all, good) = (self.all.swap(0, Relaxed), self.good.swap(0, Relaxed));
        let success = if all == 0 {
            0.0
        } else {
            good as f64 * 100.0 / all as f64
        };
        let shown = if all > 0 && all >= volume {
            (if success > 0.0 { success } else { -0.0 }).to_bits()
        } else {
            0
        };
        self.rate.store(shown, Relaxed);
        Rate {
            volume: all,
            success,
        }
    }

    /// The success rate of the last interval in percent, if there were enough requests.
    pub(crate) fn rate(&self) -> Option<f64> {
        let bits = self.rate.load(Relaxed);
        (bits != 0).then(|| f64::from_bits(bits).abs())
    }
}

impl OutlierState {
    /// Takes over what was learnt about the host that this one replaces.
    pub(crate) fn inherit(&self, old: &Self) {
        for (own, old) in [(&self.ejections, &old.ejections), (&self.total, &old.total)] {
            own.store(old.load(Relaxed), Relaxed);
        }
        for (own, old) in [
            (&self.ejected_at, &old.ejected_at),
            (&self.jitter, &old.jitter),
        ] {
            own.store(old.load(Relaxed), Relaxed);
        }
    }

    pub(super) fn bump_5xx(&self, is_failure: bool) -> u32 {
        bump(&self.consecutive_5xx, is_failure)
    }

    pub(super) fn bump_gateway(&self, is_failure: bool) -> u32 {
        bump(&self.consecutive_gateway, is_failure)
    }

    pub(super) fn bump_local(&self, is_failure: bool) -> u32 {
        bump(&self.consecutive_local, is_failure)
    }

    pub(super) fn reset_5xx(&self) {
        self.consecutive_5xx.store(0, Relaxed);
    }

    pub(super) fn reset_gateway(&self) {
        self.consecutive_gateway.store(0, Relaxed);
    }

    pub(super) fn reset_local(&self) {
        self.consecutive_local.store(0, Relaxed);
    }

    /// How often it was ejected in all.
    pub(super) fn count(&self) -> u32 {
        self.total.load(Relaxed)
    }

    /// It is out from `now` on.
    pub(super) fn ejected(&self, now: u64, jitter: u64, base: Duration, most: Duration) {
        self.ejected_at.store(now, Relaxed);
        self.jitter.store(jitter, Relaxed);
        self.total.fetch_add(1, Relaxed);
        // Beyond the cap it does not count on, so that it is forgiven in time.
        if base.saturating_mul(self.ejections.load(Relaxed)) < most + base {
            self.ejections.fetch_add(1, Relaxed);
        }
    }

    /// It is back.
    pub(super) fn returned(&self) {
        self.reset_5xx();
        self.reset_gateway();
        self.reset_local();
    }

    /// It has behaved for an interval.
    pub(super) fn forgive(&self) {
        let ejections = self.ejections.load(Relaxed);
        if ejections > 0 {
            self.ejections.store(ejections - 1, Relaxed);
        }
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self, now: u64, base: Duration, most: Duration) -> bool {
        let time = base
            .saturating_mul(self.ejections.load(Relaxed).max(1))
            .min(most);
        let time = super::millis(time) + self.jitter.load(Relaxed);
        now.saturating_sub(self.ejected_at.load(Relaxed)) >= time
    }
}

fn bump(count: &AtomicU32, is_failure: bool) -> u32 {
    if is_failure {
        return count.fetch_add(1, Relaxed) + 1;
    }
    // Most responses are good and the count is zero already: do not write then.
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
    0
}
