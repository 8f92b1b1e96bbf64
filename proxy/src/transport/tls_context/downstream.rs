//! A listener's TLS: `DownstreamTlsContext` as rustls server configurations.

use super::{
    super::{
        resolver::Certificates,
        secret::{KeyPair, Secret, SecretSlot, SecretSlots},
        ticket::{TicketKeys, Tickets},
        verify::{ClientVerifier, Verifier},
    },
    Common, Sources, TlsError,
};
use crate::invalid::{At as _, Invalid};
use arc_swap::ArcSwap;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext as Wire,
    downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType},
};
use proto_component::tls::revocation::Peers;
use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, ServerSessionMemoryCache},
};
use std::{net::IpAddr, sync::Arc};

/// TLS 1.2 sessions that are kept where tickets are off.
const STATEFUL_SESSIONS: usize = 1024;

/// A checked `DownstreamTlsContext`.
pub(crate) struct DownstreamTlsContext {
    common: Common,
    is_client_required: bool,
    tickets: TicketSource,
    /// Whether TLS 1.2 sessions are kept here where they do not go to the client.
    is_stateful: bool,
    /// Seconds; none for the library's own.
    lifetime: Option<u32>,
    prefers_client: bool,
    built: ArcSwap<Option<Built>>,
    peers: Arc<Peers>,
}

/// Where the keys of session tickets come from.
enum TicketSource {
    /// Made here.
    Own,
    /// No tickets.
    None,
    Inline(Arc<TicketKeys>),
    Slot(Arc<SecretSlot>),
}

/// Configurations made of the same secrets.
#[derive(Clone)]
struct Built {
    sources: Sources,
    plain: Arc<ServerConfig>,
    /// The same, with its keys logged.
    logged: Option<Arc<ServerConfig>>,
    verifier: Arc<Verifier>,
    certificates: Arc<Certificates>,
}

/// What a handshake needs.
pub(in crate::transport) struct Handshake {
    /// For the TLS library.
    pub(in crate::transport) config: Arc<ServerConfig>,
    /// What clients are checked against.
    pub(in crate::transport) verifier: Arc<Verifier>,
    /// Our certificates.
    pub(in crate::transport) certificates: Arc<Certificates>,
    /// Whether it comes from newer secrets than the one before.
    pub(in crate::transport) is_updated: bool,
}

impl TicketSource {
    fn new(wire: &Wire, secrets: &SecretSlots) -> Result<Self, Invalid> {
        Ok(match &wire.session_ticket_keys_type {
            None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => {
                Self::Own
            }
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => Self::None,
            Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
                Self::Inline(Arc::new(TicketKeys::new(keys).at("session_ticket_keys")?))
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(config)) => Self::Slot(
                secrets
                    .slot(config)
                    .at("session_ticket_keys_sds_secret_config")?,
            ),
        })
    }

    fn slot(&self) -> Option<Arc<SecretSlot>> {
        match self {
            Self::Slot(slot) => Some(slot.clone()),
            Self::Own | Self::None | Self::Inline(_) => None,
        }
    }

    fn keys(&self) -> Result<Option<Arc<TicketKeys>>, TlsError> {
        match self {
            Self::Own | Self::None => Ok(None),
            Self::Inline(keys) => Ok(Some(keys.clone())),
            Self::Slot(slot) => match slot.load().as_deref() {
                Some(Secret::TicketKeys(keys)) => Ok(Some(keys.clone())),
                Some(_) => Err(TlsError::Context(format!(
                    "secret {} is not session ticket keys",
                    slot.name
                ))),
                None => Err(TlsError::SecretMissing(slot.name.clone())),
            },
        }
    }
}

impl DownstreamTlsContext {
    /// Checks `wire`.
    pub(crate) fn new(wire: &Wire, secrets: &SecretSlots) -> Result<Self, Invalid> {
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
        if wire.ocsp_staple_policy() != OcspStaplePolicy::LenientStapling {
            return Err(
                Invalid::unsupported("anything but LENIENT_STAPLING").at("ocsp_staple_policy")
            );
        }
        let lifetime = wire.session_timeout.as_ref().map(|timeout| {
            u32::try_from(timeout.seconds).map_err(|_| Invalid::new("out of range"))
        });
        let lifetime = lifetime.transpose().at("session_timeout")?;
        Ok(Self {
            common,
            is_client_required: wire.require_client_certificate.unwrap_or(false),
            tickets: TicketSource::new(wire, secrets)?,
            is_stateful: !wire.disable_stateful_session_resumption,
            lifetime,
            prefers_client: wire.prefer_client_ciphers,
            built: ArcSwap::default(),
            peers: secrets.peers().clone(),
        })
    }

