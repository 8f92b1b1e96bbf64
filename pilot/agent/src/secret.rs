//! What SDS serves: a workload's key and chain, and what it trusts; each with a version that changes with its content.
//!
//! What is trusted comes with each certificate, and, where Citadel pushes it, as [`Anchors`]: those count then, with the lists
//! of what is revoked.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Name of the workload's own certificate.
pub const DEFAULT: &str = "default";
/// Name of what it trusts.
pub const ROOT_CA: &str = "ROOTCA";

/// A certified key and its trust anchors.
#[derive(Clone, PartialEq, Eq)]
pub struct Workload {
    key: Zeroizing<String>,
    chain: String,
    roots: String,
    /// End of the certificate's life.
    pub not_after: OffsetDateTime,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// Name of the root that the chain leads to.
    root: Vec<u8>,
}

/// What Citadel says everybody is to believe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Anchors {
    roots: String,
    crls: String,
    /// Names of the roots, the one that signs now first.
    subjects: Vec<Vec<u8>>,
    /// Serial numbers of revoked certificates, hexadecimal.
    revoked: BTreeSet<String>,
}

/// What new anchors mean for a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Nothing.
    Good,
    /// Its root is no longer the one that signs.
    Superseded,
    /// It is revoked.
    Revoked,
}

/// A certificate and key as files give them (gateway credentials).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// Certificate chain in PEM.
    pub chain: Option<String>,
    /// Private key in PEM.
    pub key: Option<String>,
    /// Trust anchors in PEM.
    pub roots: Option<String>,
}

/// A secret as it goes over the wire, with its version.
#[derive(Clone, PartialEq)]
pub struct Versioned {
    /// Changes when the content does.
    pub version: String,
    /// The message.
    pub secret: Secret,
}

/// Why an answer is no secret.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSecret {
    /// Too few certificates.
    #[error("the chain has {0} entries, at least a certificate and its root are needed")]
    Short(usize),
    /// An entry is no certificate.
    #[error("entry {0} of the chain is no certificate in PEM")]
    Certificate(usize),
    /// What is to be trusted is something else.
    #[error("what Citadel says is to be trusted: {0}")]
    Anchors(&'static str),
    /// It is expired already.
    #[error("the certificate has ended at {0}: are the clocks right?")]
    Expired(OffsetDateTime),
}

impl Workload {
    /// From a new key and Citadel's answer: the certificate, intermediates, and the roots as the last entry.
    pub fn new(key: String, answer: &[String]) -> Result<Self, InvalidSecret> {
        let [certificates @ .., roots] = answer else {
            return Err(InvalidSecret::Short(0));
        };
        if certificates.is_empty() {
            return Err(InvalidSecret::Short(answer.len()));
        }
        for (index, entry) in answer.iter().enumerate() {
            CertificateDer::from_pem_slice(entry.as_bytes())
                .map_err(|_| InvalidSecret::Certificate(index))?;
        }
        let leaf = CertificateDer::from_pem_slice(certificates[0].as_bytes())
            .map_err(|_| InvalidSecret::Certificate(0))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf)
            .map_err(|_| InvalidSecret::Certificate(0))?;
        let not_after = parsed.validity().not_after.to_datetime();
        if not_after <= OffsetDateTime::now_utc() {
            return Err(InvalidSecret::Expired(not_after));
        }
        let mut root = parsed.issuer().as_raw().to_vec();
        for der in certificates[1..]
            .iter()
            .flat_map(|entry| CertificateDer::pem_slice_iter(entry.as_bytes()))
        {
            let der = der.map_err(|_| InvalidSecret::Certificate(1))?;
            let (_, above) = x509_parser::parse_x509_certificate(&der)
                .map_err(|_| InvalidSecret::Certificate(1))?;
            root = above.issuer().as_raw().to_vec();
        }
        let chain: Vec<&str> = certificates.iter().map(|entry| entry.trim_end()).collect();
        Ok(Self {
            key: Zeroizing::new(key),
            chain: chain.join("\n") + "\n",
            roots: roots.clone(),
            not_after,
            serial: hexadecimal(parsed.raw_serial()),
            root,
        })
    }

    /// How much of its life is left.
    pub fn remaining(&self) -> Duration {
        Duration::try_from(self.not_after - OffsetDateTime::now_utc()).unwrap_or_default()
    }

    /// Chain and key in PEM, to show to Citadel.
    pub fn pem(&self) -> (&str, &str) {
        (&self.chain, &self.key)
    }

    /// The root that the chain leads to, PEM.
    pub fn trusted(&self) -> &str {
        &self.roots
    }

    /// The secret `default`.
    pub fn certificate(&self) -> Versioned {
        certificate(DEFAULT, &self.chain, &self.key)
    }

    /// The secret `ROOTCA`.
    pub fn roots(&self) -> Versioned {
        roots(ROOT_CA, &self.roots)
    }
}

