//! What may go wrong with every request is said once in a while, with how often it has happened since it was last said.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The same is not said again sooner.
const PAUSE: Duration = Duration::from_secs(10);

/// Decides whether something is said.
#[derive(Debug)]
pub(crate) struct Seldom {
    begun: Instant,
    /// Milliseconds from the beginning to when it may be said again.
    next: AtomicU64,
    /// What was not said.
    times: AtomicU64,
}

impl Default for Seldom {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            next: AtomicU64::new(0),
            times: AtomicU64::new(0),
        }
    }
}

impl Seldom {
    /// It has happened; if it is to be said, how often since the last time.
    pub(crate) fn times(&self) -> Option<u64> {
        self.times.fetch_add(1, Ordering::Relaxed);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (now, next) = (
            millis(self.begun.elapsed()),
            self.next.load(Ordering::Relaxed),
        );
        if now < next {
            return None;
        }
        // Of several at once one says it.
        let after = now.saturating_add(millis(PAUSE));
        self.next
            .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        Some(self.times.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_often_is_said_now_and_then() {
        let seldom = Seldom::default();
        assert_eq!(seldom.times(), Some(1));
        for _ in 0..5 {
            assert_eq!(seldom.times(), None);
        }
        tokio::time::advance(PAUSE).await;
        assert_eq!(seldom.times(), Some(6));
        assert_eq!(seldom.times(), None);
    }
}
