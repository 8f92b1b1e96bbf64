//! How a busy worker lets work gather.
//!
//! Of many streams on few connections each that is handled alone costs a read, a write and a wait of its own, and wakes the other
//! end; several that came together share them. A worker that is quicker than its peers finds them one by one. So it pauses for some
//! microseconds before it waits, as network cards do before they interrupt, where that is worth it: much is under way over HTTP/2,
//! and of that enough comes meanwhile, but not so much that the peers would have to wait for us. A pause that was not worth it is not
//! tried again for some turns, each time for longer. A worker without HTTP/2, or with little to do, never pauses.

use std::{cell::RefCell, ffi::c_ulong, thread, time::Duration};

/// How long work may gather.
const PAUSE: Duration = Duration::from_micros(100);
/// So many heads must come in a turn with a pause.
const ENOUGH: u32 = 4;
/// No more than this part of what is under way may come: the rest keeps the peers busy.
const SHARE: u32 = 4;
/// After so many turns without a pause one is tried again.
const MOST_SKIPPED: u32 = 256;
/// How much later than asked for the system may end a pause, in nanoseconds; its usual slack would be half of the pause.
const SLACK: c_ulong = 1000;

thread_local! {
    static TURNS: RefCell<Turns> = const { RefCell::new(Turns::NEW) };
}

/// What a worker's turns brought.
struct Turns {
    /// Streams that are under way.
    streams: u32,
    /// Requests and responses that came in this turn.
    heads: u32,
    /// This turn began with a pause.
    has_paused: bool,
    /// So many turns begin without one.
    skip: u32,
    /// How many that were the last time.
    skipped: u32,
}

impl Turns {
    const NEW: Self = Self {
        streams: 0,
        heads: 0,
        has_paused: false,
        skip: 0,
        skipped: 0,
    };

    /// There is nothing to do: whether to pause.
    fn end(&mut self) -> bool {
        let heads = std::mem::take(&mut self.heads);
        if self.has_paused {
            let was_worth_it = (ENOUGH..=self.streams / SHARE).contains(&heads);
            self.skipped = match self.skipped {
                _ if was_worth_it => 0,
                skipped => (2 * skipped).clamp(1, MOST_SKIPPED),
            };
            self.skip = self.skipped;
        }
        // Streams that only wait, as watches do, are no reason.
        self.has_paused = self.skip == 0 && heads > 0 && self.streams >= ENOUGH * SHARE;
        self.skip = self.skip.saturating_sub(1);
        self.has_paused
    }
}

/// A stream of HTTP/2 that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay(());

impl UnderWay {
    pub(crate) fn new() -> Self {
        TURNS.with_borrow_mut(|turns| turns.streams += 1);
        Self(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        TURNS.with_borrow_mut(|turns| turns.streams = turns.streams.saturating_sub(1));
    }
}

/// Makes the calling thread one whose pauses are not prolonged.
pub(crate) fn enter_worker() {
    if let Err(error) = nix::sys::prctl::set_timerslack(SLACK) {
        tracing::debug!(target: "main", %error, "pauses are longer than they should be");
    }
}

/// A request or a response has come over HTTP/2.
pub(crate) fn count_head() {
    TURNS.with_borrow_mut(|turns| turns.heads = turns.heads.saturating_add(1));
}

/// The worker has nothing to do.
pub(crate) fn before_waiting() {
    if TURNS.with_borrow_mut(Turns::end) {
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of the turns that bring so many heads ends with a pause.
    fn pauses(streams: u32, turns: impl IntoIterator<Item = u32>) -> Vec<bool> {
        let mut state = Turns {
            streams,
            ..Turns::NEW
        };
        let mut end = |heads| {
            state.heads = heads;
            state.end()
        };
        turns.into_iter().map(&mut end).collect()
    }

    fn count(pauses: &[bool]) -> usize {
        pauses.iter().filter(|is_one| **is_one).count()
    }

    #[test]
    fn a_worker_pauses_as_long_as_enough_comes() {
        assert_eq!(pauses(64, [1, 8, 16, 4, 8]), [true; 5]);
    }

    #[test]
    fn a_worker_with_little_under_way_or_to_do_never_pauses() {
        assert_eq!(pauses(15, [3; 5]), [false; 5]);
        assert_eq!(pauses(64, [0; 5]), [false; 5]);
    }

    #[test]
    fn a_pause_that_brought_little_is_tried_seldom() {
        let pauses = pauses(64, [3; 2000]);
        assert!((10..20).contains(&count(&pauses)), "{}", count(&pauses));
        assert_eq!(&pauses[..6], [true, false, true, false, false, true]);
    }

    #[test]
    fn peers_who_wait_for_the_worker_end_its_pauses() {
        assert_eq!(count(&pauses(32, [8; 2000])), 2000);
        assert!(count(&pauses(31, [8; 2000])) < 20);
    }

    #[test]
    fn streams_are_counted_as_long_as_they_last() {
        let count = || TURNS.with_borrow(|turns| turns.streams);
        let before = count();
        let streams = [UnderWay::new(), UnderWay::new()];
        assert_eq!(count(), before + 2);
        drop(streams);
        assert_eq!(count(), before);
    }
}