    /// Where connections are entered, to end when their peer is revoked.
    pub(in crate::transport) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        let mut slots = self.common.slots();
        slots.extend(self.tickets.slot());
        slots
    }

    /// The certificates in use.
    pub(crate) fn pairs(&self) -> Vec<Arc<KeyPair>> {
        self.common.pairs().unwrap_or_default()
    }

    /// What clients are checked against, as far as the configuration itself says it.
    pub(crate) fn validation(&self) -> Option<&super::super::Validation> {
        self.common.validation.as_ref()?.inline.as_deref()
    }

    /// The configuration for a new handshake between these addresses.
    pub(in crate::transport) fn handshake(
        &self,
        local: Option<IpAddr>,
        remote: Option<IpAddr>,
    ) -> Result<Handshake, TlsError> {
        let sources = Sources::of(self.slots())?;
        let loaded = self.built.load();
        let (built, is_updated) = match &**loaded {
            Some(built) if built.sources == sources => (built.clone(), false),
            before => {
                let built = self.build(sources)?;
                self.built.store(Arc::new(Some(built.clone())));
                (built, before.is_some())
            }
        };
        let key_log = self.common.key_log.as_ref();
        let is_logged = key_log.is_some_and(|key_log| key_log.wants(local, remote));
        Ok(Handshake {
            config: built.logged.filter(|_| is_logged).unwrap_or(built.plain),
            verifier: built.verifier,
            certificates: built.certificates,
            is_updated,
        })
    }

    fn build(&self, sources: Sources) -> Result<Built, TlsError> {
        let failed = |error: rustls::Error| TlsError::Context(error.to_string());
        let verifier = Arc::new(self.common.verifier()?);
        let certificates = Arc::new(Certificates(self.common.pairs()?));
        let builder = ServerConfig::builder_with_provider(self.common.parameters.provider.clone())
            .with_protocol_versions(&self.common.parameters.versions)
            .map_err(failed)?;
        let builder = if verifier.is_checking() || self.is_client_required {
            builder.with_client_cert_verifier(Arc::new(ClientVerifier {
                verifier: verifier.clone(),
                is_required: self.is_client_required,
            }))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(certificates.clone());
        config.alpn_protocols.clone_from(&self.common.alpn);
        config.ignore_client_order = !self.prefers_client;
        self.set_resumption(&mut config)?;
        let logged = self.common.key_log.as_ref().map(|key_log| {
            let mut logged = config.clone();
            logged.key_log = key_log.sink();
            Arc::new(logged)
        });
        Ok(Built {
            sources,
            plain: Arc::new(config),
            logged,
            verifier,
            certificates,
        })
    }

    fn set_resumption(&self, config: &mut ServerConfig) -> Result<(), TlsError> {
        let failed = |error: rustls::Error| TlsError::Context(error.to_string());
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let keys = match (&self.tickets, self.lifetime) {
            (TicketSource::None, _) => {
                if self.is_stateful {
                    config.session_storage = ServerSessionMemoryCache::new(STATEFUL_SESSIONS);
                }
                // TLS 1.3 knows no other resumption than by tickets.
                config.send_tls13_tickets = 0;
                return Ok(());
            }
            (TicketSource::Own, None) => {
                config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(failed)?;
                config.send_tls13_tickets = 1;
                return Ok(());
            }
            (TicketSource::Own, Some(_)) => Some(Arc::new(TicketKeys::random())),
            (TicketSource::Inline(_) | TicketSource::Slot(_), _) => self.tickets.keys()?,
        };
        if let Some(keys) = keys {
            config.ticketer = Arc::new(Tickets::new(keys, self.lifetime));
            config.send_tls13_tickets = 1;
        }
        Ok(())
    }
}
