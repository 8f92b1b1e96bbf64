//! Memory that is not needed any more, given back to the system.

use std::{hint::black_box, time::Duration};
use tokio::time::MissedTickBehavior;

/// More than the allocator has at hand for a thread.
const FRESH: usize = 1 << 20;

/// Has the allocator look, once a second and for ever, for what was free long enough to be given back: it does so only when it
/// is asked for a fresh piece, which does not happen after a large configuration until the next one.
pub(crate) async fn run_trim() {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        drop(black_box(Vec::<u8>::with_capacity(FRESH)));
    }
}
