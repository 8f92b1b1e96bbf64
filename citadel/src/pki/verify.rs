//! The check that peers will make: does a leaf lead to a root, now?

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use super::bundle::Bundle;

/// Why a chain is not good.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The roots are unusable.
    #[error("use the root certificates: {0}")]
    Roots(String),
    /// The way from leaf to root is not valid.
    #[error("the chain does not verify: {0}")]
    Chain(rustls::Error),
}

/// Verifies `leaf` through the bundle's intermediates up to one of its roots, as a TLS server would.
pub fn verify_chain(
    leaf: &CertificateDer<'_>,
    bundle: &Bundle,
    provider: &Arc<CryptoProvider>,
    now: OffsetDateTime,
) -> Result<(), VerifyError> {
    let mut roots = RootCertStore::empty();
    for root in &bundle.roots {
        roots
            .add(root.clone())
            .map_err(|error| VerifyError::Roots(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| VerifyError::Roots(error.to_string()))?;
    let seconds = u64::try_from(now.unix_timestamp()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    verifier
        .verify_client_cert(leaf, &bundle.intermediates, now)
        .map(drop)
        .map_err(VerifyError::Chain)
}
