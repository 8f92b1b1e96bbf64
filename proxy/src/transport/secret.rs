//! Secrets: key pairs and validation contexts, inline, from the bootstrap, or by SDS. A slot holds the newest one.

use super::{
    certificate,
    secret_files::Origin,
    ticket::TicketKeys,
    verify::{NameChecks, chain::Roots, spiffe::Bundles},
};
use crate::{
    invalid::{At as _, Invalid},
    wire::data_source,
    xds::Source,
};
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use parking_lot::Mutex;
use prost::Message as _;
use proto::envoy::config::core::v3::{
    ConfigSource, DataSource, TypedExtensionConfig, data_source::Specifier,
};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig, Secret as Wire, SpiffeCertValidatorConfig,
    TlsCertificate, secret::Type,
};
use proto_component::tls::revocation::Peers;
use rustls::{RootCertStore, sign::CertifiedKey};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _,
};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};
use tokio::sync::watch;
use webpki::{CertRevocationList, OwnedCertRevocationList};

/// A certificate chain with its key.
pub(crate) struct KeyPair {
    /// Ready for handshakes.
    pub(crate) key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub(crate) details: Arc<certificate::CertificateDetails>,
    /// Where the chain came from.
    pub(crate) path: Box<str>,
}

/// What a peer's certificate is checked against.
#[derive(Debug, Default)]
pub(crate) struct Validation {
    /// Trusted roots; none means that the chain is not verified.
    pub(super) roots: Option<Arc<Roots>>,
    /// Revoked certificates.
    pub(super) crls: Arc<[CertRevocationList<'static>]>,
    /// Roots by trust domain, where the SPIFFE validator is asked for.
    pub(super) spiffe: Option<Arc<Bundles>>,
    /// What each root says.
    pub(crate) details: Vec<certificate::CertificateDetails>,
    /// The message, for its other checks.
    pub(crate) wire: CertificateValidationContext,
}

/// A checked secret.
#[derive(Clone)]
pub(crate) enum Secret {
    /// A certificate and its key.
    KeyPair(Arc<KeyPair>),
    /// A validation context.
    Validation(Arc<Validation>),
    /// Keys for session tickets.
    TicketKeys(Arc<TicketKeys>),
}

/// The newest value of a secret.
pub(crate) struct SecretSlot {
    /// Its name.
    pub(crate) name: String,
    /// Where it comes from; none for the bootstrap's own.
    pub(crate) source: Option<ConfigSource>,
    value: ArcSwapOption<Secret>,
    /// What it was made of, if that was files.
    pub(super) origin: Origin,
    /// When the value came, and the version that it came with.
    updated: Mutex<(SystemTime, Arc<str>)>,
    changed: watch::Sender<u64>,
    /// Who hears of revocation lists.
    peers: Arc<Peers>,
}

/// Every secret by name and source.
#[derive(Default)]
pub(crate) struct SecretSlots {
    slots: Mutex<BTreeMap<String, Vec<Arc<SecretSlot>>>>,
    peers: Arc<Peers>,
}

impl Secret {
    /// Checks a secret.
    pub(crate) fn new(wire: &Wire) -> Result<Self, Invalid> {
        match &wire.r#type {
            Some(Type::TlsCertificate(pair)) => KeyPair::new(pair)
                .at("tls_certificate")
                .map(|pair| Self::KeyPair(Arc::new(pair))),
            Some(Type::ValidationContext(context)) => Validation::new(context)
                .at("validation_context")
                .map(|context| Self::Validation(Arc::new(context))),
            Some(Type::SessionTicketKeys(keys)) => TicketKeys::new(keys)
                .at("session_ticket_keys")
                .map(|keys| Self::TicketKeys(Arc::new(keys))),
            Some(Type::GenericSecret(_)) => Err(Invalid::unsupported("generic_secret")),
            None => Err(Invalid::new("a secret needs a type")),
        }
    }
}

