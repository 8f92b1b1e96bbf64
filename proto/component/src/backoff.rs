//! Exponential back-off with a cap and jitter, for everything that is tried again.

use crate::drain::Drain;
use rand::RngExt as _;
use std::time::Duration;

/// One retry loop's delays. The delay doubles up to the cap; each is drawn from ±25 % around it,
/// so that many clients of one server do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
    attempts: u32,
}

impl Backoff {
    /// Starts at `first`, never exceeds `cap` (before jitter).
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            next: first.min(cap),
            attempts: 0,
        }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let base = self.next;
        self.next = base.saturating_mul(2).min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        base.mul_f64(rand::rng().random_range(0.75..1.25))
    }

    /// Waits for the next delay; `false` if the process began to drain meanwhile.
    pub async fn wait(&mut self, drain: &Drain) -> bool {
        let delay = self.next_delay();
        tokio::select! {
            () = tokio::time::sleep(delay) => true,
            () = drain.signaled() => false,
        }
    }

    /// Attempts since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// To be called after a success: the next failure starts from the first delay again.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.cap);
        self.attempts = 0;
    }
}

impl Default for Backoff {
    /// 100 ms to 10 s: a control-plane connection.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_cap_with_jitter() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for base in [100u64, 200, 400, 400] {
            let delay = backoff.next_delay().as_millis();
            let base = u128::from(base);
            assert!(delay >= base * 3 / 4 && delay <= base * 5 / 4, "{delay}");
        }
        assert_eq!(backoff.attempts(), 4);
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(125));
    }
}