impl Anchors {
    /// The roots, PEM.
    pub fn trusted(&self) -> &str {
        &self.roots
    }

    /// Checks what Citadel has pushed.
    pub fn new(context: &CertificateValidationContext) -> Result<Self, InvalidSecret> {
        Self::from_pem(
            text(context.trusted_ca.as_ref())?,
            text(context.crl.as_ref())?,
        )
    }

    /// Checks roots and revocation lists, PEM.
    pub fn from_pem(roots: String, crls: String) -> Result<Self, InvalidSecret> {
        let mut subjects = Vec::new();
        for der in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            let der = der.map_err(|_| InvalidSecret::Anchors("a root is no PEM"))?;
            let (_, root) = x509_parser::parse_x509_certificate(&der)
                .map_err(|_| InvalidSecret::Anchors("a root is no certificate"))?;
            subjects.push(root.subject().as_raw().to_vec());
        }
        if subjects.is_empty() {
            return Err(InvalidSecret::Anchors("there is no root"));
        }
        let mut revoked = BTreeSet::new();
        for der in CertificateRevocationListDer::pem_slice_iter(crls.as_bytes()) {
            let der = der.map_err(|_| InvalidSecret::Anchors("a revocation list is no PEM"))?;
            let (_, list) = x509_parser::parse_x509_crl(&der)
                .map_err(|_| InvalidSecret::Anchors("a revocation list cannot be read"))?;
            let entries = list.iter_revoked_certificates();
            revoked.extend(entries.map(|entry| hexadecimal(entry.raw_serial())));
        }
        Ok(Self {
            roots,
            crls,
            subjects,
            revoked,
        })
    }

    /// What they mean for our certificate.
    pub fn standing(&self, workload: &Workload) -> Standing {
        if self.revoked.contains(&workload.serial) {
            Standing::Revoked
        } else if self.subjects.first() != Some(&workload.root) {
            Standing::Superseded
        } else {
            Standing::Good
        }
    }

    /// The secret `ROOTCA`.
    pub fn secret(&self) -> Versioned {
        let context = CertificateValidationContext {
            trusted_ca: Some(inline(&self.roots)),
            crl: (!self.crls.is_empty()).then(|| inline(&self.crls)),
            // There are no lists for the authorities above Citadel's.
            only_verify_leaf_cert_crl: true,
            ..CertificateValidationContext::default()
        };
        versioned(
            ROOT_CA,
            Type::ValidationContext(context),
            &[&self.roots, &self.crls],
        )
    }
}

fn text(source: Option<&DataSource>) -> Result<String, InvalidSecret> {
    match source.and_then(|source| source.specifier.as_ref()) {
        None => Ok(String::new()),
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone())
            .map_err(|_| InvalidSecret::Anchors("they are not text")),
        Some(Specifier::InlineString(text)) => Ok(text.clone()),
        Some(_) => Err(InvalidSecret::Anchors("they are not inline")),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Files {
    /// The secret `name`, if the files for it are complete.
    pub fn certificate(&self, name: &str) -> Option<Versioned> {
        let (chain, key) = (self.chain.as_ref()?, self.key.as_ref()?);
        Some(certificate(name, chain, key))
    }

    /// The trust anchors under `name`.
    pub fn roots(&self, name: &str) -> Option<Versioned> {
        Some(roots(name, self.roots.as_ref()?))
    }
}

fn certificate(name: &str, chain: &str, key: &str) -> Versioned {
    let tls = TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: Some(inline(key)),
        ..TlsCertificate::default()
    };
    versioned(name, Type::TlsCertificate(tls), &[chain, key])
}

fn roots(name: &str, pem: &str) -> Versioned {
    let context = CertificateValidationContext {
        trusted_ca: Some(inline(pem)),
        ..CertificateValidationContext::default()
    };
    versioned(name, Type::ValidationContext(context), &[pem])
}

fn versioned(name: &str, r#type: Type, content: &[&str]) -> Versioned {
    let mut hash = Sha256::new();
    for part in content {
        hash.update(part.as_bytes());
    }
    let version = hexadecimal(&hash.finalize()[..8]);
    Versioned {
        version,
        secret: Secret {
            name: name.to_owned(),
            r#type: Some(r#type),
        },
    }
}

fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())),
        ..DataSource::default()
    }
}

#[cfg(test)]
mod tests;
