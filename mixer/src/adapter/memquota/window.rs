//! A quota's counter: a rolling window, or a plain count for a quota without a duration.

use std::collections::VecDeque;
use std::time::Duration;

/// Ten ticks a second.
const TICK: Duration = Duration::from_millis(100);
/// A window has no more slots: one that is longer than ten minutes has slots of several ticks.
const MAX_SLOTS: u64 = 6_000;

/// What is left of a quota.
#[derive(Debug)]
pub(super) enum Cell {
    /// Never comes back by itself.
    Permanent {
        max: i64,
        available: i64,
    },
    Window(Window),
}

#[derive(Debug)]
pub(super) struct Window {
    /// What was taken, by slot, the newest last; what is older than the window is available again.
    taken: VecDeque<(u64, i64)>,
    /// The window's length in slots.
    length: u64,
    /// Ticks of a slot.
    grain: u64,
    available: i64,
    max: i64,
}

/// The tick of a time since the start.
pub(super) fn tick(since: Duration) -> u64 {
    u64::try_from(since.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX)
}

impl Cell {
    pub(super) fn new(max: i64, duration: Duration) -> Self {
        if duration.is_zero() {
            return Cell::Permanent {
                max,
                available: max,
            };
        }
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        let ticks = seconds.saturating_mul(10);
        let grain = ticks.div_ceil(MAX_SLOTS);
        Cell::Window(Window {
            taken: VecDeque::new(),
            length: ticks.div_ceil(grain),
            grain,
            available: max,
            max,
        })
    }

    /// Takes `amount`, or gives back a negative one; what was granted.
    pub(super) fn allocate(&mut self, amount: i64, best_effort: bool, tick: u64) -> i64 {
        match self {
            Cell::Permanent { max, available } => {
                if amount < 0 {
                    *available = available.saturating_sub(amount).min(*max);
                    return amount;
                }
                let granted = grant(amount, *available, best_effort);
                *available -= granted;
                granted
            }
            Cell::Window(window) => {
                window.roll(tick);
                if amount < 0 {
                    window.release(amount.unsigned_abs());
                    return amount;
                }
                let granted = grant(amount, window.available, best_effort);
                window.take(granted, tick);
                granted
            }
        }
    }

    /// Whether a new cell would say the same.
    pub(super) fn is_idle(&mut self, tick: u64) -> bool {
        match self {
            Cell::Permanent { max, available } => available == max,
            Cell::Window(window) => {
                window.roll(tick);
                window.available == window.max
            }
        }
    }
}

fn grant(amount: i64, available: i64, best_effort: bool) -> i64 {
    if amount <= available {
        amount
    } else if best_effort {
        available.max(0)
    } else {
        0
    }
}

impl Window {
    /// What scrolls out at `tick` is available again.
    fn roll(&mut self, tick: u64) {
        let slot = tick / self.grain;
        while let Some((at, amount)) = self.taken.front().copied()
            && at + self.length <= slot
        {
            self.available += amount;
            self.taken.pop_front();
        }
    }

    fn take(&mut self, amount: i64, tick: u64) {
        if amount == 0 {
            return;
        }
        self.available -= amount;
        let slot = tick / self.grain;
        match self.taken.back_mut() {
            // Callers may come a moment late.
            Some((newest, taken)) if *newest >= slot => *taken += amount,
            _ => self.taken.push_back((slot, amount)),
        }
    }

    /// Gives back from the newest slot backwards; no more than was taken.
    fn release(&mut self, amount: u64) {
        let mut left = i64::try_from(amount).unwrap_or(i64::MAX);
        while let Some((_, taken)) = self.taken.back_mut() {
            let back = left.min(*taken);
            *taken -= back;
            self.available += back;
            left -= back;
            if *taken > 0 {
                return;
            }
            self.taken.pop_back();
        }
    }
}
