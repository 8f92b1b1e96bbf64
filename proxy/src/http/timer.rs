//! Deadlines without a timer entry for each: nearly all of them are far away and never reached, so that the entry of an
//! earlier deadline is left where it is, and moved only when it fires too early.
//!
//! Where the overload manager may make limits shorter, whoever waits is woken when they change, to look at its limit again.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::overload::{Reduction, TimerType};

/// How many timers a worker keeps.
const KEPT: usize = 256;
/// How many of them are looked at for one that fits.
const LOOKED_AT: usize = 4;

/// The timers of a worker that nobody uses now.
#[derive(Default)]
pub(crate) struct TimerPool {
    idle: RefCell<Vec<Pin<Box<Sleep>>>>,
    reduction: Option<Arc<Reduction>>,
}

/// A timer whose deadline may be moved at every poll.
pub(crate) struct Timer {
    pool: Rc<TimerPool>,
    keeps: bool,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Ready when limits are other ones.
    change: Option<Pin<Box<dyn Future<Output = ()>>>>,
    is_stale: bool,
}

impl TimerPool {
    /// No timers yet; `reduction` says which limits are shorter now, if any ever are.
    pub(crate) fn new(reduction: Option<Arc<Reduction>>) -> Self {
        let idle = RefCell::default();
        TimerPool { idle, reduction }
    }

    /// What a limit is now.
    pub(crate) fn limit(&self, timer: TimerType, configured: Duration) -> Duration {
        match &self.reduction {
            Some(reduction) => reduction.limit(timer, configured),
            None => configured,
        }
    }

    fn take(&self, at: Instant) -> Option<Pin<Box<Sleep>>> {
        let mut idle = self.idle.borrow_mut();
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
            pool: pool.clone(),
            keeps: false,
            sleep: None,
            change: None,
            is_stale: false,
        }
    }

    /// A timer that keeps its entry, for what lives long.
    pub(crate) fn own(pool: &Rc<TimerPool>) -> Self {
        let mut timer = Timer::pooled(pool);
        timer.keeps = true;
        timer
    }

    /// What a limit is now.
    pub(crate) fn limit(&self, timer: TimerType, configured: Duration) -> Duration {
        self.pool.limit(timer, configured)
    }

    /// Ready when `at` is past; never without a deadline. The task is woken as well when limits change.
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
                let used = (!self.keeps).then(|| self.pool.take(at)).flatten();
                empty.insert(used.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(at))))
            }
        };
        loop {
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(context).is_pending() {
                self.poll_change(context);
                return Poll::Pending;
            }
            if at <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }

    /// Has the task woken when limits change.
    fn poll_change(&mut self, context: &mut Context<'_>) {
        let Some(reduction) = &self.pool.reduction else {
            return;
        };
        let is_stale = match &mut self.change {
            Some(change) => change.as_mut().poll(context).is_ready(),
            // They may have changed since the caller has looked.
            None => true,
        };
        if is_stale {
            self.change = Some(Box::pin(reduction.changed()));
            self.is_stale = true;
            context.waker().wake_by_ref();
        }
    }

    /// Resolves when `at` is past (never without a deadline), or when limits may be other ones than they were.
    pub(crate) async fn wait(&mut self, at: Option<Instant>) {
        std::future::poll_fn(|context| {
            let polled = self.poll_until(at, context);
            if std::mem::take(&mut self.is_stale) {
                return Poll::Ready(());
            }
            polled
        })
        .await;
    }

    /// Resolves when `at` is past; never without a deadline.
    pub(crate) async fn until(&mut self, at: Option<Instant>) {
        std::future::poll_fn(|context| self.poll_until(at, context)).await;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(sleep) = self.sleep.take().filter(|_| !self.keeps) {
            let mut idle = self.pool.idle.borrow_mut();
            if idle.len() < KEPT {
                idle.push(sleep);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(pool.idle.borrow().len(), 1);
        assert!(start.elapsed() > Duration::from_secs(20));
    }
}
