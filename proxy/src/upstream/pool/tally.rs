//! What connections carry, what they could carry besides, and who waits for one: of a pool, and of all pools of a worker.
//!
//! As in Envoy this says when a connection is made before it is needed. The worker's sums go over all of its clusters, whichever
//! of them looks ahead.

use std::{cell::Cell, rc::Rc};

/// The sums.
#[derive(Default)]
pub(super) struct Tally {
    pending: Cell<i64>,
    active: Cell<i64>,
    unused: Cell<i64>,
    /// Those that these are a part of.
    whole: Option<Rc<Tally>>,
}

/// Somebody who waits for a connection.
pub(super) struct Waiting(Rc<Tally>);

/// What one connection can carry, from the attempt to make it.
pub(super) struct Capacity {
    tally: Rc<Tally>,
    /// How many streams at once.
    limit: Cell<u32>,
    /// How many more in its life.
    left: Cell<u32>,
    carried: Cell<u32>,
}

/// A stream on a connection.
pub(super) struct Carried(Rc<Capacity>);

impl Tally {
    /// The sums of a part of `whole`.
    pub(super) fn part_of(whole: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self {
            whole: Some(whole.clone()),
            ..Self::default()
        })
    }

    fn add(&self, pending: i64, active: i64, unused: i64) {
        self.pending.set(self.pending.get() + pending);
        self.active.set(self.active.get() + active);
        self.unused.set(self.unused.get() + unused);
        if let Some(whole) = &self.whole {
            whole.add(pending, active, unused);
        }
    }

    /// Somebody waits.
    pub(super) fn wait(self: &Rc<Self>) -> Waiting {
        self.add(1, 0, 0);
        Waiting(self.clone())
    }

    /// How many wait beyond what connections have room for.
    pub(super) fn is_short(&self) -> bool {
        self.pending.get() > self.unused.get()
    }

    /// Whether there is less than `ratio` times what is needed, with `coming` streams to come.
    #[expect(clippy::cast_precision_loss, reason = "counts of streams are small")]
    pub(super) fn is_below(&self, ratio: f64, coming: u8) -> bool {
        let (active, unused) = (self.active.get() as f64, self.unused.get() as f64);
        (self.pending.get() as f64 + active + f64::from(coming)) * ratio > unused + active
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.add(-1, 0, 0);
    }
}

impl Capacity {
    /// A connection that is being made, for `limit` streams at once and `left` in its life (zero: any number).
    pub(super) fn new(tally: &Rc<Tally>, limit: u32, left: u32) -> Rc<Self> {
        let capacity = Self {
            tally: tally.clone(),
            limit: Cell::new(limit),
            left: Cell::new(if left == 0 { u32::MAX } else { left }),
            carried: Cell::new(0),
        };
        tally.add(0, 0, capacity.unused());
        Rc::new(capacity)
    }

    fn unused(&self) -> i64 {
        let room = self.limit.get().saturating_sub(self.carried.get());
        i64::from(room.min(self.left.get()))
    }

    fn change(&self, change: impl FnOnce()) {
        let (carried, unused) = (self.carried.get(), self.unused());
        change();
        let active = i64::from(self.carried.get()) - i64::from(carried);
        self.tally.add(0, active, self.unused() - unused);
    }

    /// So many at once, now that the protocol is known.
    pub(super) fn set_limit(&self, limit: u32) {
        self.change(|| self.limit.set(limit));
    }

    /// It takes no more streams.
    pub(super) fn retire(&self) {
        self.change(|| self.left.set(0));
    }

    /// It takes a stream.
    pub(super) fn carry(self: &Rc<Self>) -> Carried {
        self.change(|| {
            self.carried.set(self.carried.get() + 1);
            self.left.set(self.left.get().saturating_sub(1));
        });
        Carried(self.clone())
    }
}

impl Drop for Capacity {
    fn drop(&mut self) {
        self.retire();
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let carried = &self.0.carried;
        self.0
            .change(|| carried.set(carried.get().saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(tally: &Tally) -> (i64, i64, i64) {
        (tally.pending.get(), tally.active.get(), tally.unused.get())
    }

    #[test]
    fn sums_follow_connections_and_their_streams() {
        let whole = Rc::<Tally>::default();
        let (one, other) = (Tally::part_of(&whole), Tally::part_of(&whole));
        let waiting = one.wait();
        let single = Capacity::new(&one, 1, 0);
        let many = Capacity::new(&other, 100, 3);
        assert_eq!(sums(&whole), (1, 0, 4));
        let (first, second) = (single.carry(), many.carry());
        drop(waiting);
        assert_eq!(sums(&one), (0, 1, 0));
        assert_eq!(sums(&whole), (0, 2, 2));
        drop(second);
        // It has two left in its life, however many it could carry at once.
        assert_eq!(sums(&other), (0, 0, 2));
        drop(first);
        assert_eq!(sums(&whole), (0, 0, 3));
        let last = single.carry();
        drop(single);
        single_ended(&whole, last);
        drop(many);
        assert_eq!(sums(&whole), (0, 0, 0));
    }

    fn single_ended(whole: &Tally, last: Carried) {
        last.0.retire();
        drop(last);
        assert_eq!(sums(whole), (0, 0, 2));
    }

    #[test]
    fn what_is_to_come_counts_with_what_is_there() {
        let tally = Rc::<Tally>::default();
        // Nothing is needed until something is to come.
        assert!(!tally.is_below(2.0, 0));
        assert!(tally.is_below(2.0, 1));
        let connections = [(); 2].map(|()| Capacity::new(&tally, 1, 0));
        assert!(!tally.is_below(2.0, 1));
        let _carried = connections[0].carry();
        // (1 + 1) * 2 > 1 + 1
        assert!(tally.is_below(2.0, 1));
        assert!(!tally.is_below(1.0, 1));
        assert!(!tally.is_short());
        let _waiting = [(); 2].map(|()| tally.wait());
        assert!(tally.is_short());
    }
}
