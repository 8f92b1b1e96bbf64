//! Envoy's SPIFFE validator: the trust domain in the peer's URI name says which bundle its chain must lead to, so that no
//! domain can speak for another.

use super::{
    super::{certificate, secret},
    chain::{ChainRules, Roots, Usage},
};
use crate::{
    invalid::{At as _, Invalid, try_all},
    wire::data_source,
};
use arc_swap::ArcSwap;
use base64::Engine as _;
use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::SpiffeCertValidatorConfig as Wire;
use rustls::{CertificateError, DistinguishedName, Error};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// The bundles of all trust domains.
#[derive(Debug)]
pub(in crate::transport) struct Bundles {
    by_domain: ArcSwap<HashMap<String, Arc<Roots>>>,
    /// A file that is read again when it has changed.
    file: Option<WatchedFile>,
}

#[derive(Debug)]
struct WatchedFile {
    path: PathBuf,
    /// Seconds since 1970 of the last look.
    looked: AtomicU64,
    modified: ArcSwap<Option<SystemTime>>,
}

/// A SPIFFE trust bundle map.
#[derive(Deserialize)]
struct BundleMap {
    trust_domains: BTreeMap<String, BundleJson>,
}

#[derive(Deserialize)]
struct BundleJson {
    #[serde(default)]
    keys: Vec<KeyJson>,
}

#[derive(Deserialize)]
struct KeyJson {
    #[serde(rename = "use", default)]
    purpose: String,
    #[serde(default)]
    x5c: Vec<String>,
}

impl Bundles {
    /// Checks `wire` and reads the bundles.
    pub(in crate::transport) fn new(wire: &Wire) -> Result<Self, Invalid> {
        if let Some(source) = &wire.trust_bundles {
            return Self::from_map(source).at("trust_bundles");
        }
        if wire.trust_domains.is_empty() {
            return Err(Invalid::new("at least one is needed").at("trust_domains"));
        }
        let mut by_domain = HashMap::new();
        try_all("trust_domains", &wire.trust_domains, |domain| {
            if domain.name.is_empty() {
                return Err(Invalid::new("it is needed").at("name"));
            }
            if !domain.workload_trust_domain.is_empty() {
                return Err(Invalid::new("not supported").at("workload_trust_domain"));
            }
            let source = domain.trust_bundle.as_ref();
            let source = source.ok_or_else(|| Invalid::new("it is needed").at("trust_bundle"))?;
            let roots =
                secret::roots(&data_source(source).at("trust_bundle")?).at("trust_bundle")?;
            match by_domain.insert(domain.name.clone(), Arc::new(roots)) {
                None => Ok(()),
                Some(_) => Err(Invalid::new(format!(
                    "Multiple trust bundles are given for one trust domain for {}",
                    domain.name
                ))),
            }
        })?;
        Ok(Self {
            by_domain: ArcSwap::from_pointee(by_domain),
            file: None,
        })
    }

    fn from_map(source: &DataSource) -> Result<Self, Invalid> {
        let by_domain = parse(&data_source(source)?)?;
        let file = match &source.specifier {
            Some(Specifier::Filename(path)) => Some(WatchedFile {
                path: path.into(),
                looked: AtomicU64::new(0),
                modified: ArcSwap::from_pointee(modified(path.as_ref())),
            }),
            _ => None,
        };
        Ok(Self {
            by_domain: ArcSwap::from_pointee(by_domain),
            file,
        })
    }

    /// What the roots say, for those who choose a certificate by them.
    pub(super) fn subjects(&self) -> Vec<DistinguishedName> {
        let bundles = self.by_domain.load();
        bundles
            .values()
            .flat_map(|roots| roots.store.subjects())
            .collect()
    }

    /// Every certificate of every bundle.
    pub(in crate::transport) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let bundles = self.by_domain.load();
        bundles
            .values()
            .flat_map(|roots| roots.certificates.iter().cloned())
            .collect()
    }

    /// Checks a chain against the bundle of its own trust domain.
    pub(super) fn verify(
        &self,
        rules: &ChainRules,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        self.refresh(now);
        let details = certificate::details(leaf).ok_or(CertificateError::BadEncoding)?;
        if details.is_ca {
            return Err(CertificateError::InvalidPurpose.into());
        }
        let domain = match details.uri_sans.as_slice() {
            [uri] => trust_domain(uri),
            _ => None,
        };
        let bundles = self.by_domain.load();
        let roots = domain.and_then(|domain| bundles.get(domain));
        let roots = roots.ok_or(CertificateError::UnknownIssuer)?;
        rules.verify(roots, leaf, intermediates, now, usage)
    }

    /// Reads the file again when it has changed; looks at most once a second.
    fn refresh(&self, now: UnixTime) {
        let Some(file) = &self.file else {
            return;
        };
        if file.looked.swap(now.as_secs(), Relaxed) == now.as_secs() {
            return;
        }
        let newest = modified(&file.path);
        if newest.is_none() || newest == **file.modified.load() {
            return;
        }
        file.modified.store(Arc::new(newest));
        let bundles = std::fs::read(&file.path)
            .map_err(|error| Invalid::new(error.to_string()))
            .and_then(|bytes| parse(&bytes));
        match bundles {
            Ok(bundles) => self.by_domain.store(Arc::new(bundles)),
            Err(error) => {
                tracing::warn!(target: "secret", path = %file.path.display(), %error, "trust bundles refused");
            }
        }
    }
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .filter(|time| *time >= UNIX_EPOCH)
}

/// `spiffe://example.com/ns/default` belongs to `example.com`.
fn trust_domain(uri: &str) -> Option<&str> {
    let rest = uri.strip_prefix("spiffe://")?;
    let (domain, path) = rest.split_once('/')?;
    (!domain.is_empty() && !path.is_empty()).then_some(domain)
}

fn parse(json: &[u8]) -> Result<HashMap<String, Arc<Roots>>, Invalid> {
    let map: BundleMap = serde_json::from_slice(json)
        .map_err(|error| Invalid::new(format!("not a SPIFFE trust bundle map: {error}")))?;
    let mut by_domain = HashMap::new();
    for (domain, bundle) in map.trust_domains {
        let mut certificates = Vec::new();
        for key in bundle.keys {
            if !key.purpose.is_empty() && key.purpose != "x509-svid" {
                continue;
            }
            for text in &key.x5c {
                let der = base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .map_err(|error| Invalid::new(format!("{domain}: x5c: {error}")))?;
                certificates.push(CertificateDer::from(der));
            }
        }
        let roots = secret::roots_of(certificates).at(&domain)?;
        by_domain.insert(domain, Arc::new(roots));
    }
    Ok(by_domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_domains_are_taken_from_spiffe_uris_only() {
        assert_eq!(trust_domain("spiffe://a.b/ns/x"), Some("a.b"));
        for bad in [
            "spiffe://a.b",
            "spiffe:///x",
            "https://a.b/x",
            "spiffe://a.b/",
        ] {
            assert_eq!(trust_domain(bad), None, "{bad}");
        }
    }

    #[test]
    fn fuzz_trust_bundles() {
        crate::fuzz::fuzz("trust_bundles", |bytes| {
            // Nobody is trusted for nothing.
            if let Ok(domains) = parse(bytes) {
                assert!(domains.values().all(|roots| !roots.certificates.is_empty()));
            }
        });
    }
}
