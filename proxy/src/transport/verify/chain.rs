//! The chain of a peer's certificate: up to a trusted root, not revoked, not too long.

use super::super::{certificate, secret::Validation};
use rustls::{CertificateError, Error, OtherError, RootCertStore};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{sync::Arc, time::Duration};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    VerifiedPath,
};

/// Trusted certificates, as anchors and as they are.
#[derive(Debug)]
pub(in crate::transport) struct Roots {
    pub(in crate::transport) store: RootCertStore,
    pub(in crate::transport) certificates: Vec<CertificateDer<'static>>,
}

/// Which side is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Server,
    Client,
}

/// How chains are checked, whatever they lead to.
#[derive(Debug)]
pub(super) struct ChainRules {
    crls: Arc<[CertRevocationList<'static>]>,
    is_only_leaf_revocable: bool,
    is_expired_allowed: bool,
    longest: Option<usize>,
}

impl ChainRules {
    /// The rules of `validation`.
    pub(super) fn new(validation: &Validation) -> Self {
        Self {
            crls: validation.crls.clone(),
            is_only_leaf_revocable: validation.wire.only_verify_leaf_cert_crl,
            is_expired_allowed: validation.wire.allow_expired_certificate,
            longest: validation
                .wire
                .max_verify_depth
                .map(|depth| usize::try_from(depth).unwrap_or(usize::MAX)),
        }
    }

    /// Checks that `leaf` leads to one of `roots`.
    pub(super) fn verify(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        // A certificate that is itself trusted needs no issuer.
        if roots.certificates.iter().any(|root| root == leaf) {
            return self.check_time(leaf, now);
        }
        match self.path(roots, leaf, intermediates, now, usage) {
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
                if self.is_expired_allowed =>
            {
                let then = common_time(leaf, intermediates);
                self.path(roots, leaf, intermediates, then, usage)
            }
            outcome => outcome,
        }
        .map_err(error)
    }

    fn path(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), webpki::Error> {
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        // No options without lists: nothing can be revoked then.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|builder| {
            builder
                .with_depth(if self.is_only_leaf_revocable {
                    RevocationCheckDepth::EndEntity
                } else {
                    RevocationCheckDepth::Chain
                })
                .build()
        });
        let usage = match usage {
            Usage::Server => KeyUsage::server_auth(),
            Usage::Client => KeyUsage::client_auth(),
        };
        let is_short = |path: &VerifiedPath<'_>| {
            // The anchor counts, the leaf does not.
            let depth = path.intermediate_certificates().count() + 1;
            if self.longest.is_some_and(|longest| depth > longest) {
                return Err(webpki::Error::MaximumPathDepthExceeded);
            }
            Ok(())
        };
        let leaf = EndEntityCert::try_from(leaf)?;
        leaf.verify_for_usage(
            super::algorithms().all,
            &roots.store.roots,
            intermediates,
            now,
            usage,
            revocation,
            Some(&is_short),
        )
        .map(|_| ())
    }

    fn check_time(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        let details = certificate::details(leaf).ok_or(CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if self.is_expired_allowed || (details.not_before..=details.not_after).contains(&now) {
            Ok(())
        } else {
            Err(CertificateError::Expired.into())
        }
    }
}

/// A time at which all the certificates that were shown are (or were) valid, if there is one.
fn common_time(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> UnixTime {
    let begin = std::iter::once(leaf)
        .chain(intermediates)
        .filter_map(|certificate| certificate::details(certificate))
        .map(|details| details.not_before)
        .max()
        .unwrap_or_default();
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(begin).unwrap_or(0)))
}

fn error(error: webpki::Error) -> Error {
    use webpki::Error as Cause;
    let error = match error {
        Cause::BadDer | Cause::BadDerTime | Cause::TrailingData(_) => CertificateError::BadEncoding,
        Cause::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        Cause::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        Cause::UnknownIssuer => CertificateError::UnknownIssuer,
        Cause::CertRevoked => CertificateError::Revoked,
        Cause::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        Cause::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Cause::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    error.into()
}
