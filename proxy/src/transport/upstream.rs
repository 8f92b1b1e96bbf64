//! The upstream side: a connection to a host, raw or TLS.

use super::{
    AlpnFallback, SecretSlot, SecretSlots, TlsStats,
    certificate::peer_certificate,
    downstream::session_info,
    proxy_header::{ClientAddresses, ProxyHeader},
    stream::{Count, Layer, RawStream, TransportStream},
    tls_context::{ClientKey, TlsError, UpstreamTlsContext},
    typed_config,
};
use crate::{
    filter_state::FilterState,
    invalid::{At as _, Invalid},
    listener::TlsInfo,
    stream_info::UpstreamConnection,
    upstream::{ConnectionGuard, Load},
};
use proto::envoy::config::core::v3::TransportSocket;
use proto::envoy::extensions::transport_sockets::{
    proxy_protocol::v3::ProxyProtocolUpstreamTransport as WireProxied,
    tls::v3::UpstreamTlsContext as WireTls,
};
use proto_component::tls::revocation::{Peers, Seat};
use rustls_pki_types::ServerName;
use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
};
use tokio::{io::AsyncWriteExt as _, time::Instant};

/// How connections to an endpoint are secured.
pub(crate) enum UpstreamTransport {
    /// Not at all.
    Raw,
    /// TLS.
    Tls(Box<UpstreamTls>),
    /// With a PROXY header first.
    Proxied(ProxyHeader, Box<UpstreamTransport>),
}

/// TLS to a host.
pub(crate) struct UpstreamTls {
    context: UpstreamTlsContext,
    peers: Arc<Peers>,
    /// Counted below the first cluster that connects.
    stats: OnceLock<Arc<TlsStats>>,
}

/// A connection to a host; counted until it is dropped.
pub(crate) type UpstreamStream = TransportStream<ConnectionGuard>;

/// Whom a TLS connection is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsPeer<'a> {
    /// The host's address.
    pub(crate) address: Option<SocketAddr>,
    /// The host's name; may be empty.
    pub(crate) hostname: &'a str,
    /// The server name to ask for instead of the context's.
    pub(crate) sni: Option<&'a str>,
    /// Whether the certificate must be for that name.
    pub(crate) is_name_checked: bool,
    /// The client that it is for, where there is one.
    pub(crate) client: Option<ClientAddresses>,
}

impl UpstreamTransport {
    /// Checks a transport socket; none is raw.
    pub(crate) fn build(
        wire: Option<&TransportSocket>,
        secrets: &SecretSlots,
    ) -> Result<Self, Invalid> {
        let Some(any) = typed_config(wire)? else {
            return Ok(Self::Raw);
        };
        if proto::any::is::<WireProxied>(any) {
            let wire: WireProxied = proto::any::unpack(any).at("typed_config")?;
            return Self::proxied(&wire, secrets).at("typed_config");
        }
        let wire: WireTls = proto::any::unpack(any).at("typed_config")?;
        Ok(Self::Tls(Box::new(UpstreamTls {
            context: UpstreamTlsContext::new(&wire, secrets).at("typed_config")?,
            peers: secrets.peers().clone(),
            stats: OnceLock::new(),
        })))
    }

    fn proxied(wire: &WireProxied, secrets: &SecretSlots) -> Result<Self, Invalid> {
        if wire.tlv_as_pool_key {
            return Err(Invalid::unsupported("it").at("tlv_as_pool_key"));
        }
        let inner = wire
            .transport_socket
            .as_ref()
            .ok_or_else(|| Invalid::new("it is needed").at("transport_socket"))?;
        let inner = Self::build(Some(inner), secrets).at("transport_socket")?;
        let header = ProxyHeader::try_from(&wire.config.clone().unwrap_or_default());
        Ok(Self::Proxied(header.at("config")?, Box::new(inner)))
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        match self {
            Self::Raw => Vec::new(),
            Self::Tls(tls) => tls.context.slots(),
            Self::Proxied(_, inner) => inner.slots(),
        }
    }

    /// Whether it is TLS.
    pub(crate) fn is_tls(&self) -> bool {
        match self {
            Self::Raw => false,
            Self::Tls(_) => true,
            Self::Proxied(_, inner) => inner.is_tls(),
        }
    }

