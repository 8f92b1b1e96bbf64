//! TLS parameters: versions, cipher suites and key exchange groups under the names that Envoy's TLS library knows.
//!
//! A list is a set of choices: names that exist elsewhere and not here (CBC, static RSA, P-521, …) are left out of it, and a list
//! of which nothing is left is refused. A name that exists nowhere is refused, as Envoy does.

use crate::invalid::{Invalid, try_all};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    TlsParameters, tls_parameters::TlsProtocol,
};
use rustls::{
    CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, ring},
};
use std::sync::{Arc, OnceLock};

/// What both ends of a handshake may agree on.
pub(super) struct Parameters {
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    pub(super) provider: Arc<CryptoProvider>,
}

/// TLS 1.2 suites: the library's name, ours.
const SUITES: &[(&str, CipherSuite)] = &[
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
];

/// Suites that exist and are not spoken here.
const OTHER_SUITES: &[&str] = &[
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA384",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "AES128-GCM-SHA256",
    "AES128-SHA",
    "AES128-SHA256",
    "AES256-GCM-SHA384",
    "AES256-SHA",
    "AES256-SHA256",
    "DES-CBC3-SHA",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
];

const GROUPS: &[(&str, NamedGroup)] = &[
    ("X25519", NamedGroup::X25519),
    ("P-256", NamedGroup::secp256r1),
    ("P-384", NamedGroup::secp384r1),
];

/// Groups that exist and are not spoken here.
const OTHER_GROUPS: &[&str] = &[
    "P-224",
    "P-521",
    "X25519MLKEM768",
    "X25519Kyber768Draft00",
    "MLKEM1024",
];

impl Parameters {
    /// Checks `wire`; none means everything that is safe.
    pub(super) fn new(wire: Option<&TlsParameters>) -> Result<Self, Invalid> {
        let Some(wire) = wire else {
            return Ok(Self {
                versions: rustls::ALL_VERSIONS.to_vec(),
                provider: default_provider(),
            });
        };
        if !wire.signature_algorithms.is_empty() {
            return Err(Invalid::new("not supported").at("signature_algorithms"));
        }
        if !wire.compliance_policies.is_empty() {
            return Err(Invalid::new("not supported").at("compliance_policies"));
        }
        let provider = if wire.cipher_suites.is_empty() && wire.ecdh_curves.is_empty() {
            default_provider()
        } else {
            let mut provider = ring::default_provider();
            if !wire.cipher_suites.is_empty() {
                provider.cipher_suites = suites(&wire.cipher_suites, &provider.cipher_suites)?;
            }
            if !wire.ecdh_curves.is_empty() {
                provider.kx_groups = groups(&wire.ecdh_curves, &provider.kx_groups)?;
            }
            Arc::new(provider)
        };
        Ok(Self {
            versions: versions(wire)?,
            provider,
        })
    }
}

/// The provider that nearly every context shares, in Envoy's order of preference.
fn default_provider() -> Arc<CryptoProvider> {
    static DEFAULT: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let mut provider = ring::default_provider();
        let rank = |suite: &SupportedCipherSuite| {
            let of = suite.suite();
            SUITES.iter().position(|(_, one)| *one == of)
        };
        // TLS 1.3 suites have no rank and stay in front.
        provider.cipher_suites.sort_by_key(rank);
        Arc::new(provider)
    };
    DEFAULT.get_or_init(make).clone()
}

fn versions(wire: &TlsParameters) -> Result<Vec<&'static SupportedProtocolVersion>, Invalid> {
    let rank = |version: TlsProtocol, default: u8| match version {
        TlsProtocol::TlsAuto => default,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => 1,
        TlsProtocol::TlSv12 => 2,
        TlsProtocol::TlSv13 => 3,
    };
    let (least, most) = (
        rank(wire.tls_minimum_protocol_version(), 2),
        rank(wire.tls_maximum_protocol_version(), 3),
    );
    let mut versions = Vec::new();
    if (least..=most).contains(&3) {
        versions.push(&rustls::version::TLS13);
    }
    if (least..=most).contains(&2) {
        versions.push(&rustls::version::TLS12);
    }
    if versions.is_empty() {
        return Err(Invalid::new("only TLS 1.2 and 1.3 are spoken").at("tls_params"));
    }
    Ok(versions)
}

