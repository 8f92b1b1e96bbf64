//! What travels with a leaf: the intermediates that lead to the root, and the roots.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Intermediates (the signing certificate first) and roots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    /// From the CA's own certificate up to, but without, the root; empty when the CA is the root.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// What peers trust; more than one during a change of roots, the one that the way leads to first.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why certificates do not make a bundle.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBundle {
    /// Broken PEM.
    #[error("broken PEM: {0}")]
    Pem(String),
    /// No certificate inside.
    #[error("no certificate in PEM")]
    Empty,
    /// A certificate that cannot be read.
    #[error("certificate {0} cannot be read as X.509")]
    Certificate(usize),
    /// The chain ends before a root.
    #[error(
        "the chain breaks: no certificate of its issuer {issuer:?} among the chain and the roots (subject {subject:?})"
    )]
    Broken {
        /// The certificate whose issuer is missing.
        subject: String,
        /// The missing issuer.
        issuer: String,
    },
}

/// Subject and issuer of a certificate, in DER.
struct Names {
    subject: Vec<u8>,
    issuer: Vec<u8>,
}

impl Bundle {
    /// Orders `chain` from `ca` up to one of `roots`; certificates that do not belong to the way are left out.
    pub fn assemble(
        ca: &CertificateDer<'static>,
        chain: &[CertificateDer<'static>],
        mut roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, InvalidBundle> {
        if roots.is_empty() {
            return Err(InvalidBundle::Empty);
        }
        let mut intermediates: Vec<CertificateDer<'static>> = Vec::new();
        let mut current = ca.clone();
        // Each step uses up one certificate of the chain, so the way cannot be longer than this.
        for _ in 0..=chain.len() {
            if let Some(place) = roots.iter().position(|root| *root == current) {
                roots[..=place].rotate_right(1);
                break;
            }
            let names = Names::of(&current).ok_or(InvalidBundle::Certificate(0))?;
            let issued_current = |candidate: &CertificateDer<'static>| {
                Names::of(candidate).is_some_and(|other| other.subject == names.issuer)
            };
            intermediates.push(current.clone());
            if let Some(place) = roots.iter().position(issued_current) {
                roots[..=place].rotate_right(1);
                break;
            }
            let next = chain
                .iter()
                .find(|candidate| !intermediates.contains(candidate) && issued_current(candidate));
            current = next.ok_or_else(|| names.broken(&current))?.clone();
        }
        Ok(Self {
            intermediates,
            roots,
        })
    }

    /// The roots, one PEM text.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(to_pem).collect()
    }
}

impl Names {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(Self {
            subject: parsed.subject().as_raw().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
        })
    }

    fn broken(&self, certificate: &CertificateDer<'_>) -> InvalidBundle {
        let text = |parsed: &X509Certificate<'_>| {
            (parsed.subject().to_string(), parsed.issuer().to_string())
        };
        let (subject, issuer) = X509Certificate::from_der(certificate)
            .map(|(_, parsed)| text(&parsed))
            .unwrap_or_default();
        InvalidBundle::Broken { subject, issuer }
    }
}

/// All certificates of a PEM text, in its order; at least one, each readable.
pub fn certificates_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, InvalidBundle> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| InvalidBundle::Pem(error.to_string()))?;
    if certificates.is_empty() {
        return Err(InvalidBundle::Empty);
    }
    for (index, certificate) in certificates.iter().enumerate() {
        X509Certificate::from_der(certificate)
            .ok()
            .filter(|(rest, _)| rest.is_empty())
            .ok_or(InvalidBundle::Certificate(index))?;
    }
    Ok(certificates)
}

/// One certificate in PEM.
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
