//! Deadlines without a timer entry for each: nearly all of them are far away and never reached, so that the entry of an
//! earlier deadline is left where it is, and moved only when it fires too early.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// How many timers a worker keeps.
const KEPT: usize = 256;
/// How many of them are looked at for one that fits.
const LOOKED_AT: usize = 4;

/// The timers of a worker that nobody uses now.
#[derive(Default)]
pub(crate) struct TimerPool(RefCell<Vec<Pin<Box<Sleep>>>>);

/// A timer whose deadline may be moved at every poll.
pub(crate) struct Timer {
    pool: Option<Rc<TimerPool>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl TimerPool {
    fn take(&self, at: Instant) -> Option<Pin<Box<Sleep>>> {
        let mut idle = self.0.borrow_mut();
        let last = idle.len();
        let fits = (last.saturating_sub(LOOKED_AT)..last)
            .rev()
            .find(|index| idle[*index].deadline() <= at);
        match fits {
            Some(index) => Some(idle.swap_remove(index)),
            None => idle.pop(),
        }
    }
}

impl Timer {
    /// A timer that gives its entry back to `pool`.
    pub(crate) fn pooled(pool: &Rc<TimerPool>) -> Self {
        Timer {
            pool: Some(pool.clone()),
            sleep: None,
        }
    }

    /// A timer that keeps its entry, for what lives long.
    pub(crate) fn own() -> Self {
        Timer {
            pool: None,
            sleep: None,
        }
    }

    /// Ready when `at` is past; never without a deadline.
    pub(crate) fn poll_until(
        &mut self,
        at: Option<Instant>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(at) = at else {
            return Poll::Pending;
        };
        let sleep = match &mut self.sleep {
            Some(sleep) => sleep,
            empty => {
                let used = self.pool.as_ref().and_then(|pool| pool.take(at));
                empty.insert(used.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(at))))
            }
        };
        loop {
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if at <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }

    /// Resolves when `at` is past; never without a deadline.
    pub(crate) async fn until(&mut self, at: Option<Instant>) {
        std::future::poll_fn(|context| self.poll_until(at, context)).await;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let (Some(pool), Some(sleep)) = (&self.pool, self.sleep.take()) {
            let mut idle = pool.0.borrow_mut();
            if idle.len() < KEPT {
                idle.push(sleep);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_kept_whatever_the_timer_was_used_for_before() {
        let pool = Rc::new(TimerPool::default());
        let start = Instant::now();
        for (wait, idle) in [(5, 1), (1, 3), (9, 0), (2, 1)] {
            tokio::time::advance(Duration::from_secs(idle)).await;
            let begun = Instant::now();
            let at = begun + Duration::from_secs(wait);
            Timer::pooled(&pool).until(Some(at)).await;
            assert_eq!(begun.elapsed(), Duration::from_secs(wait));
        }
        assert_eq!(pool.0.borrow().len(), 1);
        assert!(start.elapsed() > Duration::from_secs(20));
    }
}
