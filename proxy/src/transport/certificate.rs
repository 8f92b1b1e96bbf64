//! What certificates say: for `/certs`, for RBAC and access logs, for checks of names.

use crate::listener::PeerCertificate;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// What a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateDetails {
    pub(crate) uri_sans: Vec<String>,
    pub(crate) dns_sans: Vec<String>,
    pub(crate) ip_sans: Vec<String>,
    pub(crate) email_sans: Vec<String>,
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// SHA-256 of the public key info, for pins.
    pub(crate) spki_sha256: [u8; 32],
}

/// Reads a certificate; `None` when it is not one.
pub(crate) fn details(der: &[u8]) -> Option<CertificateDetails> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut details = CertificateDetails {
        subject: name_text(certificate.subject()),
        issuer: name_text(certificate.issuer()),
        serial: hex(trim_zeros(certificate.raw_serial())),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        spki_sha256: Sha256::digest(certificate.public_key().raw).into(),
        ..CertificateDetails::default()
    };
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => details.uri_sans.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => details.dns_sans.push((*dns).to_owned()),
                GeneralName::RFC822Name(email) => details.email_sans.push((*email).to_owned()),
                GeneralName::IPAddress(bytes) => details.ip_sans.extend(ip_text(bytes)),
                _ => {}
            }
        }
    }
    Some(details)
}

/// What the peer's chain (leaf first) says.
pub(crate) fn peer_certificate(
    chain: &[CertificateDer<'_>],
    is_validated: bool,
) -> Option<PeerCertificate> {
    let leaf = chain.first()?;
    let details = details(leaf)?;
    Some(PeerCertificate {
        is_validated,
        uri_sans: details.uri_sans,
        dns_sans: details.dns_sans,
        subject: details.subject,
        issuer: details.issuer,
        sha256: hex(&Sha256::digest(leaf)),
        serial: details.serial,
        not_before: details.not_before,
        not_after: details.not_after,
        chain: chain
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect(),
    })
}

/// RFC 2253: the most specific part first, joined by commas.
fn name_text(name: &x509_parser::x509::X509Name<'_>) -> String {
    let mut parts: Vec<String> = name.to_string().split(", ").map(str::to_owned).collect();
    parts.reverse();
    parts.join(",")
}

fn ip_text(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
        16 => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        _ => None,
    }
}

fn trim_zeros(bytes: &[u8]) -> &[u8] {
    let start = bytes
        .iter()
        .position(|byte| *byte != 0)
        .unwrap_or(bytes.len().saturating_sub(1));
    &bytes[start..]
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
