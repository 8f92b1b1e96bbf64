//! Random numbers drawn before they are needed, so that the hosts of the requests to come are known (predictive preconnect).

use parking_lot::Mutex;
use std::collections::VecDeque;

/// What the next choices of a cluster will be drawn by.
#[derive(Default)]
pub(crate) struct Foresight(Mutex<VecDeque<u64>>);

impl Foresight {
    /// What this choice is drawn by: what was kept for it, or else `own`.
    pub(crate) fn take(&self, own: u64) -> u64 {
        self.0.lock().pop_front().unwrap_or(own)
    }

    /// Keeps `random` for a later choice and says how many choices come before that one; as in Envoy no more are kept than
    /// there are healthy hosts.
    pub(crate) fn keep(&self, random: u64, healthy: usize) -> Option<usize> {
        let mut kept = self.0.lock();
        if kept.len() >= healthy {
            return None;
        }
        kept.push_back(random);
        Some(kept.len() - 1)
    }
}
