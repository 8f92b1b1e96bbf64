//! PKCS#10 signing requests. Of a request only the public key is used, after the proof that the caller owns it; names and
//! extensions that it asks for are neither trusted nor looked at.

use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::key::{InvalidKey, PublicKey};

/// Signature algorithms by which a request may prove possession of its key: RSA and ECDSA with SHA-2, Ed25519.
const SIGNATURES: &[&str] = &[
    "1.2.840.113549.1.1.11",
    "1.2.840.113549.1.1.12",
    "1.2.840.113549.1.1.13",
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.3.101.112",
];

/// A request whose signature was verified.
#[derive(Debug, Clone)]
pub struct SigningRequest {
    /// The key to certify.
    pub public_key: PublicKey,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCsr {
    /// Not PEM, or not a certificate request.
    #[error("not a certificate signing request in PEM")]
    Pem,
    /// The DER inside is broken.
    #[error("malformed certificate signing request")]
    Malformed,
    /// Signed with something weak or unknown.
    #[error("unsupported signature algorithm {0} in the signing request")]
    SignatureAlgorithm(String),
    /// The signature does not belong to the key.
    #[error("the signing request's signature does not verify with its public key")]
    Signature,
    /// The key is weak or unknown.
    #[error("the signing request's key")]
    Key(#[source] InvalidKey),
}

impl SigningRequest {
    /// Reads and verifies a request in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidCsr> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| InvalidCsr::Pem)?;
        Self::from_der(&der)
    }

    /// Reads and verifies a request in DER.
    pub fn from_der(der: &[u8]) -> Result<Self, InvalidCsr> {
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| InvalidCsr::Malformed)?;
        if !rest.is_empty() {
            return Err(InvalidCsr::Malformed);
        }
        let algorithm = request.signature_algorithm.algorithm.to_id_string();
        if !SIGNATURES.contains(&algorithm.as_str()) {
            return Err(InvalidCsr::SignatureAlgorithm(algorithm));
        }
        // The key first: its refusal says more than "signature does not verify".
        let public_key = PublicKey::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(InvalidCsr::Key)?;
        request
            .verify_signature()
            .map_err(|_| InvalidCsr::Signature)?;
        Ok(Self { public_key })
    }
}
