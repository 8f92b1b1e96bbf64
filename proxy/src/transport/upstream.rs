//! The upstream side: a connection to a host, raw or TLS.

use super::{
    AlpnFallback, SecretSlot, SecretSlots,
    tls_context::{TlsError, UpstreamTlsContext},
};
use crate::{
    invalid::{At as _, Invalid},
    upstream::ConnectionGuard,
};
use proto::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
use proto::envoy::extensions::transport_sockets::{
    raw_buffer::v3::RawBuffer, tls::v3::UpstreamTlsContext as WireTls,
};
use rustls_pki_types::ServerName;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

/// How connections to an endpoint are secured.
pub(crate) enum UpstreamTransport {
    /// Not at all.
    Raw,
    /// TLS.
    Tls(Box<UpstreamTlsContext>),
}

/// A connection to a host; counted until it is dropped.
pub(crate) struct UpstreamStream {
    io: Io,
    guard: ConnectionGuard,
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection before its transport is up.
pub(crate) enum UpstreamSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl UpstreamTransport {
    /// Checks a transport socket; none is raw.
    pub(crate) fn build(
        wire: Option<&TransportSocket>,
        secrets: &SecretSlots,
    ) -> Result<Self, Invalid> {
        let Some(wire) = wire else {
            return Ok(Self::Raw);
        };
        let Some(ConfigType::TypedConfig(any)) = &wire.config_type else {
            return if wire.name == "envoy.transport_sockets.raw_buffer" {
                Ok(Self::Raw)
            } else {
                Err(Invalid::new("a typed_config is needed").at("typed_config"))
            };
        };
        if proto::any::is::<RawBuffer>(any) {
            return Ok(Self::Raw);
        }
        let wire: WireTls = proto::any::unpack(any).at("typed_config")?;
        Ok(Self::Tls(Box::new(
            UpstreamTlsContext::new(&wire, secrets).at("typed_config")?,
        )))
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        match self {
            Self::Raw => Vec::new(),
            Self::Tls(context) => context.slots(),
        }
    }

    /// Sets the transport up on a connected socket. `sni` replaces the context's.
    pub(crate) async fn connect(
        &self,
        socket: UpstreamSocket,
        guard: ConnectionGuard,
        alpn: AlpnFallback,
        sni: Option<&str>,
        peer: Option<SocketAddr>,
    ) -> Result<UpstreamStream, io::Error> {
        let io = match (self, socket) {
            (Self::Raw, UpstreamSocket::Tcp(stream)) => Io::Tcp(stream),
            (Self::Raw, UpstreamSocket::Unix(stream)) => Io::Unix(stream),
            (Self::Tls(_), UpstreamSocket::Unix(_)) => {
                return Err(io::Error::other("TLS over a Unix socket is not supported"));
            }
            (Self::Tls(context), UpstreamSocket::Tcp(stream)) => {
                let sni = sni.or(context.sni.as_deref());
                // rustls always wants a name; without SNI it is not sent and nothing compares it.
                let name = sni.and_then(|sni| ServerName::try_from(sni.to_owned()).ok());
                let has_sni = matches!(name, Some(ServerName::DnsName(_)));
                let name = name
                    .or_else(|| peer.map(|peer| ServerName::from(peer.ip())))
                    .ok_or_else(|| io::Error::other("no server name"))?;
                let config = context
                    .config(alpn, has_sni)
                    .map_err(|error: TlsError| io::Error::other(error))?;
                Io::Tls(Box::new(
                    tokio_rustls::TlsConnector::from(config)
                        .connect(name, stream)
                        .await?,
                ))
            }
        };
        Ok(UpstreamStream { io, guard })
    }
}

impl UpstreamStream {
    /// The protocol that ALPN chose.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.io {
            Io::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Io::Tcp(_) | Io::Unix(_) => None,
        }
    }

    /// Our end's address.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match &self.io {
            Io::Tcp(stream) => stream.local_addr().ok(),
            Io::Tls(stream) => stream.get_ref().0.local_addr().ok(),
            Io::Unix(_) => None,
        }
    }

    /// The plain TCP socket, when there is no TLS.
    pub(crate) fn plain_tcp(&self) -> Option<&TcpStream> {
        match &self.io {
            Io::Tcp(stream) => Some(stream),
            Io::Unix(_) | Io::Tls(_) => None,
        }
    }

    /// Counts bytes that went past the stream (splice).
    pub(crate) fn count(&self, received: u64, sent: u64) {
        self.guard.received(received);
        self.guard.sent(sent);
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        let count = buf.filled().len() - before;
        if count == 0 {
            self.guard.closed_by_peer();
        }
        self.guard.received(count as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        })?;
        self.guard.sent(count as u64);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        })?;
        self.guard.sent(count as u64);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
