//! The circuit breaker towards policy: a Mixer that has not answered several times in a row is left alone for a while, so that
//! requests do not wait for it one after the other. Then one of them tries again.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// So many calls without an answer open it.
const FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The state of a client.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: Cell<u32>,
    /// Until then nobody asks.
    pause: Cell<Option<Instant>>,
}

impl Breaker {
    /// Whether a call may be made. The first after a pause may; the others wait for how it ends.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.pause.get() {
            None => true,
            Some(until) if until <= now => {
                self.pause.set(Some(now + FIRST_PAUSE));
                true
            }
            Some(_) => false,
        }
    }

    /// Mixer has answered.
    pub(super) fn succeeded(&self) {
        self.failures.set(0);
        self.pause.set(None);
    }

    /// Mixer has not; `true` when this opens the breaker. `random` is any number: clients must not come back together.
    pub(super) fn failed(&self, now: Instant, random: u64) -> bool {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        let Some(beyond) = failures.checked_sub(FAILURES) else {
            return false;
        };
        let highest = FIRST_PAUSE
            .saturating_mul(1 << beyond.min(8))
            .min(LONGEST_PAUSE);
        let spread = u64::try_from(highest.as_micros() / 2).unwrap_or(u64::MAX);
        let pause = highest / 2 + Duration::from_micros(random % (spread + 1));
        self.pause.set(Some(now + pause));
        beyond == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_with_a_success() {
        let breaker = Breaker::default();
        let mut now = Instant::now();
        for _ in 1..FAILURES {
            assert!(breaker.admits(now) && !breaker.failed(now, 7));
        }
        assert!(breaker.failed(now, 7));
        assert!(!breaker.admits(now));
        now += FIRST_PAUSE;
        assert!(breaker.admits(now), "one tries");
        assert!(!breaker.admits(now), "the others wait");
        breaker.failed(now, 7);
        assert!(!breaker.admits(now));
        now += LONGEST_PAUSE;
        assert!(breaker.admits(now));
        breaker.succeeded();
        assert!(breaker.admits(now) && breaker.admits(now));
    }
}
