//! A quota's counter: a rolling or a fixed window, or a plain count for a quota without a duration.

use std::collections::VecDeque;
use std::time::Duration;

use super::Algorithm;

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
    Fixed(Fixed),
    Window(Window),
}

/// All comes back at its end; the next one begins when it is asked for.
#[derive(Debug)]
pub(super) struct Fixed {
    /// In ticks.
    length: u64,
    /// The tick at which it ends.
    end: u64,
    available: i64,
    max: i64,
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
    pub(super) fn new(max: i64, duration: Duration, algorithm: Algorithm) -> Self {
        if duration.is_zero() {
            return Cell::Permanent {
                max,
                available: max,
            };
        }
        if algorithm == Algorithm::FixedWindow {
            let ticks = duration.as_millis().div_ceil(TICK.as_millis());
            return Cell::Fixed(Fixed {
                length: u64::try_from(ticks).unwrap_or(u64::MAX),
                end: 0,
                available: max,
                max,
            });
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
            Cell::Fixed(window) => {
                window.begin(tick);
                if amount < 0 {
                    let back = window.available.saturating_sub(amount);
                    window.available = back.min(window.max);
                    return amount;
                }
                let granted = grant(amount, window.available, best_effort);
                window.available -= granted;
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

    /// How long what is granted lasts, where that is not always the same; `since` the start.
    pub(super) fn left(&self, since: Duration) -> Option<Duration> {
        let Cell::Fixed(window) = self else {
            return None;
        };
        let end = TICK.as_millis().saturating_mul(u128::from(window.end));
        let end = Duration::from_millis(u64::try_from(end).unwrap_or(u64::MAX));
        Some(end.saturating_sub(since))
    }

    /// Whether a new cell would say the same.
    pub(super) fn is_idle(&mut self, tick: u64) -> bool {
        match self {
            Cell::Permanent { max, available } => available == max,
            Cell::Fixed(window) => tick >= window.end,
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

impl Fixed {
    /// Begins a new window where the last one has ended.
    fn begin(&mut self, tick: u64) {
        if tick >= self.end {
            self.end = tick.saturating_add(self.length);
            self.available = self.max;
        }
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
