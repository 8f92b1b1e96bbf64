//! TLS contexts: what `DownstreamTlsContext` and `UpstreamTlsContext` ask for, as rustls configurations.
//!
//! A configuration is built from the newest secrets and kept until one of them changes.

use super::{
    resolver::{Certificates, ClientCertificate},
    secret::{KeyPair, Secret, SecretSlot, SecretSlots, Validation},
    verify::{ClientVerifier, NameChecks, ServerVerifier},
};
use crate::invalid::{At as _, Invalid, try_all};
use arc_swap::ArcSwap;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext as WireDownstream, UpstreamTlsContext as WireUpstream,
    common_tls_context::ValidationContextType, tls_parameters::TlsProtocol,
};
use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion, client::Resumption,
    server::NoServerSessionStorage,
};
use std::sync::Arc;

/// Why a handshake cannot even begin.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// SDS has not delivered yet.
    #[error("TLS secret {0} is not there yet")]
    SecretMissing(String),
    /// The secrets do not make a configuration.
    #[error("TLS context: {0}")]
    Context(String),
}

/// Which application protocols are offered when the context names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AlpnFallback {
    /// None (TCP).
    None,
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
    /// `h2`, `http/1.1`.
    Auto,
}

/// A checked `DownstreamTlsContext`.
pub(crate) struct DownstreamTlsContext {
    common: Common,
    is_client_required: bool,
    built: ArcSwap<Option<(Sources, Arc<ServerConfig>)>>,
}

/// A checked `UpstreamTlsContext`.
pub(crate) struct UpstreamTlsContext {
    common: Common,
    /// The server name to ask for, if any.
    pub(crate) sni: Option<Arc<str>>,
    built: ArcSwap<Vec<(Sources, ClientKey, Arc<ClientConfig>)>>,
}

type ClientKey = (AlpnFallback, bool);

struct Common {
    pairs: Vec<PairSource>,
    validation: Option<ValidationSource>,
    alpn: Vec<Vec<u8>>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

enum PairSource {
    Inline(Arc<KeyPair>),
    Slot(Arc<SecretSlot>),
}

struct ValidationSource {
    /// Names and pins given in place; SDS gives the roots.
    inline: Option<Arc<Validation>>,
    slot: Option<Arc<SecretSlot>>,
}

/// The secrets that a configuration was built from, compared by identity.
#[derive(Clone)]
struct Sources(Vec<Arc<Secret>>);

impl PartialEq for Sources {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|(left, right)| Arc::ptr_eq(left, right))
    }
}

