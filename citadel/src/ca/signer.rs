//! An immutable pair of CA certificate and key with the bundle that leads to the roots. Both authorities sign through it.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{SignError, SignRequest};
use crate::pki::{
    Bundle, Certificate, InvalidBundle, InvalidKey, IssuerKey, LeafProfile, MintError, PrivateKey,
    San, Validity, VerifyError, issuer_of, mint_crl, mint_leaf, verify_chain,
};
use crate::revocation::Revoked;

/// Signs leaves with one CA certificate.
pub struct Signer {
    certificate: CertificateDer<'static>,
    issuer: IssuerKey,
    validity: Validity,
    bundle: Arc<Bundle>,
}

/// Why a certificate and a key do not make a signer.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSigner {
    /// The certificate is no CA, or cannot be read.
    #[error("the CA certificate: {0}")]
    Certificate(&'static str),
    /// Certificate and key are not a pair.
    #[error("the private key does not belong to the CA certificate")]
    KeyMismatch,
    /// The chain does not lead to a root.
    #[error(transparent)]
    Bundle(#[from] InvalidBundle),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// A trial leaf could not be made.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// A trial leaf does not verify against the roots.
    #[error("a certificate signed by this CA would not be trusted: {0}")]
    Untrusted(#[from] VerifyError),
}

impl Signer {
    /// Checks that key and certificate belong together, that the certificate may sign, and (by minting a trial leaf) that
    /// what it signs verifies up to a root.
    pub fn new(
        certificate: &CertificateDer<'static>,
        key: &PrivateKey,
        bundle: Bundle,
        provider: &Arc<CryptoProvider>,
        now: OffsetDateTime,
    ) -> Result<Self, InvalidSigner> {
        check_ca(certificate, key)?;
        let signer = Self {
            certificate: certificate.clone(),
            issuer: issuer_of(certificate, key)?,
            validity: Validity::of(certificate)?,
            bundle: Arc::new(bundle),
        };
        // An expired CA is reported at every signature (and may be replaced meanwhile); it is no reason not to start.
        if signer.validity.contains(now) {
            let trial = PrivateKey::generate()?.public()?;
            let leaf = mint_leaf(
                &signer.issuer,
                &trial,
                &LeafProfile {
                    sans: &[San::Uri("spiffe://trial/ns/trial/sa/trial".to_owned())],
                    validity: Validity::starting(now, std::time::Duration::from_secs(60)),
                    dual_use: false,
                },
            )?;
            verify_chain(&leaf.der, &signer.bundle, provider, now)?;
        }
        Ok(signer)
    }

    /// Signs a leaf; it never outlives the CA certificate.
    #[tracing::instrument(target = "ca", skip_all)]
    pub fn sign(
        &self,
        request: &SignRequest<'_>,
        now: OffsetDateTime,
    ) -> Result<Certificate, SignError> {
        if !self.validity.contains(now) {
            return Err(SignError::NotReady {
                not_before: self.validity.not_before,
                not_after: self.validity.not_after,
            });
        }
        let mut validity = Validity::starting(now, request.ttl);
        validity.not_after = validity.not_after.min(self.validity.not_after);
        let profile = LeafProfile {
            sans: request.sans,
            validity,
            dual_use: request.dual_use,
        };
        Ok(mint_leaf(&self.issuer, request.public_key, &profile)?)
    }

    /// A list of revoked certificates, in PEM. It is good as long as the CA: a newer one is handed out when it is needed.
    pub fn revocation_list(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: OffsetDateTime,
    ) -> Result<String, SignError> {
        let entries = revoked
            .iter()
            .map(|entry| (entry.serial.as_str(), entry.revoked_at));
        let end = self.validity.not_after;
        Ok(mint_crl(&self.issuer, entries, number, now, end)?)
    }

    /// Intermediates and roots.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// Whether the other signs with the same certificate towards the same roots.
    pub fn is_like(&self, other: &Self) -> bool {
        self.certificate == other.certificate && self.bundle == other.bundle
    }

    /// The CA certificate's life.
    pub fn validity(&self) -> Validity {
        self.validity
    }
}

fn check_ca(certificate: &CertificateDer<'_>, key: &PrivateKey) -> Result<(), InvalidSigner> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| InvalidSigner::Certificate("cannot be read"))?;
    if parsed.public_key().raw != key.spki() {
        return Err(InvalidSigner::KeyMismatch);
    }
    if !parsed.is_ca() {
        return Err(InvalidSigner::Certificate(
            "is not a CA (basicConstraints CA:TRUE is missing)",
        ));
    }
    let usage = parsed
        .key_usage()
        .map_err(|_| InvalidSigner::Certificate("has a broken key usage"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(InvalidSigner::Certificate(
            "may not sign certificates (key usage lacks keyCertSign)",
        ));
    }
    Ok(())
}