impl KeyPair {
    /// Checks that chain and key are readable and belong together.
    pub(crate) fn new(wire: &TlsCertificate) -> Result<Self, Invalid> {
        if wire.pkcs12.is_some() || wire.password.is_some() || wire.private_key_provider.is_some() {
            return Err(Invalid::unsupported("a key that is not plain PEM"));
        }
        if !wire.signed_certificate_timestamp.is_empty() {
            return Err(Invalid::unsupported("signed_certificate_timestamp"));
        }
        if wire.tls_params.is_some() {
            return Err(Invalid::unsupported("tls_params of one certificate"));
        }
        let read = |source: Option<&DataSource>| source.map(data_source).transpose();
        let chain = read(wire.certificate_chain.as_ref()).at("certificate_chain")?;
        let key = read(wire.private_key.as_ref()).at("private_key")?;
        let staple = read(wire.ocsp_staple.as_ref()).at("ocsp_staple")?;
        let (chain, key) = (chain.unwrap_or_default(), key.unwrap_or_default());
        let chain = certificates(&chain).at("certificate_chain")?;
        let Some(leaf) = chain.first() else {
            return Err(Invalid::new("no certificate in it").at("certificate_chain"));
        };
        let details = certificate::details(leaf)
            .ok_or_else(|| Invalid::new("not an X.509 certificate").at("certificate_chain"))?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| Invalid::new(error.to_string()).at("private_key"))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key)
            .map_err(|error| Invalid::new(error.to_string()).at("private_key"))?;
        let mut key = CertifiedKey::new(chain, key);
        key.ocsp = staple.filter(|staple| !staple.is_empty());
        match key.keys_match() {
            // A key that cannot tell is believed, as the handshake would show.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(Invalid::new("it does not belong to the certificate").at("private_key"));
            }
        }
        Ok(Self {
            key: Arc::new(key),
            details: Arc::new(details),
            path: path_of(wire.certificate_chain.as_ref()).into(),
        })
    }

    /// The chain as PEM in base64, as `inline_bytes` is shown.
    pub(crate) fn chain_base64(&self) -> String {
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let pem: String = self
            .key
            .cert
            .iter()
            .map(|certificate| {
                let body = encode(certificate);
                let lines: Vec<&str> = body
                    .as_bytes()
                    .chunks(64)
                    .map(|line| std::str::from_utf8(line).unwrap_or_default())
                    .collect();
                format!(
                    "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                    lines.join("\n")
                )
            })
            .collect();
        encode(pem.as_bytes())
    }
}

impl Validation {
    /// Checks that the roots are readable.
    pub(crate) fn new(wire: &CertificateValidationContext) -> Result<Self, Invalid> {
        for (is_set, field) in [
            (
                wire.ca_certificate_provider_instance.is_some(),
                "ca_certificate_provider_instance",
            ),
            (wire.system_root_certs.is_some(), "system_root_certs"),
            (
                wire.require_signed_certificate_timestamp == Some(true),
                "require_signed_certificate_timestamp",
            ),
        ] {
            if is_set {
                return Err(Invalid::new("not supported").at(field));
            }
        }
        // Checked here so that a bad matcher is refused with the resource, not at the first handshake.
        NameChecks::new(wire)?;
        let spiffe = wire.custom_validator_config.as_ref().map(spiffe);
        let spiffe = spiffe.transpose().at("custom_validator_config")?;
        let crls = wire.crl.as_ref().map(revocations).transpose().at("crl")?;
        let trusted = match &wire.trusted_ca {
            Some(source) => Some(roots(&data_source(source).at("trusted_ca")?).at("trusted_ca")?),
            None => None,
        };
        let certificates = match (&spiffe, &trusted) {
            (Some(bundles), _) => bundles.certificates(),
            (None, Some(trusted)) => trusted.certificates.clone(),
            (None, None) => Vec::new(),
        };
        Ok(Self {
            details: certificates
                .iter()
                .filter_map(|root| certificate::details(root))
                .collect(),
            roots: trusted.map(Arc::new),
            crls: crls.unwrap_or_default(),
            spiffe,
            wire: wire.clone(),
        })
    }

    /// Where the roots came from.
    pub(crate) fn path(&self) -> &str {
        path_of(self.wire.trusted_ca.as_ref())
    }

    /// What `dynamic` (by SDS) says on top of this, as protobuf merges messages.
    pub(super) fn merged(&self, dynamic: &Self) -> Self {
        let mut wire = self.wire.clone();
        // Both came from the wire: one more merge cannot fail.
        let _ = wire.merge(dynamic.wire.encode_to_vec().as_slice());
        let crls = if dynamic.crls.is_empty() {
            &self.crls
        } else {
            &dynamic.crls
        };
        Self {
            roots: dynamic.roots.clone().or_else(|| self.roots.clone()),
            crls: crls.clone(),
            spiffe: dynamic.spiffe.clone().or_else(|| self.spiffe.clone()),
            details: Vec::new(),
            wire,
        }
    }
}

/// The file that a source names, as it is shown.
fn path_of(source: Option<&DataSource>) -> &str {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::Filename(path)) => path,
        _ => "<inline>",
    }
}

fn spiffe(wire: &TypedExtensionConfig) -> Result<Arc<Bundles>, Invalid> {
    let any = wire.typed_config.as_ref();
    let any = any.ok_or_else(|| Invalid::new("a typed_config is needed"))?;
    if !proto::any::is::<SpiffeCertValidatorConfig>(any) {
        return Err(Invalid::new(format!(
            "no certificate validator for {:?} ({})",
            wire.name, any.type_url
        )));
    }
    let config: SpiffeCertValidatorConfig = proto::any::unpack(any)?;
    Bundles::new(&config).at("typed_config").map(Arc::new)
}