impl Common {
    fn new(wire: &CommonTlsContext, secrets: &SecretSlots) -> Result<Self, Invalid> {
        for (is_set, field) in [
            (wire.custom_handshaker.is_some(), "custom_handshaker"),
            (
                wire.tls_certificate_provider_instance.is_some(),
                "tls_certificate_provider_instance",
            ),
            (
                wire.custom_tls_certificate_selector.is_some(),
                "custom_tls_certificate_selector",
            ),
            (wire.key_log.is_some(), "key_log"),
        ] {
            if is_set {
                return Err(Invalid::new("not supported").at(field));
            }
        }
        let mut pairs = try_all("tls_certificates", &wire.tls_certificates, |pair| {
            Ok(PairSource::Inline(Arc::new(KeyPair::new(pair)?)))
        })?;
        pairs.extend(try_all(
            "tls_certificate_sds_secret_configs",
            &wire.tls_certificate_sds_secret_configs,
            |config| secrets.slot(config).map(PairSource::Slot),
        )?);
        let validation = match &wire.validation_context_type {
            None => None,
            Some(ValidationContextType::ValidationContext(context)) => {
                let inline = Validation::new(context).at("validation_context")?;
                Some(ValidationSource {
                    inline: Some(Arc::new(inline)),
                    slot: None,
                })
            }
            Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
                let slot = secrets
                    .slot(config)
                    .at("validation_context_sds_secret_config")?;
                Some(ValidationSource {
                    inline: None,
                    slot: Some(slot),
                })
            }
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                let inline = combined
                    .default_validation_context
                    .as_ref()
                    .map(Validation::new)
                    .transpose()
                    .at("combined_validation_context.default_validation_context")?;
                let slot = combined
                    .validation_context_sds_secret_config
                    .as_ref()
                    .map(|config| secrets.slot(config))
                    .transpose()
                    .at("combined_validation_context.validation_context_sds_secret_config")?;
                Some(ValidationSource {
                    inline: inline.map(Arc::new),
                    slot,
                })
            }
            Some(_) => return Err(Invalid::unsupported("this validation context")),
        };
        if let Some(inline) = validation
            .as_ref()
            .and_then(|validation| validation.inline.as_ref())
        {
            // Checked here so that a bad matcher is refused with the resource, not at the first handshake.
            NameChecks::new(&inline.wire).at("validation_context")?;
        }
        let alpn = wire
            .alpn_protocols
            .iter()
            .map(|name| name.clone().into_bytes())
            .collect();
        Ok(Self {
            pairs,
            validation,
            alpn,
            versions: versions(wire)?,
        })
    }

    fn slots(&self) -> Vec<Arc<SecretSlot>> {
        let pairs = self.pairs.iter().filter_map(|pair| match pair {
            PairSource::Slot(slot) => Some(slot.clone()),
            PairSource::Inline(_) => None,
        });
        pairs
            .chain(
                self.validation
                    .iter()
                    .filter_map(|validation| validation.slot.clone()),
            )
            .collect()
    }

    fn sources(&self) -> Result<Sources, TlsError> {
        let load = |slot: Arc<SecretSlot>| {
            slot.load()
                .ok_or_else(|| TlsError::SecretMissing(slot.name.clone()))
        };
        self.slots()
            .into_iter()
            .map(load)
            .collect::<Result<_, _>>()
            .map(Sources)
    }

    fn pairs(&self) -> Result<Vec<Arc<KeyPair>>, TlsError> {
        self.pairs
            .iter()
            .map(|pair| match pair {
                PairSource::Inline(pair) => Ok(pair.clone()),
                PairSource::Slot(slot) => match slot.load().as_deref() {
                    Some(Secret::KeyPair(pair)) => Ok(pair.clone()),
                    Some(Secret::Validation(_)) => Err(TlsError::Context(format!(
                        "secret {} is not a certificate",
                        slot.name
                    ))),
                    None => Err(TlsError::SecretMissing(slot.name.clone())),
                },
            })
            .collect()
    }

    /// Roots and checks: SDS's merged over those in place.
    fn validation(&self) -> Result<(Option<Validation>, NameChecks), TlsError> {
        let Some(source) = &self.validation else {
            return Ok((None, NameChecks::default()));
        };
        let mut wire = source
            .inline
            .as_ref()
            .map(|inline| inline.wire.clone())
            .unwrap_or_default();
        let mut roots = source
            .inline
            .as_ref()
            .and_then(|inline| inline.roots.clone());
        if let Some(slot) = &source.slot {
            match slot.load().as_deref() {
                Some(Secret::Validation(dynamic)) => {
                    roots = dynamic.roots.clone().or(roots);
                    wire.match_typed_subject_alt_names
                        .extend(dynamic.wire.match_typed_subject_alt_names.iter().cloned());
                    wire.verify_certificate_spki
                        .extend(dynamic.wire.verify_certificate_spki.iter().cloned());
                    wire.verify_certificate_hash
                        .extend(dynamic.wire.verify_certificate_hash.iter().cloned());
                }
                Some(Secret::KeyPair(_)) => {
                    return Err(TlsError::Context(format!(
                        "secret {} is not a validation context",
                        slot.name
                    )));
                }
                None => return Err(TlsError::SecretMissing(slot.name.clone())),
            }
        }
        let checks =
            NameChecks::new(&wire).map_err(|error| TlsError::Context(error.to_string()))?;
        Ok((
            Some(Validation {
                roots,
                details: Vec::new(),
                wire,
            }),
            checks,
        ))
    }
}

