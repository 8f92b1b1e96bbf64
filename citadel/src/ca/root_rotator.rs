//! Replaces the self-signed root before it ends, or when somebody asks for it: looked at at an interval whose first delay is
//! random, so that replicas do not rotate at once, and carried through step by step, also across restarts.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;

use super::self_signed::{Overlap, SelfSigned, SelfSignedError};

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
    ca: Arc<SelfSigned>,
    rotation: Rotation,
    wanted: Arc<Notify>,
}

impl RootRotator {
    /// A rotator for `ca`.
    pub fn new(ca: Arc<SelfSigned>, rotation: Rotation) -> Self {
        Self {
            ca,
            rotation,
            wanted: Arc::default(),
        }
    }

    /// Tell this when a rotation was begun.
    pub fn wanted(&self) -> Arc<Notify> {
        self.wanted.clone()
    }

    /// Begins a rotation if it is time, or goes on with one; says whether something changed.
    pub fn check(&self, now: OffsetDateTime) -> Result<bool, SelfSignedError> {
        if self.ca.is_rotating() {
            let is_advanced = self.ca.advance(&self.rotation.overlap, now)?;
            if is_advanced {
                let is_over = !self.ca.is_rotating();
                tracing::info!(target: "rootcertrotator", is_over, "the root's rotation went on");
            }
            return Ok(is_advanced);
        }
        let life = self.ca.validity();
        let whole = life.not_after - life.not_before;
        let grace = whole * f64::from(self.rotation.grace_percent) / 100;
        if self.rotation.check_interval.is_zero() || life.not_after - now > grace {
            return Ok(false);
        }
        self.ca.rotate(now)?;
        tracing::info!(target: "rootcertrotator", "the next self-signed root is made known");
        Ok(true)
    }

    /// Looks at every interval, for ever; `changed` is told of each step.
    pub async fn run(self, changed: impl Fn()) {
        let mut delay = self.interval();
        if self.rotation.jitter && !self.ca.is_rotating() {
            delay = delay.mul_f64(rand::random::<f64>());
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.wanted.notified() => {}
            }
            match self.check(OffsetDateTime::now_utc()) {
                Ok(true) => changed(),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(target: "rootcertrotator", %error, "rotate the self-signed root");
                }
            }
            delay = self.interval();
        }
    }

    fn interval(&self) -> Duration {
        let overlap = &self.rotation.overlap;
        if self.ca.is_rotating() {
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
