//! The downstream side: the accepted stream, what listener filters have read of it, and the TLS handshake.

use super::{
    SecretSlots,
    certificate::peer_certificate,
    tls_context::{DownstreamTlsContext, TlsError},
};
use crate::{
    invalid::{At as _, Invalid},
    listener::TlsInfo,
};
use bytes::{Buf as _, Bytes};
use proto::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
use proto::envoy::extensions::transport_sockets::{
    raw_buffer::v3::RawBuffer, tls::v3::DownstreamTlsContext as WireTls,
};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

/// A stream from downstream; clear text to whoever reads it.
pub(crate) struct DownstreamStream {
    io: Io,
    meter: Arc<Meter>,
}

enum Io {
    Raw(RawStream),
    Tls(Box<TlsStream<RawStream>>),
}

/// A socket, and what was read ahead of it.
pub(crate) struct RawStream {
    ahead: Bytes,
    socket: Socket,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Bytes of one connection, shared with whoever reports them.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    received: AtomicU64,
    sent: AtomicU64,
}

/// How a filter chain secures connections.
pub(crate) enum DownstreamTransport {
    /// Not at all.
    Raw,
    /// TLS.
    Tls(Box<DownstreamTlsContext>),
}

/// Why the transport could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// No context.
    #[error(transparent)]
    Context(#[from] TlsError),
    /// The handshake failed.
    #[error("TLS handshake: {0}")]
    Handshake(#[source] io::Error),
}

impl Meter {
    /// Bytes from the peer.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Bytes to the peer.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Counts bytes that went past the stream (splice).
    pub(crate) fn add(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Relaxed);
        self.sent.fetch_add(sent, Relaxed);
    }
}

impl RawStream {
    /// A TCP connection of which `ahead` has been read.
    pub(crate) fn tcp(stream: TcpStream, ahead: Bytes) -> Self {
        Self {
            ahead,
            socket: Socket::Tcp(stream),
        }
    }

    /// A Unix connection.
    pub(crate) fn unix(stream: UnixStream) -> Self {
        Self {
            ahead: Bytes::new(),
            socket: Socket::Unix(stream),
        }
    }
}

impl DownstreamTransport {
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
            DownstreamTlsContext::new(&wire, secrets).at("typed_config")?,
        )))
    }

    /// Sets the transport up on an accepted socket.
    pub(crate) async fn accept(
        &self,
        raw: RawStream,
    ) -> Result<(DownstreamStream, Option<Arc<TlsInfo>>), HandshakeError> {
        let meter = Arc::new(Meter::default());
        match self {
            Self::Raw => Ok((
                DownstreamStream {
                    io: Io::Raw(raw),
                    meter,
                },
                None,
            )),
            Self::Tls(context) => {
                let acceptor = tokio_rustls::TlsAcceptor::from(context.config()?);
                let stream = acceptor
                    .accept(raw)
                    .await
                    .map_err(HandshakeError::Handshake)?;
                let info = Arc::new(tls_info(stream.get_ref().1, context));
                Ok((
                    DownstreamStream {
                        io: Io::Tls(Box::new(stream)),
                        meter,
                    },
                    Some(info),
                ))
            }
        }
    }
}

fn tls_info(session: &rustls::ServerConnection, context: &DownstreamTlsContext) -> TlsInfo {
    let own = context.pairs();
    let own = own.first().map(|pair| &pair.details);
    TlsInfo {
        alpn: session
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        server_name: session.server_name().map(str::to_owned),
        version: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        },
        cipher: session
            .negotiated_cipher_suite()
            .map(|suite| cipher_name(suite.suite()))
            .unwrap_or_default(),
        peer: session
            .peer_certificates()
            .and_then(|chain| peer_certificate(chain, true))
            .map(Arc::new),
        local_uri_sans: own
            .map(|own| own.uri_sans.as_slice().into())
            .unwrap_or_default(),
        local_dns_sans: own
            .map(|own| own.dns_sans.as_slice().into())
            .unwrap_or_default(),
        local_subject: own
            .map(|own| own.subject.as_str().into())
            .unwrap_or_default(),
    }
}

/// `TLS13_AES_128_GCM_SHA256` is `TLS_AES_128_GCM_SHA256` to everybody else.
fn cipher_name(suite: rustls::CipherSuite) -> String {
    suite
        .as_str()
        .unwrap_or_default()
        .replacen("TLS13_", "TLS_", 1)
}

impl DownstreamStream {
    /// The connection's byte counts.
    pub(crate) fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// Takes what was read ahead of a plain connection.
    pub(crate) fn take_ahead(&mut self) -> Bytes {
        match &mut self.io {
            Io::Raw(raw) => {
                let ahead = std::mem::take(&mut raw.ahead);
                self.meter.add(ahead.len() as u64, 0);
                ahead
            }
            Io::Tls(_) => Bytes::new(),
        }
    }

    /// The plain TCP socket, when nothing stands between: no TLS, nothing read ahead.
    pub(crate) fn plain_tcp(&self) -> Option<&TcpStream> {
        match &self.io {
            Io::Raw(RawStream {
                ahead,
                socket: Socket::Tcp(stream),
            }) if ahead.is_empty() => Some(stream),
            _ => None,
        }
    }
}

impl AsyncRead for RawStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for RawStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for DownstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut self.io {
            Io::Raw(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        self.meter
            .received
            .fetch_add((buf.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DownstreamStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(match &mut self.io {
            Io::Raw(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        })?;
        self.meter.sent.fetch_add(count as u64, Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(match &mut self.io {
            Io::Raw(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        })?;
        self.meter.sent.fetch_add(count as u64, Relaxed);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Raw(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Raw(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
