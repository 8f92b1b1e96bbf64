//! The certificate authority: what signs. [`CertificateAuthority`] is the seam; a self-signed root and a plugged-in
//! intermediate implement it.

mod plugged_in;
mod self_signed;
mod signer;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::pki::{Bundle, Certificate, MintError, PublicKey, San};
use crate::revocation::Revoked;

pub use plugged_in::{InvalidPluggedIn, PluggedIn, PluggedInFiles};
pub use self_signed::{Overlap, RootFiles, SelfSigned, SelfSignedError, SelfSignedSettings};
pub use signer::{InvalidSigner, Signer};

/// What a leaf is wanted for.
#[derive(Debug, Clone)]
pub struct SignRequest<'a> {
    /// The key to certify.
    pub public_key: &'a PublicKey,
    /// The names, already authorized.
    pub sans: &'a [San],
    /// How long, already checked by [`TtlRules`].
    pub ttl: Duration,
    /// Repeat the first name as the subject's common name.
    pub dual_use: bool,
}

/// Something that signs workload certificates.
pub trait CertificateAuthority: Send + Sync {
    /// Signs a leaf that is good from `now`.
    fn sign(
        &self,
        request: &SignRequest<'_>,
        now: OffsetDateTime,
    ) -> Result<Certificate, SignError>;

    /// What goes with every leaf: intermediates and roots.
    fn bundle(&self) -> Arc<Bundle>;

    /// Lists of revoked certificates in PEM: one for each certificate of the CA by which living leaves were signed.
    fn revocation_lists(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: OffsetDateTime,
    ) -> Result<String, SignError>;
}

/// The lifetimes that a caller may ask for.
#[derive(Debug, Clone, Copy)]
pub struct TtlRules {
    /// For callers that don't say.
    pub default: Duration,
    /// More than this is refused, not shortened.
    pub max: Duration,
}

/// Why no certificate was signed. The names are the values of the metric's label `error`.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request itself is bad.
    #[error("signing request refused")]
    Csr(#[source] crate::pki::InvalidCsr),
    /// Longer than allowed.
    #[error("requested lifetime of {requested} s is more than the allowed {max} s")]
    Ttl {
        /// What was asked for, in seconds.
        requested: i64,
        /// What is allowed, in seconds.
        max: u64,
    },
    /// The CA certificate is expired or not yet good.
    #[error("the CA certificate is not valid now (from {not_before} to {not_after})")]
    NotReady {
        /// Start of the CA certificate's life.
        not_before: OffsetDateTime,
        /// Its end.
        not_after: OffsetDateTime,
    },
    /// Encoding or signing failed.
    #[error("mint the certificate: {0}")]
    Generate(#[from] MintError),
}

impl TtlRules {
    /// The lifetime for a request of `seconds`: nothing (or less) means the default, too much is refused.
    pub fn resolve(&self, seconds: i64) -> Result<Duration, SignError> {
        match u64::try_from(seconds) {
            Err(_) | Ok(0) => Ok(self.default.min(self.max)),
            Ok(wanted) if wanted > self.max.as_secs() => Err(SignError::Ttl {
                requested: seconds,
                max: self.max.as_secs(),
            }),
            Ok(wanted) => Ok(Duration::from_secs(wanted)),
        }
    }
}

impl SignError {
    /// Istio's name of the error, as `citadel_server_csr_sign_err_count` labels it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Csr(_) => "CSR_ERROR",
            Self::Ttl { .. } => "TTL_ERROR",
            Self::NotReady { .. } => "CA_NOT_READY",
            Self::Generate(_) => "CERT_GEN_ERROR",
        }
    }
}

#[cfg(test)]
mod tests;
