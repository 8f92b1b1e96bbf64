//! A cluster's TLS: `UpstreamTlsContext` as rustls client configurations.

use super::{
    super::{
        resolver::ClientCertificate,
        secret::{KeyPair, SecretSlot, SecretSlots},
        verify::{ServerVerifier, Verifier},
    },
    Common, Sources, TlsError,
};
use crate::invalid::{At as _, Invalid};
use arc_swap::ArcSwap;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, UpstreamTlsContext as Wire,
};
use rustls::{ClientConfig, client::Resumption};
use std::sync::Arc;

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

/// A checked `UpstreamTlsContext`.
pub(crate) struct UpstreamTlsContext {
    common: Common,
    /// The server name to ask for, if any.
    pub(crate) sni: Option<Arc<str>>,
    /// Whether the host's own name is asked for instead, where it has one.
    pub(crate) asks_for_host: bool,
    /// Whether the certificate must be for the name that was asked for.
    pub(crate) is_sni_checked: bool,
    sessions: usize,
    built: ArcSwap<Vec<(Sources, ClientKey, Arc<ClientConfig>)>>,
}

/// What makes configurations of the same context differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) struct ClientKey {
    pub(in crate::transport) alpn: AlpnFallback,
    pub(in crate::transport) has_sni: bool,
    pub(in crate::transport) is_name_checked: bool,
    pub(in crate::transport) is_logged: bool,
}

impl UpstreamTlsContext {
    /// Checks `wire`.
    pub(crate) fn new(wire: &Wire, secrets: &SecretSlots) -> Result<Self, Invalid> {
        let empty = CommonTlsContext::default();
        let common = Common::new(wire.common_tls_context.as_ref().unwrap_or(&empty), secrets)
            .at("common_tls_context")?;
        if common.pairs.len() > 1 {
            return Err(Invalid::new(
                "Multiple TLS certificates are not supported for client contexts",
            )
            .at("common_tls_context"));
        }
        if wire.allow_renegotiation {
            return Err(Invalid::new("not supported").at("allow_renegotiation"));
        }
        let sessions = wire.max_session_keys.unwrap_or(1);
        Ok(Self {
            common,
            sni: (!wire.sni.is_empty()).then(|| wire.sni.as_str().into()),
            asks_for_host: wire.auto_host_sni,
            is_sni_checked: wire.auto_sni_san_validation,
            sessions: usize::try_from(sessions).unwrap_or(usize::MAX).min(1 << 10),
            built: ArcSwap::default(),
        })
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        self.common.slots()
    }

    /// The certificate that is shown to whoever asks for one.
    pub(in crate::transport) fn certificate(&self) -> Option<Arc<KeyPair>> {
        self.common.pairs().ok()?.into_iter().next()
    }

    /// Whether the keys of connections between these addresses are logged.
    pub(in crate::transport) fn is_logged(
        &self,
        local: Option<std::net::IpAddr>,
        remote: Option<std::net::IpAddr>,
    ) -> bool {
        let key_log = self.common.key_log.as_ref();
        key_log.is_some_and(|key_log| key_log.wants(local, remote))
    }

    /// The configuration for a new handshake, and whether it comes from newer secrets than the one before.
    pub(in crate::transport) fn config(
        &self,
        key: ClientKey,
    ) -> Result<(Arc<ClientConfig>, bool), TlsError> {
        let sources = Sources::of(self.slots())?;
        let built = self.built.load();
        if let Some((_, _, config)) = built
            .iter()
            .find(|(from, of, _)| *of == key && *from == sources)
        {
            return Ok((config.clone(), false));
        }
        let config = Arc::new(self.build(key)?);
        let is_updated = built.iter().any(|(from, _, _)| *from != sources);
        let mut all: Vec<_> = built
            .iter()
            .filter(|(from, _, _)| *from == sources)
            .cloned()
            .collect();
        all.push((sources, key, config.clone()));
        self.built.store(Arc::new(all));
        Ok((config, is_updated))
    }

    fn build(&self, key: ClientKey) -> Result<ClientConfig, TlsError> {
        let verifier: Verifier = self.common.verifier()?;
        let builder = ClientConfig::builder_with_provider(self.common.parameters.provider.clone())
            .with_protocol_versions(&self.common.parameters.versions)
            .map_err(|error| TlsError::Context(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier {
                verifier: Arc::new(verifier),
                is_name_checked: key.is_name_checked,
            }));
        let mut config = match self.common.pairs()?.first() {
            Some(pair) => {
                builder.with_client_cert_resolver(Arc::new(ClientCertificate(pair.clone())))
            }
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = key.has_sni;
        // Envoy keeps one session a context; the default cache would cost a cluster a hundred KiB.
        config.resumption = match self.sessions {
            0 => Resumption::disabled(),
            count => Resumption::in_memory_sessions(count.max(4)),
        };
        config.alpn_protocols = if self.common.alpn.is_empty() {
            key.alpn.protocols()
        } else {
            self.common.alpn.clone()
        };
        if key.is_logged
            && let Some(key_log) = &self.common.key_log
        {
            config.key_log = key_log.sink();
        }
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
