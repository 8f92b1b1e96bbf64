//! Liveness by file, as Istio's Citadel does it: the server touches a file while it can sign, `istio_ca probe` looks how old
//! the file is.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use proto_component::drain::Drain;
use time::OffsetDateTime;

use crate::ca::{CertificateAuthority, SignRequest};
use crate::pki::{PrivateKey, San};

const TRIAL_TTL: Duration = Duration::from_secs(60);

/// Fails if `path` is older than `interval`.
pub fn check(path: &Path, interval: Duration) -> anyhow::Result<()> {
    let modified = std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("read probe file {}", path.display()))?;
    let age = SystemTime::now()
        .duration_since(modified)
        .unwrap_or_default();
    anyhow::ensure!(
        age <= interval,
        "probe file {} is {} s old, more than {} s",
        path.display(),
        age.as_secs(),
        interval.as_secs()
    );
    Ok(())
}

/// Touches `path` every `interval` while the CA can sign, until the drain.
pub async fn run(ca: Arc<dyn CertificateAuthority>, path: &Path, interval: Duration, drain: Drain) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = drain.signaled() => return,
        }
        let outcome = try_signing(ca.as_ref())
            .and_then(|()| std::fs::write(path, b"").context("touch the probe file"));
        if let Err(error) = outcome {
            tracing::error!(target: "ca", error = format!("{error:#}"), "liveness probe");
        }
    }
}

fn try_signing(ca: &dyn CertificateAuthority) -> anyhow::Result<()> {
    let key = PrivateKey::generate()?.public()?;
    let request = SignRequest {
        public_key: &key,
        sans: &[San::Dns("probe".to_owned())],
        ttl: TRIAL_TTL,
        dual_use: false,
    };
    ca.sign(&request, OffsetDateTime::now_utc())?;
    Ok(())
}
