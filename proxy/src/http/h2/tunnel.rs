//! A stream as bytes, for CONNECT; both directions, downstream and upstream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Error, Receive, Send};

/// Bytes of a stream.
pub(crate) struct Tunnel {
    ahead: Bytes,
    receive: Receive,
    send: Send,
}

impl Tunnel {
    /// Joins a stream's two halves.
    pub(crate) fn new(receive: Receive, send: Send) -> Self {
        Tunnel {
            ahead: Bytes::new(),
            receive,
            send,
        }
    }
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            match ready!(self.receive.poll_frame(context)) {
                // Trailers are no bytes.
                Some(Ok(frame)) => self.ahead = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
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
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.send.poll_room(context)).map_err(broken)?;
        let count = room.min(data.len());
        self.send.send_data(&data[..count], false).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A stream that was reset is shut already.
        let _ = self.send.send_data(&[], true);
        Poll::Ready(Ok(()))
    }
}
