//! Streams: a socket, what was read ahead of it, TLS over it, and somebody who counts the bytes. Downstream and upstream
//! streams differ only in who counts.

use super::ReadAhead;
use bytes::Bytes;
use proto_component::tls::revocation::Seat;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsStream;

/// A socket, and what was read ahead of it.
pub(crate) type RawStream = ReadAhead<Socket>;

/// A socket of either family.
pub(crate) enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix domain socket.
    Unix(UnixStream),
}

/// A socket with its transport: clear text to whoever reads it.
pub(super) enum Layer {
    Raw(RawStream),
    Tls(Box<TlsStream<RawStream>>),
}

/// A stream whose bytes are counted by `C`.
pub(crate) struct TransportStream<C> {
    layer: Layer,
    /// Where the peer has shown a certificate.
    seat: Option<Seat>,
    pub(super) count: C,
}

/// Hears of the bytes of a stream.
pub(crate) trait Count: Unpin {
    /// These came from the peer; none at its end.
    fn received(&mut self, bytes: &[u8]);
    /// These went to the peer.
    fn sent(&mut self, bytes: &[u8]);
    /// So many went to the peer in one gathered write.
    fn sent_vectored(&mut self, bytes: &[io::IoSlice<'_>], count: usize);
    /// So many went past the stream, from the peer and to it.
    fn moved(&self, received: u64, sent: u64);
    /// Whether it wants to see every byte, so that none may go past the stream.
    fn sees_bytes(&self) -> bool;
    /// The peer has reset the connection.
    fn was_reset(&mut self) {}
}

impl RawStream {
    /// A TCP connection of which `ahead` has been read.
    pub(crate) fn tcp(stream: TcpStream, ahead: Bytes) -> Self {
        Self::new(ahead, Socket::Tcp(stream))
    }

    /// A Unix connection.
    pub(crate) fn unix(stream: UnixStream) -> Self {
        Self::new(Bytes::new(), Socket::Unix(stream))
    }

    /// Our end's address.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.tcp_socket()?.local_addr().ok()
    }

    fn tcp_socket(&self) -> Option<&TcpStream> {
        match &self.stream {
            Socket::Tcp(stream) => Some(stream),
            Socket::Unix(_) => None,
        }
    }
}

impl Layer {
    fn raw(&self) -> &RawStream {
        match self {
            Self::Raw(raw) => raw,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl<C: Count> TransportStream<C> {
    pub(super) fn new(layer: Layer, count: C) -> Self {
        Self {
            layer,
            seat: None,
            count,
        }
    }

    /// The same, to end when the peer's certificate is revoked.
    pub(super) fn with_seat(mut self, seat: Option<Seat>) -> Self {
        self.seat = seat;
        self
    }

    /// The protocol that ALPN chose.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.layer {
            Layer::Raw(_) => None,
            Layer::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Our end's address.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.layer.raw().local_address()
    }

    /// Takes what was read ahead of a plain connection.
    pub(crate) fn take_ahead(&mut self) -> Bytes {
        match &mut self.layer {
            Layer::Raw(raw) => {
                let ahead = std::mem::take(&mut raw.ahead);
                if !ahead.is_empty() {
                    self.count.received(&ahead);
                }
                ahead
            }
            Layer::Tls(_) => Bytes::new(),
        }
    }

    /// The plain TCP socket, when nothing stands between: no TLS, nothing read ahead, nobody who wants to see the bytes.
    pub(crate) fn plain_tcp(&self) -> Option<&TcpStream> {
        match &self.layer {
            Layer::Raw(raw) if raw.ahead.is_empty() && !self.count.sees_bytes() => raw.tcp_socket(),
            Layer::Raw(_) | Layer::Tls(_) => None,
        }
    }

    /// Resolves when the peer has broken the connection off; one that has only ended its side has not.
    pub(crate) async fn broken(&self) {
        match self.layer.raw().tcp_socket() {
            Some(socket) => {
                // An error is a reset, found out in another way.
                let _ = socket.ready(Interest::ERROR).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Makes the end of the stream a reset.
    pub(crate) fn reset_on_close(&self) {
        if let Some(socket) = self.layer.raw().tcp_socket() {
            // Where that fails, there is nobody left to tell.
            let _ = socket.set_zero_linger();
        }
    }

    /// Passes a result on, having told of a reset.
    fn seen<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &outcome
            && error.kind() == io::ErrorKind::ConnectionReset
        {
            self.count.was_reset();
        }
        outcome
    }

    /// The plain TCP socket, and who counts what goes past the stream.
    pub(crate) fn plain_tcp_mut(&mut self) -> Option<(&mut TcpStream, &C)> {
        match &mut self.layer {
            Layer::Raw(raw) if raw.ahead.is_empty() && !self.count.sees_bytes() => {
                match &mut raw.stream {
                    Socket::Tcp(stream) => Some((stream, &self.count)),
                    Socket::Unix(_) => None,
                }
            }
            Layer::Raw(_) | Layer::Tls(_) => None,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl<C: Count> AsyncRead for TransportStream<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(seat) = &this.seat {
            seat.check(cx)?;
        }
        let before = buf.filled().len();
        let read = ready!(match &mut this.layer {
            Layer::Raw(stream) => Pin::new(stream).poll_read(cx, buf),
            Layer::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        });
        // A peer that breaks off has ended, too.
        this.count.received(&buf.filled()[before..]);
        Poll::Ready(this.seen(read))
    }
}

impl<C: Count> AsyncWrite for TransportStream<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(seat) = &this.seat {
            seat.check_now()?;
        }
        let written = ready!(match &mut this.layer {
            Layer::Raw(stream) => Pin::new(stream).poll_write(cx, buf),
            Layer::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        });
        let count = this.seen(written)?;
        this.count.sent(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(seat) = &this.seat {
            seat.check_now()?;
        }
        let written = ready!(match &mut this.layer {
            Layer::Raw(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Layer::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        });
        let count = this.seen(written)?;
        this.count.sent_vectored(bufs, count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.layer {
            Layer::Raw(stream) => Pin::new(stream).poll_flush(cx),
            Layer::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.layer {
            Layer::Raw(stream) => Pin::new(stream).poll_shutdown(cx),
            Layer::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
