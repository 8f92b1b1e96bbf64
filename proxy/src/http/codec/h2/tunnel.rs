//! A stream of an HTTP/2 connection as a stream of bytes, for CONNECT; both directions, downstream and upstream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a stream.
pub(crate) struct Tunnel {
    ahead: Bytes,
    receive: RecvStream,
    send: SendStream<Bytes>,
}

impl Tunnel {
    /// Joins a stream's two halves.
    pub(crate) fn new(receive: RecvStream, send: SendStream<Bytes>) -> Self {
        Tunnel {
            ahead: Bytes::new(),
            receive,
            send,
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            match ready!(self.receive.poll_data(context)) {
                Some(Ok(data)) => {
                    let _ = self.receive.flow_control().release_capacity(data.len());
                    self.ahead = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.send.capacity() == 0 {
            self.send.reserve_capacity(data.len());
        }
        loop {
            let room = self.send.capacity().min(data.len());
            if room > 0 {
                let piece = Bytes::copy_from_slice(&data[..room]);
                self.send
                    .send_data(piece, false)
                    .map_err(io::Error::other)?;
                return Poll::Ready(Ok(room));
            }
            match ready!(self.send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A stream that was reset is shut already.
        let _ = self.send.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}
