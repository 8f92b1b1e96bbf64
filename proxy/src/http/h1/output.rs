//! What waits to be written: small things are gathered in one buffer, large pieces stay where they are, and all of it goes out
//! with as few system calls as it can.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
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
    flat: Vec<u8>,
    /// This much of `flat` is gone.
    sent: usize,
    length: usize,
    /// What was put since that was asked for.
    put: usize,
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

    /// How much was put since this was asked before.
    pub(crate) fn take_put(&mut self) -> usize {
        std::mem::take(&mut self.put)
    }

    /// Begins with what was written elsewhere.
    pub(crate) fn take_over(&mut self, flat: Vec<u8>) {
        self.length += flat.len();
        self.put += flat.len();
        self.flat = flat;
    }

    /// Writes something small.
    pub(crate) fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.flat.len();
        write(&mut self.flat);
        self.length += self.flat.len() - before;
        self.put += self.flat.len() - before;
    }

    /// A piece of a body as it is.
    pub(crate) fn put_data(&mut self, data: Bytes) {
        if data.len() <= SMALL {
            self.put(|flat| flat.extend_from_slice(&data));
            return;
        }
        let mut flat = Bytes::from(std::mem::take(&mut self.flat));
        flat.advance(std::mem::take(&mut self.sent));
        if !flat.is_empty() {
            self.queue.push_back(flat);
        }
        self.length += data.len();
        self.put += data.len();
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
                ready!(Pin::new(&mut *stream).poll_write(context, &self.flat[self.sent..]))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut used = 0;
                for piece in self.queue.iter().take(SLICES - 1) {
                    slices[used] = IoSlice::new(piece);
                    used += 1;
                }
                if self.queue.len() < SLICES && self.sent < self.flat.len() {
                    slices[used] = IoSlice::new(&self.flat[self.sent..]);
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
            self.flat = Vec::new();
        } else {
            self.flat.clear();
        }
        self.sent = 0;
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
        self.sent += count;
        // What comes behind must not pile up on what is gone while a slow reader never takes all.
        if self.sent > KEPT {
            self.flat.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes little at a time, and then makes its writer wait.
    struct Slow(Vec<u8>, bool);

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1 = !self.1;
            if !self.1 {
                return Poll::Pending;
            }
            let count = data.len().min(700);
            self.0.extend_from_slice(&data[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_reader_that_is_always_behind_does_not_make_what_is_gone_pile_up() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let (mut output, mut slow) = (Output::default(), Slow(Vec::new(), false));
        let mut expected = Vec::new();
        for round in 0..1000_usize {
            let size = if round % 100 == 99 { SMALL + 1 } else { 500 };
            let data = Bytes::from(vec![u8::try_from(round % 251).unwrap_or(0); size]);
            expected.extend_from_slice(&data);
            output.put_data(data);
            while output.len() > 1000 {
                let _ = output.poll_write(&mut slow, &mut context);
            }
            assert!(!output.is_empty() && output.flat.len() <= 2 * KEPT);
        }
        while output.poll_write(&mut slow, &mut context).is_pending() {}
        assert_eq!(slow.0, expected);
    }
}