fn revocations(source: &DataSource) -> Result<Arc<[CertRevocationList<'static>]>, Invalid> {
    let invalid = |error: &dyn std::fmt::Display| Invalid::new(error.to_string());
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(&data_source(source)?) {
        let der = der.map_err(|error| invalid(&error))?;
        let list = OwnedCertRevocationList::from_der(&der).map_err(|error| invalid(&error))?;
        lists.push(CertRevocationList::from(list));
    }
    if lists.is_empty() {
        return Err(Invalid::new("Failed to load CRL: none in it"));
    }
    Ok(lists.into())
}

/// The roots in a PEM text.
pub(super) fn roots(pem: &[u8]) -> Result<Roots, Invalid> {
    roots_of(certificates(pem)?)
}

/// Certificates as roots.
pub(super) fn roots_of(certificates: Vec<CertificateDer<'static>>) -> Result<Roots, Invalid> {
    if certificates.is_empty() {
        return Err(Invalid::new("no certificate in it"));
    }
    let mut store = RootCertStore::empty();
    for root in &certificates {
        store
            .add(root.clone())
            .map_err(|error| Invalid::new(error.to_string()))?;
    }
    Ok(Roots {
        store,
        certificates,
    })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| Invalid::new(error.to_string()))
}

impl SecretSlot {
    /// The newest value.
    pub(crate) fn load(&self) -> Option<Arc<Secret>> {
        self.value.load_full()
    }

    /// Puts a new value in force.
    pub(crate) fn store(&self, secret: Secret, version: Arc<str>) {
        let lists = match &secret {
            Secret::Validation(validation) => Some(validation.crls.clone()),
            Secret::KeyPair(_) | Secret::TicketKeys(_) => None,
        };
        self.value.store(Some(Arc::new(secret)));
        // After it is in force: a handshake that has missed it enters its connection now, or has done so.
        if let Some(lists) = lists {
            self.peers.revoke(&self.name, &lists);
        }
        *self.updated.lock() = (SystemTime::now(), version);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Follows the files that the secret is made of, if there are any.
    pub(crate) fn follow_files(&self, wire: &Wire) {
        self.origin.note(wire);
    }

    /// When the value came, and the version that it came with.
    pub(crate) fn updated(&self) -> (SystemTime, Arc<str>) {
        self.updated.lock().clone()
    }

    /// Waits until there is a value.
    pub(crate) async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        while self.value.load().is_none() {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl SecretSlots {
    /// The open connections of those who have shown certificates.
    pub(super) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The slot that `config` names; made if it is new.
    pub(crate) fn slot(&self, config: &SdsSecretConfig) -> Result<Arc<SecretSlot>, Invalid> {
        if config.name.is_empty() {
            return Err(Invalid::new("a secret needs a name").at("name"));
        }
        if let Some(source) = &config.sds_config {
            Source::try_from(source).at("sds_config")?;
        }
        let mut slots = self.slots.lock();
        let named = slots.entry(config.name.clone()).or_default();
        if let Some(slot) = named.iter().find(|slot| slot.source == config.sds_config) {
            return Ok(slot.clone());
        }
        if config.sds_config.is_none() {
            return Err(Invalid::new(format!(
                "unknown static secret {}",
                config.name
            )));
        }
        let slot = Arc::new(SecretSlot {
            name: config.name.clone(),
            source: config.sds_config.clone(),
            value: ArcSwapOption::empty(),
            origin: Origin::default(),
            updated: Mutex::new((SystemTime::now(), "".into())),
            changed: watch::channel(0).0,
            peers: self.peers.clone(),
        });
        named.push(slot.clone());
        Ok(slot)
    }

    /// Puts a secret of the bootstrap in.
    pub(crate) fn add_static(&self, name: &str, secret: Secret) {
        let slot = SecretSlot {
            name: name.to_owned(),
            source: None,
            value: ArcSwapOption::empty(),
            origin: Origin::default(),
            updated: Mutex::new((SystemTime::now(), "".into())),
            changed: watch::channel(0).0,
            peers: self.peers.clone(),
        };
        slot.store(secret, "".into());
        self.slots
            .lock()
            .entry(name.to_owned())
            .or_default()
            .push(Arc::new(slot));
    }

    /// Every slot.
    pub(crate) fn all(&self) -> Vec<Arc<SecretSlot>> {
        self.slots.lock().values().flatten().cloned().collect()
    }

    /// Drops slots that nobody holds any more.
    pub(crate) fn prune(&self) {
        self.slots.lock().retain(|_, named| {
            named.retain(|slot| slot.source.is_none() || Arc::strong_count(slot) > 1);
            !named.is_empty()
        });
    }
}
