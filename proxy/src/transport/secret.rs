//! Secrets: key pairs and validation contexts, inline, from the bootstrap, or by SDS. A slot holds the newest one.

use super::certificate;
use crate::{
    invalid::{At as _, Invalid},
    wire::data_source,
    xds::Source,
};
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use parking_lot::Mutex;
use proto::envoy::config::core::v3::ConfigSource;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig, Secret as Wire, TlsCertificate, secret::Type,
};
use rustls::{RootCertStore, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};
use tokio::sync::watch;

/// A certificate chain with its key.
pub(crate) struct KeyPair {
    /// Ready for handshakes.
    pub(crate) key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub(crate) details: certificate::CertificateDetails,
}

/// What a peer's certificate is checked against.
pub(crate) struct Validation {
    /// Trusted roots; none means that the chain is not verified.
    pub(crate) roots: Option<Arc<RootCertStore>>,
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
}

/// The newest value of a secret.
pub(crate) struct SecretSlot {
    /// Its name.
    pub(crate) name: String,
    /// Where it comes from; none for the bootstrap's own.
    pub(crate) source: Option<ConfigSource>,
    value: ArcSwapOption<Secret>,
    updated: Mutex<SystemTime>,
    changed: watch::Sender<u64>,
}

/// Every secret by name and source.
#[derive(Default)]
pub(crate) struct SecretSlots {
    slots: Mutex<BTreeMap<String, Vec<Arc<SecretSlot>>>>,
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
            Some(Type::SessionTicketKeys(_)) => Err(Invalid::unsupported("session_ticket_keys")),
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
        let chain = wire
            .certificate_chain
            .as_ref()
            .map(data_source)
            .transpose()
            .at("certificate_chain")?
            .unwrap_or_default();
        let key = wire
            .private_key
            .as_ref()
            .map(data_source)
            .transpose()
            .at("private_key")?
            .unwrap_or_default();
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
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            // A key that cannot tell is believed, as the handshake would show.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(Invalid::new("it does not belong to the certificate").at("private_key"));
            }
        }
        Ok(Self {
            key: Arc::new(key),
            details,
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
                wire.custom_validator_config.is_some(),
                "custom_validator_config",
            ),
            (wire.crl.is_some(), "crl"),
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
        let Some(source) = &wire.trusted_ca else {
            return Ok(Self {
                roots: None,
                details: Vec::new(),
                wire: wire.clone(),
            });
        };
        let chain = certificates(&data_source(source).at("trusted_ca")?).at("trusted_ca")?;
        if chain.is_empty() {
            return Err(Invalid::new("no certificate in it").at("trusted_ca"));
        }
        let details = chain
            .iter()
            .filter_map(|root| certificate::details(root))
            .collect();
        let mut roots = RootCertStore::empty();
        for root in chain {
            roots
                .add(root)
                .map_err(|error| Invalid::new(error.to_string()).at("trusted_ca"))?;
        }
        Ok(Self {
            roots: Some(Arc::new(roots)),
            details,
            wire: wire.clone(),
        })
    }
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
    pub(crate) fn store(&self, secret: Secret) {
        self.value.store(Some(Arc::new(secret)));
        *self.updated.lock() = SystemTime::now();
        self.changed.send_modify(|version| *version += 1);
    }

    /// When the value came.
    pub(crate) fn updated(&self) -> SystemTime {
        *self.updated.lock()
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
            updated: Mutex::new(SystemTime::now()),
            changed: watch::channel(0).0,
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
            updated: Mutex::new(SystemTime::now()),
            changed: watch::channel(0).0,
        };
        slot.store(secret);
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
