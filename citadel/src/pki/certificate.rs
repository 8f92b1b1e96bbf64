//! Minting: leaf certificates in Istio's profile (empty subject, critical SAN, digitalSignature and keyEncipherment, server
//! and client authentication, 128-bit random serial) and self-signed roots.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::key::{PrivateKey, PublicKey, fingerprint};
use super::san::{InvalidSan, San};

/// How far back a certificate's life begins, for peers whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(120);
const SERIAL_BYTES: usize = 16;

/// A CA's signing half: its name, its key identifier and its key.
pub type IssuerKey = Issuer<'static, PrivateKey>;

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first good moment.
    pub not_before: OffsetDateTime,
    /// The last good moment.
    pub not_after: OffsetDateTime,
}

/// What a leaf is to say.
#[derive(Debug, Clone)]
pub struct LeafProfile<'a> {
    /// Whose names it carries.
    pub sans: &'a [San],
    /// How long it lives.
    pub validity: Validity,
    /// Puts the first name into the subject too, for old clients.
    pub dual_use: bool,
}

/// A certificate that was just minted.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The same in PEM.
    pub pem: String,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Its life.
    pub validity: Validity,
}

/// Why nothing was minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// A name cannot be encoded.
    #[error(transparent)]
    San(#[from] InvalidSan),
    /// The library refused.
    #[error("encode certificate: {0}")]
    Encode(#[from] rcgen::Error),
    /// The CA's own certificate cannot be used as an issuer.
    #[error("read the CA certificate")]
    Issuer,
}

impl Validity {
    /// A life of `ttl` from `now`, begun a little earlier for clocks that are behind.
    pub fn starting(now: OffsetDateTime, ttl: Duration) -> Self {
        // X.509 counts whole seconds.
        let now = now.replace_nanosecond(0).unwrap_or(now);
        Self {
            not_before: now - CLOCK_SKEW,
            not_after: now + ttl,
        }
    }

    /// The life of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Result<Self, MintError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| MintError::Issuer)?;
        let validity = parsed.validity();
        Ok(Self {
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
        })
    }

    /// Whether `now` lies inside.
    pub fn contains(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// The issuer made of a CA certificate in DER and its key.
pub fn issuer_of(certificate: &[u8], key: &PrivateKey) -> Result<IssuerKey, MintError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| MintError::Issuer)?;
    // The library panics on an empty relative name.
    if parsed
        .subject()
        .iter()
        .any(|name| name.iter().next().is_none())
    {
        return Err(MintError::Issuer);
    }
    let der = CertificateDer::from(certificate);
    Issuer::from_ca_cert_der(&der, key.clone()).map_err(|_| MintError::Issuer)
}

/// A leaf for `public_key`, signed by `issuer`.
pub fn mint_leaf(
    issuer: &IssuerKey,
    public_key: &PublicKey,
    profile: &LeafProfile<'_>,
) -> Result<Certificate, MintError> {
    let mut params = base_params(profile.validity);
    params.subject_alt_names = profile
        .sans
        .iter()
        .map(San::to_rcgen)
        .collect::<Result<_, _>>()?;
    if let (true, Some(first)) = (profile.dual_use, profile.sans.first()) {
        params
            .distinguished_name
            .push(DnType::CommonName, first.to_string());
    }
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    let serial = random_serial();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let minted = params.signed_by(public_key.info(), issuer)?;
    Ok(finish(&minted, &serial, profile.validity))
}

/// A self-signed root for `key`; its organization is the trust domain (or what `--org` says). The common name is of the key:
/// roots that live side by side need names of their own, by which revocation lists are found.
pub fn mint_root(
    key: &PrivateKey,
    organization: &str,
    validity: Validity,
) -> Result<Certificate, MintError> {
    let mut params = base_params(validity);
    params
        .distinguished_name
        .push(DnType::OrganizationName, organization);
    let key_id = fingerprint(&key.spki());
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Citadel {}", &key_id[..8]));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let serial = random_serial();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let minted = params.self_signed(key)?;
    Ok(finish(&minted, &serial, validity))
}

fn base_params(validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params
}

fn finish(minted: &rcgen::Certificate, serial: &[u8], validity: Validity) -> Certificate {
    Certificate {
        der: minted.der().clone(),
        pem: minted.pem(),
        serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        validity,
    }
}

/// 127 random bits with a first byte that keeps the number positive and of full length.
fn random_serial() -> [u8; SERIAL_BYTES] {
    let mut serial: [u8; SERIAL_BYTES] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}
