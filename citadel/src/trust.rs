//! What everybody is to believe at this moment: the roots and the revocation lists, one value that changes whole.
//!
//! [`Trust`] makes it anew when the CA or a revocation changes, and tells whoever watches: the discovery service that hands it
//! to the agents, the file of `--root-cert-out`, Citadel's own certificate.

use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::ca::{CertificateAuthority, SignError};
use crate::revocation::{Revocations, RevokeError};

/// Roots and revocation lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Anchors {
    /// Changes with the content.
    pub version: String,
    /// The roots in PEM, the one that signs now first.
    pub roots: String,
    /// The revocation lists in PEM; empty while nothing is revoked.
    pub crls: String,
}

/// Why there are no new anchors.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The revocations cannot be read.
    #[error(transparent)]
    Revocations(#[from] RevokeError),
    /// The CA cannot sign a list.
    #[error("sign the revocation list: {0}")]
    Sign(#[from] SignError),
}

/// The maker of anchors.
pub struct Trust {
    ca: Arc<dyn CertificateAuthority>,
    revocations: Revocations,
    anchors: watch::Sender<Arc<Anchors>>,
    /// One at a time, so that a newer list never gives way to an older one.
    refreshing: Mutex<()>,
}

impl Trust {
    /// The anchors of `ca` and `revocations`.
    pub fn new(
        ca: Arc<dyn CertificateAuthority>,
        revocations: Revocations,
    ) -> Result<Self, TrustError> {
        let trust = Self {
            ca,
            revocations,
            anchors: watch::channel(Arc::default()).0,
            refreshing: Mutex::new(()),
        };
        trust.refresh()?;
        Ok(trust)
    }

    /// Those of this moment, and each that follows.
    pub fn watch(&self) -> watch::Receiver<Arc<Anchors>> {
        self.anchors.subscribe()
    }

    /// Makes them anew: something has changed.
    pub fn refresh(&self) -> Result<(), TrustError> {
        let _one_at_a_time = self.refreshing.lock();
        let now = OffsetDateTime::now_utc();
        let revoked = self.revocations.current(now)?;
        let crls = if revoked.is_empty() {
            String::new()
        } else {
            let number = u64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or(u64::MAX);
            self.ca.revocation_lists(&revoked, number, now)?
        };
        let roots = self.ca.bundle().roots_pem();
        let serials = revoked.iter().map(|entry| entry.serial.as_str());
        // Not of the list itself, which is signed anew each time.
        let version = serials.fold(Sha256::new().chain_update(&roots), |hash, serial| {
            hash.chain_update(serial).chain_update("\n")
        });
        let version: String = version.finalize()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.anchors.send_if_modified(|anchors| {
            let is_new = anchors.version != version;
            if is_new {
                *anchors = Arc::new(Anchors {
                    version,
                    roots,
                    crls,
                });
            }
            is_new
        });
        Ok(())
    }
}
