//! TLS contexts: what `DownstreamTlsContext` and `UpstreamTlsContext` ask for, as rustls configurations.
//!
//! A configuration is built from the newest secrets and kept until one of them changes.
//!
//! Clients speak TLS 1.3 unless they are told otherwise, where Envoy's stop at 1.2; certificates are chosen, checked and counted
//! as Envoy does it.

mod downstream;
mod parameters;
mod upstream;

pub(crate) use downstream::DownstreamTlsContext;
pub(super) use downstream::Handshake;
pub(super) use parameters::{group_name, suite_name};
pub(super) use upstream::ClientKey;
pub(crate) use upstream::{AlpnFallback, UpstreamTlsContext};

use super::{
    key_log::KeyLog,
    secret::{KeyPair, Secret, SecretSlot, SecretSlots, Validation},
    verify::Verifier,
};
use crate::invalid::{At as _, Invalid, try_all};
use parameters::Parameters;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, common_tls_context::ValidationContextType,
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

struct Common {
    pairs: Vec<PairSource>,
    validation: Option<ValidationSource>,
    alpn: Vec<Vec<u8>>,
    parameters: Parameters,
    key_log: Option<KeyLog>,
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

impl Sources {
    /// The newest values of all of them.
    fn of(slots: Vec<Arc<SecretSlot>>) -> Result<Self, TlsError> {
        let load = |slot: Arc<SecretSlot>| {
            slot.load()
                .ok_or_else(|| TlsError::SecretMissing(slot.name.clone()))
        };
        slots
            .into_iter()
            .map(load)
            .collect::<Result<_, _>>()
            .map(Sources)
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
        let alpn = wire
            .alpn_protocols
            .iter()
            .map(|name| name.clone().into_bytes())
            .collect();
        Ok(Self {
            pairs,
            validation,
            alpn,
            parameters: Parameters::new(wire.tls_params.as_ref()).at("tls_params")?,
            key_log: wire
                .key_log
                .as_ref()
                .map(KeyLog::new)
                .transpose()
                .at("key_log")?,
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

    fn pairs(&self) -> Result<Vec<Arc<KeyPair>>, TlsError> {
        self.pairs
            .iter()
            .map(|pair| match pair {
                PairSource::Inline(pair) => Ok(pair.clone()),
                PairSource::Slot(slot) => match slot.load().as_deref() {
                    Some(Secret::KeyPair(pair)) => Ok(pair.clone()),
                    Some(_) => Err(TlsError::Context(format!(
                        "secret {} is not a certificate",
                        slot.name
                    ))),
                    None => Err(TlsError::SecretMissing(slot.name.clone())),
                },
            })
            .collect()
    }

    /// What the peer is checked against: SDS's merged over what is said in place.
    fn verifier(&self) -> Result<Verifier, TlsError> {
        let validation = match &self.validation {
            None => None,
            Some(source) => Some(source.newest()?),
        };
        Verifier::new(validation).map_err(|error| TlsError::Context(error.to_string()))
    }
}

impl ValidationSource {
    fn newest(&self) -> Result<Arc<Validation>, TlsError> {
        let Some(slot) = &self.slot else {
            return Ok(self.inline.clone().unwrap_or_default());
        };
        match slot.load().as_deref() {
            Some(Secret::Validation(dynamic)) => Ok(match &self.inline {
                Some(inline) => Arc::new(inline.merged(dynamic)),
                None => dynamic.clone(),
            }),
            Some(_) => Err(TlsError::Context(format!(
                "secret {} is not a validation context",
                slot.name
            ))),
            None => Err(TlsError::SecretMissing(slot.name.clone())),
        }
    }
}
