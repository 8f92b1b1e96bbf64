//! Replaces the self-signed root before it ends, and carries through step by step, also across restarts, what was begun by it or
//! by somebody else. It looks at an interval whose first delay is random, so that replicas do not all make a root at once.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;

use super::RootKeeper;
use crate::ca::{Overlap, RootFiles, SelfSignedError};

/// While a rotation is on its way it is looked at this often, or more often if its steps are shorter.
const STEP_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// When to rotate.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// How often to look; never by itself if zero.
    pub check_interval: Duration,
    /// Rotate when less than this percentage of the life remains.
    pub grace_percent: u32,
    /// Random first delay.
    pub jitter: bool,
    /// How long the steps take.
    pub overlap: Overlap,
}

/// Watches one root.
pub struct RootRotator {
    keeper: Arc<RootKeeper>,
    rotation: Rotation,
    wanted: Arc<Notify>,
}

impl RootRotator {
    /// A rotator for what `keeper` has.
    pub fn new(keeper: Arc<RootKeeper>, rotation: Rotation) -> Self {
        Self {
            keeper,
            rotation,
            wanted: Arc::default(),
        }
    }

    /// Tell this when a rotation was begun.
    pub fn wanted(&self) -> Arc<Notify> {
        self.wanted.clone()
    }

    /// Begins a rotation if it is time, or goes on with one; says whether something changed.
    ///
    /// # Errors
    /// When the root cannot be kept; everything then stays as it is.
    pub async fn check(&self, now: OffsetDateTime) -> anyhow::Result<bool> {
        let ca = self.keeper.ca();
        let is_due = if ca.is_rotating() {
            ca.advanced(&self.rotation.overlap, now)?.is_some()
        } else {
            self.is_ending(now)
        };
        // Whoever has nothing to do asks nobody.
        if !is_due || !self.keeper.change(now, || self.step(now)).await? {
            return Ok(false);
        }
        let is_over = !ca.is_rotating();
        tracing::info!(target: "rootcertrotator", is_over, "the root's rotation has begun or gone on");
        Ok(true)
    }

    /// What is to be done with the root as it is at this moment.
    fn step(&self, now: OffsetDateTime) -> Result<Option<RootFiles>, SelfSignedError> {
        let ca = self.keeper.ca();
        if ca.is_rotating() {
            return ca.advanced(&self.rotation.overlap, now);
        }
        if !self.is_ending(now) {
            return Ok(None);
        }
        ca.rotated(now).map(Some)
    }

    fn is_ending(&self, now: OffsetDateTime) -> bool {
        let life = self.keeper.ca().validity();
        let whole = life.not_after - life.not_before;
        let grace = whole * f64::from(self.rotation.grace_percent) / 100;
        !self.rotation.check_interval.is_zero() && life.not_after - now <= grace
    }

    /// Looks at every interval, for ever; `changed` is told of each step.
    pub async fn run(self, changed: impl Fn()) {
        let mut delay = self.interval();
        if self.rotation.jitter && !self.keeper.ca().is_rotating() {
            delay = delay.mul_f64(rand::random::<f64>());
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.wanted.notified() => {}
            }
            match self.check(OffsetDateTime::now_utc()).await {
                Ok(true) => changed(),
                Ok(false) => {}
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(target: "rootcertrotator", error, "rotate the self-signed root");
                }
            }
            delay = self.interval();
        }
    }

    fn interval(&self) -> Duration {
        let overlap = &self.rotation.overlap;
        if self.keeper.ca().is_rotating() {
            let shortest = overlap.introduction.min(overlap.retirement);
            return shortest.clamp(SHORTEST_INTERVAL, STEP_INTERVAL);
        }
        let never = Duration::from_secs(24 * 3600);
        if self.rotation.check_interval.is_zero() {
            never
        } else {
            self.rotation.check_interval
        }
    }
}
