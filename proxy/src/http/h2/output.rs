//! What waits to go out of a connection: small things one behind the other in a buffer that connections share, large data between
//! them as it came.

use crate::transport::spare;
use bytes::{Buf as _, Bytes};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Data from this length on is not copied.
const LARGE: usize = 4 << 10;
/// So many parts are written at a time.
const PARTS: usize = 64;

/// What waits to go out.
pub(super) struct Output {
    bytes: Vec<u8>,
    /// How much of `bytes` is written.
    written: usize,
    /// Large data, each with the place in `bytes` that it goes before.
    large: VecDeque<(usize, Bytes)>,
    large_length: usize,
    /// The connection writes several parts at once.
    is_vectored: bool,
}

impl Output {
    pub(super) fn new(is_vectored: bool) -> Self {
        Self {
            bytes: Vec::new(),
            written: 0,
            large: VecDeque::new(),
            large_length: 0,
            is_vectored,
        }
    }

    /// Where frames are added.
    pub(super) fn frames(&mut self) -> &mut Vec<u8> {
        spare::take(&mut self.bytes);
        &mut self.bytes
    }

    /// Adds a part of `memory`.
    pub(super) fn put_data(&mut self, data: &[u8], memory: Option<&Bytes>) {
        match memory {
            Some(memory) if self.is_vectored && data.len() >= LARGE => {
                self.large
                    .push_back((self.bytes.len(), memory.slice_ref(data)));
                self.large_length += data.len();
            }
            _ => self.frames().extend_from_slice(data),
        }
    }

    /// How much waits, with what is written of the current round.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.large_length
    }

    /// Writes all of it.
    pub(super) fn poll_write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(stream);
        while self.large_length > 0 || self.written < self.bytes.len() {
            let count = if self.large.is_empty() {
                let rest = &self.bytes[self.written..];
                ready!(stream.as_mut().poll_write(context, rest))?
            } else {
                let mut parts = [IoSlice::new(&[]); PARTS];
                let used = self.parts(&mut parts);
                ready!(stream.as_mut().poll_write_vectored(context, &parts[..used]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(count);
        }
        self.written = 0;
        spare::give(&mut self.bytes);
        Poll::Ready(Ok(()))
    }

    /// The first parts in their order; how many.
    fn parts<'a>(&'a self, parts: &mut [IoSlice<'a>; PARTS]) -> usize {
        let (mut used, mut at) = (0, self.written);
        let ends = self.large.iter().map(|(place, data)| (*place, &data[..]));
        for (place, data) in ends.chain([(self.bytes.len(), &[][..])]) {
            for part in [&self.bytes[at..place], data] {
                if !part.is_empty() && used < PARTS {
                    parts[used] = IoSlice::new(part);
                    used += 1;
                }
            }
            at = place;
            if used == PARTS {
                break;
            }
        }
        used
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let place = self
                .large
                .front()
                .map_or(self.bytes.len(), |(place, _)| *place);
            let small = count.min(place - self.written);
            self.written += small;
            count -= small;
            let Some((_, data)) = self.large.front_mut() else {
                return;
            };
            let part = count.min(data.len());
            data.advance(part);
            self.large_length -= part;
            count -= part;
            if data.is_empty() {
                self.large.pop_front();
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        spare::give(&mut self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes so many bytes at a time.
    struct Slow {
        step: usize,
        got: Vec<u8>,
        is_tired: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(data)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.is_tired = !self.is_tired;
            if !self.is_tired {
                return Poll::Pending;
            }
            let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            let count = all.len().min(self.step);
            self.got.extend_from_slice(&all[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        /// Small and large parts go out in their order, however little is taken at a time and whatever is added meanwhile.
        #[test]
        fn what_is_put_goes_out_in_order(
            parts in prop::collection::vec((0_usize..3 * LARGE, any::<bool>()), 0..12),
            step in LARGE / 8..5 * LARGE,
            is_vectored: bool,
        ) {
            let mut output = Output::new(is_vectored);
            let mut slow = Slow { step, got: Vec::new(), is_tired: false };
            let mut context = Context::from_waker(std::task::Waker::noop());
            let mut all = Vec::new();
            for (index, (length, is_kept)) in parts.into_iter().enumerate() {
                let data = Bytes::from(vec![u8::try_from(index).unwrap(); length]);
                all.extend_from_slice(&data);
                output.put_data(&data, is_kept.then_some(&data));
                let _ = output.poll_write(&mut slow, &mut context);
            }
            while output.poll_write(&mut slow, &mut context).is_pending() {}
            prop_assert_eq!(output.len(), 0);
            prop_assert!(slow.got == all);
        }
    }
}