    /// Whether a connection is for one client only.
    pub(crate) fn tells_client(&self) -> bool {
        matches!(self, Self::Proxied(..))
    }

    /// Sets the transport up on a connected socket.
    pub(crate) async fn connect(
        &self,
        mut socket: RawStream,
        mut guard: ConnectionGuard,
        alpn: AlpnFallback,
        peer: TlsPeer<'_>,
    ) -> Result<UpstreamStream, io::Error> {
        let mut transport = self;
        while let Self::Proxied(header, inner) = transport {
            socket.write_all(&header.bytes(peer.client)).await?;
            transport = &**inner;
        }
        let (layer, seat) = match transport {
            Self::Proxied(..) | Self::Raw => (Layer::Raw(socket), None),
            Self::Tls(tls) => {
                let stats = tls
                    .stats
                    .get_or_init(|| TlsStats::new(guard.scope(), "client_ssl_socket_factory"));
                let (layer, seat, info) = tls.connect(socket, alpn, peer, stats).await?;
                guard.tls = Some(Arc::new(info));
                guard.secured = Some(Instant::now());
                (layer, seat)
            }
        };
        Ok(TransportStream::new(layer, guard).with_seat(seat))
    }
}

impl UpstreamTls {
    async fn connect(
        &self,
        socket: RawStream,
        alpn: AlpnFallback,
        peer: TlsPeer<'_>,
        stats: &TlsStats,
    ) -> io::Result<(Layer, Option<Seat>, TlsInfo)> {
        let context = &self.context;
        let of_host = (context.asks_for_host && !peer.hostname.is_empty()).then_some(peer.hostname);
        let sni = peer.sni.or(of_host).or(context.sni.as_deref());
        let name = sni.and_then(|sni| ServerName::try_from(sni.to_owned()).ok());
        let is_named = name.is_some();
        let has_sni = matches!(name, Some(ServerName::DnsName(_)));
        // rustls always wants a name; without SNI it is not sent and nothing compares it.
        let address = peer
            .address
            .map_or(Ipv4Addr::LOCALHOST.into(), |peer| peer.ip());
        let name = name.unwrap_or_else(|| ServerName::from(address));
        let local = socket.local_address().map(|local| local.ip());
        let key = ClientKey {
            alpn,
            has_sni,
            is_name_checked: peer.is_name_checked || (context.is_sni_checked && is_named),
            is_logged: context.is_logged(local, peer.address.map(|peer| peer.ip())),
        };
        let (config, is_updated) = context.config(key).map_err(|error| {
            if matches!(error, TlsError::SecretMissing(_)) {
                stats.secrets_not_ready(false);
            }
            io::Error::other(error)
        })?;
        if is_updated {
            stats.context_updated();
        }
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, socket)
            .await
            .inspect_err(|error| stats.failed(error))?;
        let session = stream.get_ref().1;
        stats.succeeded(session);
        let seat = self.peers.enter(session.peer_certificates());
        let shown = session
            .peer_certificates()
            .and_then(|chain| peer_certificate(chain, true));
        let own = context.certificate();
        let own = own.as_ref().map(|pair| &pair.details);
        let info = session_info(session, sni, own, shown);
        Ok((Layer::Tls(Box::new(stream.into())), seat, info))
    }
}

impl UpstreamStream {
    /// Says what it carries now: an end with requests is counted.
    pub(crate) fn set_load(&mut self, load: Load) {
        self.count.load = load;
    }

    /// What stays the same about its connection, and what those who made it share with it.
    pub(crate) fn facts(&self, filter_state: FilterState) -> UpstreamConnection {
        UpstreamConnection {
            id: self.count.id,
            local_address: self.local_address(),
            tls: self.count.tls.clone(),
            began: self.count.began,
            connected: self.count.connected,
            secured: self.count.secured,
            filter_state,
        }
    }
}

impl Count for ConnectionGuard {
    fn received(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.closed_by_peer();
        }
        self.add(bytes.len() as u64, 0);
    }

    fn sent(&mut self, bytes: &[u8]) {
        self.add(0, bytes.len() as u64);
    }

    fn sent_vectored(&mut self, _: &[IoSlice<'_>], count: usize) {
        self.add(0, count as u64);
    }

    fn moved(&self, received: u64, sent: u64) {
        self.add(received, sent);
    }

    fn sees_bytes(&self) -> bool {
        false
    }
}
