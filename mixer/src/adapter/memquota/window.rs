//! A quota's counter: a rolling window, or a plain count for a quota without a duration.

use std::time::Duration;

/// Ten ticks a second.
const TICK: Duration = Duration::from_millis(100);
/// A window of more slots (a day has 864,000) would cost more than it says.
const MAX_SLOTS: u64 = 864_000;

/// What is left of a quota.
#[derive(Debug)]
pub(super) enum Cell {
    /// Never comes back by itself.
    Permanent {
        max: i64,
        available: i64,
    },
    Window(Box<Window>),
}

#[derive(Debug)]
pub(super) struct Window {
    slots: Vec<i64>,
    /// The tick of the newest slot.
    tick: u64,
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
        let slots = seconds.saturating_mul(10).clamp(1, MAX_SLOTS);
        Cell::Window(Box::new(Window {
            slots: vec![0; usize::try_from(slots).unwrap_or(1)],
            tick: 0,
            available: max,
            max,
        }))
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
                let newest = window.newest();
                window.slots[newest] += granted;
                window.available -= granted;
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
    fn newest(&self) -> usize {
        usize::try_from(self.tick % self.slots.len() as u64).unwrap_or(0)
    }

    /// Scrolls to `tick`; what scrolls out is available again.
    fn roll(&mut self, tick: u64) {
        let steps = tick.saturating_sub(self.tick).min(self.slots.len() as u64);
        self.tick = self.tick.max(tick);
        for step in 0..steps {
            let position = (self.tick - step) % self.slots.len() as u64;
            let position = usize::try_from(position).unwrap_or(0);
            self.available += self.slots[position];
            self.slots[position] = 0;
        }
    }

    /// Gives back from the newest slot backwards; no more than was taken.
    fn release(&mut self, amount: u64) {
        let mut left = i64::try_from(amount).unwrap_or(i64::MAX);
        let (newest, length) = (self.newest(), self.slots.len());
        for step in 0..length {
            let slot = &mut self.slots[(newest + length - step) % length];
            let back = left.min(*slot);
            *slot -= back;
            self.available += back;
            left -= back;
            if left == 0 {
                return;
            }
        }
    }
}
