//! What SDS serves: a workload's key and chain, and what it trusts; each with a version that changes with its content.

use std::time::Duration;

use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

/// Name of the workload's own certificate.
pub const DEFAULT: &str = "default";
/// Name of what it trusts.
pub const ROOT_CA: &str = "ROOTCA";

/// A certified key and its trust anchors.
#[derive(Clone, PartialEq, Eq)]
pub struct Workload {
    key: String,
    chain: String,
    roots: String,
    /// End of the certificate's life.
    pub not_after: OffsetDateTime,
    /// Its serial number, hexadecimal.
    pub serial: String,
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
        let chain: Vec<&str> = certificates.iter().map(|entry| entry.trim_end()).collect();
        Ok(Self {
            key,
            chain: chain.join("\n") + "\n",
            roots: roots.clone(),
            not_after,
            serial: parsed
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        })
    }

    /// How much of its life is left.
    pub fn remaining(&self) -> Duration {
        Duration::try_from(self.not_after - OffsetDateTime::now_utc()).unwrap_or_default()
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
    let version = hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
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