/// The TLS 1.2 suites of the list, in its order, behind those of TLS 1.3, which the list says nothing about.
fn suites(
    names: &[String],
    all: &[SupportedCipherSuite],
) -> Result<Vec<SupportedCipherSuite>, Invalid> {
    // `[A|B]` are equally good.
    let flat = names
        .iter()
        .flat_map(|name| name.trim_matches(['[', ']']).split('|'));
    let wanted = try_all("cipher_suites", flat, |name| {
        let known = SUITES.iter().find(|(one, _)| *one == name);
        match known {
            Some((_, suite)) => Ok(Some(*suite)),
            None if OTHER_SUITES.contains(&name) => Ok(None),
            None => Err(Invalid::new(format!("{name:?} is not a cipher suite"))),
        }
    })?;
    let is_tls13 = |suite: &&SupportedCipherSuite| suite.tls13().is_some();
    let mut chosen: Vec<_> = all.iter().filter(is_tls13).copied().collect();
    let before = chosen.len();
    for wanted in wanted.into_iter().flatten() {
        chosen.extend(all.iter().find(|suite| suite.suite() == wanted));
    }
    if chosen.len() == before {
        return Err(Invalid::new("none of them is supported").at("cipher_suites"));
    }
    Ok(chosen)
}

fn groups(
    names: &[String],
    all: &[&'static dyn SupportedKxGroup],
) -> Result<Vec<&'static dyn SupportedKxGroup>, Invalid> {
    let wanted = try_all("ecdh_curves", names, |name| {
        match GROUPS.iter().find(|(one, _)| one == name) {
            Some((_, group)) => Ok(Some(*group)),
            None if OTHER_GROUPS.contains(&name.as_str()) => Ok(None),
            None => Err(Invalid::new(format!("{name:?} is not a curve"))),
        }
    })?;
    let chosen: Vec<_> = wanted
        .into_iter()
        .flatten()
        .filter_map(|wanted| all.iter().find(|group| group.name() == wanted).copied())
        .collect();
    if chosen.is_empty() {
        return Err(Invalid::new("none of them is supported").at("ecdh_curves"));
    }
    Ok(chosen)
}

/// The name that Envoy's TLS library has for a suite.
pub(in crate::transport) fn suite_name(suite: CipherSuite) -> String {
    let known = SUITES.iter().find(|(_, one)| *one == suite);
    match known {
        Some((name, _)) => (*name).to_owned(),
        // `TLS13_AES_128_GCM_SHA256` is `TLS_AES_128_GCM_SHA256` to everybody else.
        None => suite
            .as_str()
            .unwrap_or_default()
            .replacen("TLS13_", "TLS_", 1),
    }
}

/// The name that Envoy's TLS library has for a group.
pub(in crate::transport) fn group_name(group: NamedGroup) -> String {
    let known = GROUPS.iter().find(|(_, one)| *one == group);
    known.map_or_else(|| format!("{group:?}"), |(name, _)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(suites: &[&str], curves: &[&str]) -> Result<Parameters, Invalid> {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Parameters::new(Some(&TlsParameters {
            cipher_suites: owned(suites),
            ecdh_curves: owned(curves),
            ..TlsParameters::default()
        }))
    }

    #[test]
    fn lists_are_narrowed_to_what_is_spoken_and_refused_when_nothing_is_left() {
        let some = parameters(
            &[
                "AES128-GCM-SHA256",
                "[ECDHE-RSA-AES256-GCM-SHA384|ECDHE-RSA-AES128-GCM-SHA256]",
            ],
            &["P-384", "P-521"],
        )
        .unwrap();
        let names: Vec<_> = some
            .provider
            .cipher_suites
            .iter()
            .map(|suite| suite_name(suite.suite()))
            .collect();
        assert_eq!(
            names[3..],
            ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"]
        );
        assert_eq!(some.provider.kx_groups.len(), 1);
        assert!(parameters(&["AES256-SHA"], &[]).is_err());
        assert!(parameters(&["NOT-A-SUITE"], &[]).is_err());
        assert!(parameters(&[], &["P-521"]).is_err());
        assert!(parameters(&[], &["P-1"]).is_err());
    }

    #[test]
    fn only_versions_from_1_2_on_are_spoken() {
        let with = |least: TlsProtocol, most: TlsProtocol| {
            Parameters::new(Some(&TlsParameters {
                tls_minimum_protocol_version: least.into(),
                tls_maximum_protocol_version: most.into(),
                ..TlsParameters::default()
            }))
            .map(|parameters| parameters.versions.len())
        };
        assert_eq!(with(TlsProtocol::TlsAuto, TlsProtocol::TlsAuto), Ok(2));
        assert_eq!(with(TlsProtocol::TlSv10, TlsProtocol::TlSv12), Ok(1));
        assert_eq!(with(TlsProtocol::TlSv13, TlsProtocol::TlsAuto), Ok(1));
        assert!(with(TlsProtocol::TlSv10, TlsProtocol::TlSv11).is_err());
    }
}
