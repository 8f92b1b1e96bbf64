//! What waits to be written: small things are gathered in one buffer, large pieces stay where they are, and all of it goes out
//! with as few system calls as it can.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// A piece up to this size is copied.
const SMALL: usize = 4 << 10;
/// Pieces in one write.
const SLICES: usize = 16;
/// A buffer larger than this is not kept for the next message.
const KEPT: usize = 8 << 10;

/// Bytes on their way out.
#[derive(Default)]
pub(crate) struct Output {
    /// Earlier than `flat`.
    queue: VecDeque<Bytes>,
    flat: BytesMut,
    length: usize,
}

impl Output {
    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Begins with what was written elsewhere.
    pub(crate) fn take_over(&mut self, flat: BytesMut) {
        self.length += flat.len();
        self.flat = flat;
    }

    /// Writes something small.
    pub(crate) fn put(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.flat.len();
        write(&mut self.flat);
        self.length += self.flat.len() - before;
    }

    /// A piece of a body as it is.
    pub(crate) fn put_data(&mut self, data: Bytes) {
        if data.len() <= SMALL {
            self.put(|flat| flat.extend_from_slice(&data));
            return;
        }
        if !self.flat.is_empty() {
            self.queue.push_back(self.flat.split().freeze());
        }
        self.length += data.len();
        self.queue.push_back(data);
    }

    /// A piece of a body as a chunk; an empty one would be the end, so it is left out.
    pub(crate) fn put_chunk(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.put(|flat| {
            let mut digits = [0; 16];
            let mut at = digits.len();
            let mut rest = data.len();
            while rest > 0 {
                at -= 1;
                digits[at] = b"0123456789abcdef"[rest & 15];
                rest >>= 4;
            }
            flat.extend_from_slice(&digits[at..]);
            flat.extend_from_slice(b"\r\n");
        });
        self.put_data(data);
        self.put(|flat| flat.extend_from_slice(b"\r\n"));
    }

    /// Writes until nothing waits.
    pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.length == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.length > 0 {
            let count = if self.queue.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(context, &self.flat))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut used = 0;
                for piece in self.queue.iter().take(SLICES - 1) {
                    slices[used] = IoSlice::new(piece);
                    used += 1;
                }
                if self.queue.len() < SLICES && !self.flat.is_empty() {
                    slices[used] = IoSlice::new(&self.flat);
                    used += 1;
                }
                ready!(Pin::new(&mut *stream).poll_write_vectored(context, &slices[..used]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(count);
        }
        if self.flat.capacity() > KEPT {
            self.flat = BytesMut::new();
        } else {
            self.flat.clear();
        }
        Pin::new(stream).poll_flush(context)
    }

    fn consume(&mut self, mut count: usize) {
        self.length -= count;
        while let Some(first) = self.queue.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.queue.pop_front();
        }
        self.flat.advance(count);
    }
}
