//! Checks of a peer's certificate: chain to the roots, then names and pins, as Envoy's default validator does.
//!
//! Names are checked by matchers only; the server name asked for is not compared, as in Envoy.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use super::{
    certificate::{self, CertificateDetails},
    secret::Validation,
};
use crate::{
    invalid::{At as _, Invalid, try_all},
    matcher::StringMatcher,
};
use base64::Engine as _;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, certificate_validation_context::TrustChainVerification,
    subject_alt_name_matcher::SanType,
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// What is checked besides the chain.
#[derive(Debug, Default)]
pub(crate) struct NameChecks {
    names: Vec<(SanType, StringMatcher)>,
    spki: Vec<Vec<u8>>,
    hashes: Vec<Vec<u8>>,
    is_untrusted_accepted: bool,
}

impl NameChecks {
    /// The checks of `contexts`; those of an earlier one win when a later one has none of a kind.
    pub(crate) fn new(wire: &CertificateValidationContext) -> Result<Self, Invalid> {
        let mut names = try_all(
            "match_typed_subject_alt_names",
            &wire.match_typed_subject_alt_names,
            |one| {
                let matcher = one
                    .matcher
                    .as_ref()
                    .ok_or_else(|| Invalid::new("a matcher is needed").at("matcher"))?;
                Ok((
                    one.san_type(),
                    StringMatcher::try_from(matcher).at("matcher")?,
                ))
            },
        )?;
        for matcher in &wire.match_subject_alt_names {
            let matcher = StringMatcher::try_from(matcher).at("match_subject_alt_names")?;
            names.extend(
                [
                    SanType::Dns,
                    SanType::Uri,
                    SanType::Email,
                    SanType::IpAddress,
                ]
                .map(|kind| (kind, matcher.clone())),
            );
        }
        let spki = try_all(
            "verify_certificate_spki",
            &wire.verify_certificate_spki,
            |pin| {
                base64::engine::general_purpose::STANDARD
                    .decode(pin)
                    .map_err(|error| Invalid::new(error.to_string()))
            },
        )?;
        let hashes = try_all(
            "verify_certificate_hash",
            &wire.verify_certificate_hash,
            |hash| unhex(hash),
        )?;
        Ok(Self {
            names,
            spki,
            hashes,
            is_untrusted_accepted: wire.trust_chain_verification()
                == TrustChainVerification::AcceptUntrusted,
        })
    }

    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.names.is_empty() && self.spki.is_empty() && self.hashes.is_empty() {
            return Ok(());
        }
        let details = certificate::details(leaf)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if !self.names.is_empty()
            && !self
                .names
                .iter()
                .any(|(kind, matcher)| has_name(&details, *kind, matcher))
        {
            return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        }
        let is_pinned = self
            .spki
            .iter()
            .any(|pin| pin.as_slice() == details.spki_sha256)
            || self
                .hashes
                .iter()
                .any(|hash| hash.as_slice() == Sha256::digest(leaf).as_slice());
        let is_pinning = !self.spki.is_empty() || !self.hashes.is_empty();
        if is_pinning && !is_pinned {
            return Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ));
        }
        Ok(())
    }
}

fn has_name(details: &CertificateDetails, kind: SanType, matcher: &StringMatcher) -> bool {
    let names = match kind {
        SanType::Dns => &details.dns_sans,
        SanType::Uri => &details.uri_sans,
        SanType::Email => &details.email_sans,
        SanType::IpAddress => &details.ip_sans,
        SanType::Unspecified | SanType::OtherName => return false,
    };
    names.iter().any(|name| {
        matcher.matches(name)
            || (kind == SanType::Dns
                && matches!(matcher, StringMatcher::Exact(exact) if is_wildcard_for(name, exact)))
    })
}

/// A certificate for `*.example.com` serves `a.example.com`.
fn is_wildcard_for(pattern: &str, name: &str) -> bool {
    pattern
        .strip_prefix("*.")
        .zip(name.split_once('.'))
        .is_some_and(|(suffix, (_, parent))| suffix.eq_ignore_ascii_case(parent))
}

fn unhex(text: &str) -> Result<Vec<u8>, Invalid> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let byte = |pair: &[u8]| {
        std::str::from_utf8(pair)
            .ok()
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
    };
    digits
        .chunks(2)
        .map(|pair| {
            byte(pair)
                .filter(|_| pair.len() == 2)
                .ok_or_else(|| Invalid::new("not hexadecimal"))
        })
        .collect()
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

/// Checks servers.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    roots: Option<Arc<rustls::RootCertStore>>,
    checks: NameChecks,
    /// Set when the request's host must be in the certificate (`auto_san_validation`).
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    /// Checks against `validation`; without one everything passes, as in Envoy.
    pub(crate) fn new(validation: Option<&Validation>, checks: NameChecks) -> Self {
        Self {
            roots: validation.and_then(|validation| validation.roots.clone()),
            checks,
            algorithms: algorithms(),
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots
            && !self.checks.is_untrusted_accepted
        {
            let parsed = ParsedCertificate::try_from(leaf)?;
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        self.checks.check(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    chain: Option<Arc<dyn ClientCertVerifier>>,
    checks: NameChecks,
    is_required: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    /// Checks against `validation`. Without roots any certificate passes the chain's check.
    pub(crate) fn new(
        validation: Option<&Validation>,
        checks: NameChecks,
        is_required: bool,
    ) -> Result<Self, Invalid> {
        let chain: Option<Arc<dyn ClientCertVerifier>> = match validation
            .and_then(|validation| validation.roots.clone())
        {
            Some(roots) if !checks.is_untrusted_accepted => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                Some(verifier.map_err(|error| Invalid::new(error.to_string()).at("trusted_ca"))?)
            }
            _ => None,
        };
        Ok(Self {
            chain,
            checks,
            is_required,
            algorithms: algorithms(),
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain
            .as_ref()
            .map_or(&[], |chain| chain.root_hint_subjects())
    }

    fn client_auth_mandatory(&self) -> bool {
        self.is_required
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(chain) = &self.chain {
            chain.verify_client_cert(leaf, intermediates, now)?;
        }
        self.checks.check(leaf)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
