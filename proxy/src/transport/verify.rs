//! Checks of a peer's certificate: its chain (or its SPIFFE trust domain's bundle), then names and pins, as Envoy's validators do.
//!
//! Names are checked by matchers; the server name asked for is compared only where the configuration says so
//! (`auto_san_validation`, `auto_sni_san_validation`), as in Envoy.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

pub(super) mod chain;
pub(super) mod spiffe;

use super::{
    certificate::{self, CertificateDetails},
    secret::Validation,
};
use crate::{
    invalid::{At as _, Invalid, try_all},
    matcher::StringMatcher,
};
use base64::Engine as _;
use chain::{ChainRules, Usage};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, certificate_validation_context::TrustChainVerification,
    subject_alt_name_matcher::SanType,
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    server::danger::{ClientCertVerified, ClientCertVerifier},
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
}

/// Everything that is checked of a peer.
#[derive(Debug)]
pub(crate) struct Verifier {
    validation: Option<Arc<Validation>>,
    rules: Option<ChainRules>,
    checks: NameChecks,
    is_untrusted_accepted: bool,
    subjects: Vec<DistinguishedName>,
}

impl NameChecks {
    /// The checks of a context.
    pub(crate) fn new(wire: &CertificateValidationContext) -> Result<Self, Invalid> {
        let mut names = try_all(
            "match_typed_subject_alt_names",
            &wire.match_typed_subject_alt_names,
            |one| {
                let kind = one.san_type();
                if matches!(kind, SanType::Unspecified | SanType::OtherName) {
                    return Err(
                        Invalid::new(format!("{} is not supported", kind.as_str_name()))
                            .at("san_type"),
                    );
                }
                let matcher = one
                    .matcher
                    .as_ref()
                    .ok_or_else(|| Invalid::new("a matcher is needed").at("matcher"))?;
                Ok((kind, StringMatcher::try_from(matcher).at("matcher")?))
            },
        )?;
        // The older list counts only where the newer one is not used.
        if names.is_empty() {
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
        }
        let spki = try_all(
            "verify_certificate_spki",
            &wire.verify_certificate_spki,
            |pin| {
                let pin = base64::engine::general_purpose::STANDARD
                    .decode(pin)
                    .map_err(|error| Invalid::new(error.to_string()))?;
                sha256_sized(pin)
            },
        )?;
        let hashes = try_all(
            "verify_certificate_hash",
            &wire.verify_certificate_hash,
            |hash| unhex(hash).and_then(sha256_sized),
        )?;
        Ok(Self {
            names,
            spki,
            hashes,
        })
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.spki.is_empty() && self.hashes.is_empty()
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        asked: Option<&ServerName<'_>>,
    ) -> Result<(), Error> {
        if self.is_empty() && asked.is_none() {
            return Ok(());
        }
        let details = certificate::details(leaf).ok_or(CertificateError::BadEncoding)?;
        let is_named = match asked {
            // The name asked for takes the place of the matchers.
            Some(asked) => is_for(&details, asked),
            None => {
                self.names.is_empty()
                    || self
                        .names
                        .iter()
                        .any(|(kind, matcher)| has_name(&details, *kind, matcher))
            }
        };
        if !is_named {
            return Err(CertificateError::NotValidForName.into());
        }
        let is_pinning = !self.spki.is_empty() || !self.hashes.is_empty();
        let is_pinned = || {
            let hash = Sha256::digest(leaf);
            self.spki
                .iter()
                .any(|pin| pin.as_slice() == details.spki_sha256)
                || self
                    .hashes
                    .iter()
                    .any(|one| one.as_slice() == hash.as_slice())
        };
        if is_pinning && !is_pinned() {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(())
    }
}

fn is_for(details: &CertificateDetails, asked: &ServerName<'_>) -> bool {
    match asked {
        ServerName::DnsName(name) => {
            let name = name.as_ref();
            let mut sans = details.dns_sans.iter();
            sans.any(|san| san.eq_ignore_ascii_case(name) || is_wildcard_for(san, name))
        }
        ServerName::IpAddress(ip) => {
            let ip = std::net::IpAddr::from(*ip).to_string();
            details.ip_sans.contains(&ip)
        }
        _ => false,
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
    digits
        .chunks(2)
        .map(|pair| crate::wire::hex_byte(pair).ok_or_else(|| Invalid::new("not hexadecimal")))
        .collect()
}

fn sha256_sized(bytes: Vec<u8>) -> Result<Vec<u8>, Invalid> {
    if bytes.len() == 32 {
        Ok(bytes)
    } else {
        Err(Invalid::new("Invalid hash length: a SHA-256 has 32 bytes"))
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

impl Verifier {
    /// Checks against `validation`; without one everything passes, as in Envoy.
    pub(crate) fn new(validation: Option<Arc<Validation>>) -> Result<Self, Invalid> {
        let Some(validation) = validation else {
            return Ok(Self {
                validation: None,
                rules: None,
                checks: NameChecks::default(),
                is_untrusted_accepted: false,
                subjects: Vec::new(),
            });
        };
        let mut subjects = Vec::new();
        if !validation.wire.suppress_client_ca_list {
            if let Some(bundles) = &validation.spiffe {
                subjects = bundles.subjects();
            } else if let Some(roots) = &validation.roots {
                subjects = roots.store.subjects();
            }
        }
        Ok(Self {
            rules: Some(ChainRules::new(&validation)),
            checks: NameChecks::new(&validation.wire)?,
            is_untrusted_accepted: validation.wire.trust_chain_verification()
                == TrustChainVerification::AcceptUntrusted,
            subjects,
            validation: Some(validation),
        })
    }

    /// Whether there is anything to check; a server that checks nothing asks for no certificate.
    pub(crate) fn is_checking(&self) -> bool {
        !self.checks.is_empty()
            || self
                .validation
                .as_ref()
                .is_some_and(|validation| validation.roots.is_some() || validation.spiffe.is_some())
    }

    /// Whether a chain that passed may have failed the checks.
    pub(crate) fn is_lenient(&self) -> bool {
        self.is_untrusted_accepted || !self.is_checking()
    }

    /// Checks a client's chain as it is: what the handshake let pass may still have failed.
    pub(crate) fn is_valid_client(&self, chain: &[CertificateDer<'_>]) -> bool {
        self.is_checking()
            && chain.split_first().is_some_and(|(leaf, rest)| {
                self.check(leaf, rest, None, UnixTime::now(), Usage::Client)
                    .is_ok()
            })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: Option<&ServerName<'_>>,
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        if let (Some(validation), Some(rules)) = (&self.validation, &self.rules) {
            if let Some(bundles) = &validation.spiffe {
                bundles.verify(rules, leaf, intermediates, now, usage)?;
            } else if let Some(roots) = &validation.roots {
                rules.verify(roots, leaf, intermediates, now, usage)?;
            }
        }
        self.checks.check(leaf, asked)
    }

    fn accept(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: Option<&ServerName<'_>>,
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        match self.check(leaf, intermediates, asked, now, usage) {
            Err(error) if !self.is_untrusted_accepted => Err(error),
            _ => Ok(()),
        }
    }
}

/// The signatures of a handshake, which both sides check alike.
macro_rules! check_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            algorithms().supported_schemes()
        }
    };
}

/// Checks servers.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    /// What is checked.
    pub(crate) verifier: Arc<Verifier>,
    /// Whether the name asked for must be in the certificate.
    pub(crate) is_name_checked: bool,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let asked = self.is_name_checked.then_some(name);
        self.verifier
            .accept(leaf, intermediates, asked, now, Usage::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    check_signatures!();
}

/// Checks clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    /// What is checked.
    pub(crate) verifier: Arc<Verifier>,
    /// Whether a client must show a certificate.
    pub(crate) is_required: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.verifier.subjects
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
        self.verifier
            .accept(leaf, intermediates, None, now, Usage::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    check_signatures!();
}
