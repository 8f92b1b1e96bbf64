//! Finds out by the first bytes of a plain connection whether the client speaks HTTP/2 with prior knowledge.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::transport::DownstreamStream;

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose first bytes were read already.
pub(super) struct Prefixed {
    ahead: BytesMut,
    stream: DownstreamStream,
}

impl Prefixed {
    /// A stream of which nothing was read.
    pub(super) fn new(stream: DownstreamStream) -> Self {
        Prefixed {
            ahead: BytesMut::new(),
            stream,
        }
    }

    /// What was read already, and the stream.
    pub(super) fn into_parts(self) -> (BytesMut, DownstreamStream) {
        (self.ahead, self.stream)
    }

    /// Reads until the protocol is known; `None` when the client says nothing.
    pub(super) async fn detect(mut self) -> io::Result<Option<(Self, bool)>> {
        loop {
            if self.stream.read_buf(&mut self.ahead).await? == 0 {
                return Ok(None);
            }
            let known = self.ahead.len().min(PREFACE.len());
            if self.ahead[..known] != PREFACE[..known] {
                return Ok(Some((self, false)));
            }
            if known == PREFACE.len() {
                return Ok(Some((self, true)));
            }
        }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