fn versions(wire: &CommonTlsContext) -> Result<Vec<&'static SupportedProtocolVersion>, Invalid> {
    let Some(parameters) = &wire.tls_params else {
        return Ok(rustls::ALL_VERSIONS.to_vec());
    };
    let rank = |version: TlsProtocol, default: u8| match version {
        TlsProtocol::TlsAuto => default,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => 1,
        TlsProtocol::TlSv12 => 2,
        TlsProtocol::TlSv13 => 3,
    };
    let (least, most) = (
        rank(parameters.tls_minimum_protocol_version(), 2),
        rank(parameters.tls_maximum_protocol_version(), 3),
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

impl DownstreamTlsContext {
    /// Checks `wire`.
    pub(crate) fn new(wire: &WireDownstream, secrets: &SecretSlots) -> Result<Self, Invalid> {
        let empty = CommonTlsContext::default();
        let common = Common::new(wire.common_tls_context.as_ref().unwrap_or(&empty), secrets)
            .at("common_tls_context")?;
        if common.pairs.is_empty() {
            return Err(Invalid::new("No TLS certificates found for server context")
                .at("common_tls_context"));
        }
        if wire.require_sni == Some(true) {
            return Err(Invalid::unsupported("require_sni"));
        }
        Ok(Self {
            common,
            is_client_required: wire.require_client_certificate.unwrap_or(false),
            built: ArcSwap::default(),
        })
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        self.common.slots()
    }

    /// The certificates in use.
    pub(crate) fn pairs(&self) -> Vec<Arc<KeyPair>> {
        self.common.pairs().unwrap_or_default()
    }

    /// The configuration for a new handshake.
    pub(crate) fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let sources = self.common.sources()?;
        if let Some((from, config)) = &**self.built.load()
            && *from == sources
        {
            return Ok(config.clone());
        }
        let config = Arc::new(self.build()?);
        self.built.store(Arc::new(Some((sources, config.clone()))));
        Ok(config)
    }

    fn build(&self) -> Result<ServerConfig, TlsError> {
        let failed = |error: rustls::Error| TlsError::Context(error.to_string());
        let (validation, checks) = self.common.validation()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.common.versions)
            .map_err(failed)?;
        let builder = if validation.is_some() || self.is_client_required {
            let verifier =
                ClientVerifier::new(validation.as_ref(), checks, self.is_client_required)
                    .map_err(|error| TlsError::Context(error.to_string()))?;
            builder.with_client_cert_verifier(Arc::new(verifier))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::new(Certificates(self.common.pairs()?)));
        config.alpn_protocols.clone_from(&self.common.alpn);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(failed)?;
        config.send_tls13_tickets = 1;
        Ok(config)
    }
}

impl UpstreamTlsContext {
    /// Checks `wire`.
    pub(crate) fn new(wire: &WireUpstream, secrets: &SecretSlots) -> Result<Self, Invalid> {
        let empty = CommonTlsContext::default();
        let common = Common::new(wire.common_tls_context.as_ref().unwrap_or(&empty), secrets)
            .at("common_tls_context")?;
        if wire.auto_host_sni || wire.auto_sni_san_validation {
            return Err(Invalid::unsupported(
                "auto_host_sni and auto_sni_san_validation",
            ));
        }
        let sni = (!wire.sni.is_empty()).then(|| wire.sni.as_str().into());
        Ok(Self {
            common,
            sni,
            built: ArcSwap::default(),
        })
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        self.common.slots()
    }

    /// The configuration for a new handshake.
    pub(crate) fn config(
        &self,
        fallback: AlpnFallback,
        has_sni: bool,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let sources = self.common.sources()?;
        let key = (fallback, has_sni);
        let built = self.built.load();
        if let Some((_, _, config)) = built
            .iter()
            .find(|(from, of, _)| *of == key && *from == sources)
        {
            return Ok(config.clone());
        }
        let config = Arc::new(self.build(fallback, has_sni)?);
        let mut all: Vec<_> = built
            .iter()
            .filter(|(from, _, _)| *from == sources)
            .cloned()
            .collect();
        all.push((sources, key, config.clone()));
        self.built.store(Arc::new(all));
        Ok(config)
    }

    fn build(&self, fallback: AlpnFallback, has_sni: bool) -> Result<ClientConfig, TlsError> {
        let (validation, checks) = self.common.validation()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.common.versions)
            .map_err(|error| TlsError::Context(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(
                validation.as_ref(),
                checks,
            )));
        let mut config = match self.common.pairs()?.first() {
            Some(pair) => {
                builder.with_client_cert_resolver(Arc::new(ClientCertificate(pair.clone())))
            }
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = has_sni;
        // Envoy keeps one session a context; the default cache would cost a cluster a hundred KiB.
        config.resumption = Resumption::in_memory_sessions(4);
        config.alpn_protocols = if self.common.alpn.is_empty() {
            fallback.protocols()
        } else {
            self.common.alpn.clone()
        };
        Ok(config)
    }
}

impl AlpnFallback {
    fn protocols(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Self::None => &[],
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Auto => &[b"h2", b"http/1.1"],
        };
        names.iter().map(|name| name.to_vec()).collect()
    }
}
