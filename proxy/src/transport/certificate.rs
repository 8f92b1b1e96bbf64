//! What certificates say: for `/certs`, for RBAC and access logs, for checks of names.

use crate::listener::PeerCertificate;
use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use x509_parser::asn1_rs::{Any, Class, Tag, ToDer as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name};

/// What a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateDetails {
    pub(crate) uri_sans: Vec<String>,
    pub(crate) dns_sans: Vec<String>,
    pub(crate) ip_sans: Vec<String>,
    pub(crate) email_sans: Vec<String>,
    pub(crate) other_sans: Vec<String>,
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// SHA-256 of the public key info, for pins.
    pub(crate) spki_sha256: [u8; 32],
    /// Whether it may sign others.
    pub(crate) is_ca: bool,
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
        is_ca: certificate.is_ca()
            || matches!(certificate.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign() || usage.value.crl_sign()),
        ..CertificateDetails::default()
    };
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => details.uri_sans.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => details.dns_sans.push((*dns).to_owned()),
                GeneralName::RFC822Name(email) => details.email_sans.push((*email).to_owned()),
                GeneralName::OtherName(_, value) => {
                    details.other_sans.extend(other_name_text(value));
                }
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

/// RFC 2253: the most specific part first, joined by commas; what means something in such a text is escaped.
fn name_text(name: &X509Name<'_>) -> String {
    let set = |set: &RelativeDistinguishedName<'_>| {
        let parts: Vec<String> = set.iter().map(attribute_text).collect();
        parts.join("+")
    };
    let sets: Vec<String> = name.iter_rdn().map(set).collect();
    sets.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type().to_id_string();
    let known = NAMES.iter().find(|(oid, _)| *oid == kind);
    let value = attribute.attr_value();
    match (known, attribute.as_str()) {
        (Some((_, name)), Ok(text)) => format!("{name}={}", escaped(text)),
        // Types without a name of their own are written as their encoding.
        (None, _) | (_, Err(_)) => {
            let encoded = value.to_der_vec().unwrap_or_default();
            let name = known.map_or(kind.as_str(), |(_, name)| name);
            format!("{name}=#{}", hex(&encoded).to_ascii_uppercase())
        }
    }
}

/// Attribute types that RFC 2253 texts name, as Envoy's TLS library writes them.
const NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "GN"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(text.len());
    for (index, c) in text.chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', c]),
            '#' if index == 0 => out.extend(['\\', c]),
            ' ' if index == 0 || index == last => out.extend(['\\', c]),
            c if c.is_control() || !c.is_ascii() => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\{byte:02X}");
                }
            }
            c => out.push(c),
        }
    }
    out
}

fn ip_text(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
        16 => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        _ => None,
    }
}

/// The text that an `otherName` has (`[0] EXPLICIT`), if it is one.
fn other_name_text(value: &[u8]) -> Option<String> {
    let (_, outer) = Any::from_der(value).ok()?;
    let inner = if outer.class() == Class::ContextSpecific {
        Any::from_der(outer.data).ok()?.1
    } else {
        outer
    };
    let text = std::str::from_utf8(inner.data).ok()?;
    matches!(
        inner.tag(),
        Tag::Utf8String | Tag::Ia5String | Tag::PrintableString
    )
    .then(|| text.to_owned())
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

/// Certificates as PEM, percent-encoded.
pub(crate) fn url_encoded_pem(chain: &[Vec<u8>]) -> String {
    let mut pem = String::new();
    for certificate in chain {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.push_str(std::str::from_utf8(line).unwrap_or_default());
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    let mut out = String::with_capacity(pem.len() * 5 / 4);
    for c in pem.chars() {
        match c {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_escaped_as_rfc_2253_says() {
        assert_eq!(escaped("Acme, Inc. \"x\""), "Acme\\, Inc. \\\"x\\\"");
        assert_eq!(escaped(" #a "), "\\ #a\\ ");
        assert_eq!(escaped("#a"), "\\#a");
        assert_eq!(escaped("é"), "\\C3\\A9");
    }

    #[test]
    fn fuzz_certificates() {
        crate::fuzz::fuzz("certificates", |bytes| {
            details(bytes);
            peer_certificate(&[CertificateDer::from(bytes)], true);
        });
    }
}
