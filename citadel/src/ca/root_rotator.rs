//! Renews the self-signed root before it ends: same key, new certificate (Istio's behaviour), checked at an interval whose
//! first delay is random, so that replicas do not rotate at once.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::self_signed::{SelfSigned, SelfSignedError};

/// When to rotate.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// How often to look.
    pub check_interval: Duration,
    /// Rotate when less than this percentage of the life remains.
    pub grace_percent: u32,
    /// Random first delay.
    pub jitter: bool,
}

/// Watches one root.
pub struct RootRotator {
    ca: Arc<SelfSigned>,
    rotation: Rotation,
}

impl RootRotator {
    /// A rotator for `ca`.
    pub fn new(ca: Arc<SelfSigned>, rotation: Rotation) -> Self {
        Self { ca, rotation }
    }

    /// Rotates if it is time; says whether it did.
    pub fn check(&self, now: OffsetDateTime) -> Result<bool, SelfSignedError> {
        let life = self.ca.validity();
        let whole = life.not_after - life.not_before;
        let grace = whole * f64::from(self.rotation.grace_percent) / 100;
        if life.not_after - now > grace {
            return Ok(false);
        }
        self.ca.renew(now)?;
        tracing::info!(target: "rootcertrotator", "renewed the self-signed root certificate");
        Ok(true)
    }

    /// Looks at every interval, for ever; `rotated` is told of each new root.
    pub async fn run(self, rotated: impl Fn()) {
        let mut delay = self.rotation.check_interval;
        if self.rotation.jitter {
            delay = delay.mul_f64(rand::random::<f64>());
        }
        loop {
            tokio::time::sleep(delay).await;
            delay = self.rotation.check_interval;
            match self.check(OffsetDateTime::now_utc()) {
                Ok(true) => rotated(),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(target: "rootcertrotator", %error, "renew the self-signed root");
                }
            }
        }
    }
}
