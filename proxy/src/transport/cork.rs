//! Frames gathered into few calls of the system: HTTP/2's codec writes every larger DATA frame by itself and reads hardly more than
//! one at once, which costs a system call for each, and a wake of the peer. Between the codec and the stream stand two buffers: one
//! goes out when it is full, or when the connection's task has nothing more to do for now ([`Cork::poll`]); the other takes what
//! came with a frame that filled the codec's own. When it was full, the tasks that got its frames have their turn before more is
//! read: they find them in the processor's cache.

use super::spare;
use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is gathered at most.
const MOST: usize = spare::SIZE;

/// The stream as the codec sees it.
pub(crate) struct Corked<S>(Rc<RefCell<Gathered<S>>>);

/// The side of the task that drives the codec.
pub(crate) struct Cork<S>(Rc<RefCell<Gathered<S>>>);

struct Gathered<S> {
    stream: S,
    /// What waits to go out; without memory when that is nothing.
    buffer: Vec<u8>,
    /// How much of the buffer has gone out.
    written: usize,
    /// Nothing is kept below, in the stream.
    is_flushed: bool,
    /// Not while the connection is set up: then everything goes out at once.
    is_corked: bool,
    /// Writing failed; the codec hears of it when it next writes or flushes.
    failed: Option<io::ErrorKind>,
    /// What was read ahead of the codec, and how much of it the codec has taken.
    ahead: Vec<u8>,
    taken: usize,
    /// The codec's buffer was too small for what was there.
    has_more: bool,
    /// Others have their turn before more is read.
    is_turn_over: bool,
}

impl<S> Corked<S> {
    /// A stream that gathers what is written from the first [`Cork::poll`] on.
    pub(crate) fn new(stream: S) -> (Self, Cork<S>) {
        let gathered = Rc::new(RefCell::new(Gathered {
            stream,
            buffer: Vec::new(),
            written: 0,
            is_flushed: true,
            is_corked: false,
            failed: None,
            ahead: Vec::new(),
            taken: 0,
            has_more: false,
            is_turn_over: false,
        }));
        (Self(gathered.clone()), Cork(gathered))
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Polls the codec's connection; when it must wait, what it has written goes out.
    pub(crate) fn poll<T>(
        &self,
        context: &mut Context<'_>,
        mut connection: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.0.borrow_mut().is_corked = true;
        if let Poll::Ready(value) = connection(context) {
            return Poll::Ready(value);
        }
        let drained = self.0.borrow_mut().poll_drain(context);
        if matches!(drained, Poll::Ready(Err(_))) {
            // The codec hears of it as it flushes, and ends.
            return connection(context);
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes and flushes everything.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = ready!(self.poll_out(context));
        self.failed = drained.as_ref().err().map(io::Error::kind);
        Poll::Ready(drained)
    }

    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        while let rest @ [_, ..] = &self.buffer[self.written..] {
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.is_flushed = false;
        }
        self.written = 0;
        spare::give(&mut self.buffer);
        if !self.is_flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what there is room for.
    fn poll_gather(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= MOST || self.failed.is_some() {
            ready!(self.poll_drain(context))?;
        }
        spare::take(&mut self.buffer);
        let before = self.buffer.len();
        for slice in bytes {
            let room = MOST - self.buffer.len();
            self.buffer
                .extend_from_slice(&slice[..slice.len().min(room)]);
        }
        Poll::Ready(Ok(self.buffer.len() - before))
    }
}

impl<S: AsyncRead + Unpin> Gathered<S> {
    /// Reads what the codec has room for.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            if std::mem::take(&mut self.is_turn_over) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.has_more {
                ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
                self.has_more = buffer.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_ahead(context))?;
        }
        let rest = &self.ahead[self.taken..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.ahead.len() {
            self.taken = 0;
            spare::give(&mut self.ahead);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what there is; nothing at the end.
    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        spare::take(&mut self.ahead);
        let read = poll_read_buf(Pin::new(&mut self.stream), context, &mut self.ahead);
        self.has_more = matches!(read, Poll::Ready(Ok(spare::SIZE)));
        self.is_turn_over = self.has_more;
        if self.ahead.is_empty() {
            spare::give(&mut self.ahead);
        }
        read.map_ok(drop)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(context, buffer)
    }
}

impl<S> Drop for Gathered<S> {
    fn drop(&mut self) {
        spare::give(&mut self.buffer);
        spare::give(&mut self.ahead);
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.borrow_mut();
        if gathered.is_corked {
            return gathered.poll_gather(context, bytes);
        }
        gathered.is_flushed = false;
        Pin::new(&mut gathered.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        if gathered.is_corked && gathered.failed.is_none() {
            return Poll::Ready(Ok(()));
        }
        gathered.poll_drain(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.poll_drain(context))?;
        Pin::new(&mut gathered.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, task::Waker};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn what_is_written_before_the_first_poll_goes_out_at_once() {
        let (mut far, near) = tokio::io::duplex(16);
        let (mut corked, _cork) = Corked::new(near);
        corked.write_all(b"preface").await.unwrap();
        let mut seen = [0; 7];
        far.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"preface");
    }

    #[tokio::test]
    async fn pieces_go_out_together_when_the_task_waits() {
        let (mut far, near) = tokio::io::duplex(64);
        let (mut corked, cork) = Corked::new(near);
        let mut context = Context::from_waker(Waker::noop());
        let polled: Poll<()> = cork.poll(&mut context, |context| {
            for piece in [b"one ", b"two "] {
                assert!(Pin::new(&mut corked).poll_write(context, piece).is_ready());
                assert!(Pin::new(&mut corked).poll_flush(context).is_ready());
            }
            assert_eq!(corked.0.borrow().written, 0);
            assert_eq!(corked.0.borrow().buffer, b"one two ");
            Poll::Pending
        });
        assert!(polled.is_pending());
        let mut seen = [0; 64];
        assert_eq!(far.read(&mut seen).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_bounds_what_is_gathered_and_gets_all_of_it() {
        let (mut far, near) = tokio::io::duplex(1000);
        let (mut corked, cork) = Corked::new(near);
        let bytes: Vec<u8> = (0..MOST * 2).map(|index| (index % 251) as u8).collect();
        let mut taken = 0;
        let write = poll_fn(|context| {
            let polled: Poll<()> = cork.poll(context, |context| {
                while let rest @ [_, ..] = &bytes[taken..]
                    && let Poll::Ready(count) = Pin::new(&mut corked).poll_write(context, rest)
                {
                    taken += count.unwrap();
                    assert!(corked.0.borrow().buffer.len() <= MOST);
                }
                Poll::Pending
            });
            assert!(polled.is_pending());
            if taken == bytes.len() && corked.0.borrow().buffer.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let mut seen = vec![0; bytes.len()];
        let (_, count) = tokio::join!(write, far.read_exact(&mut seen));
        count.unwrap();
        assert_eq!(seen, bytes);
        assert_eq!(corked.0.borrow().buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn what_a_full_buffer_leaves_is_read_at_once_in_turns_and_in_order() {
        let (mut far, near) = tokio::io::duplex(MOST * 4);
        let (mut corked, _cork) = Corked::new(near);
        let bytes: Vec<u8> = (0..MOST * 3).map(|index| (index % 251) as u8).collect();
        far.write_all(&bytes).await.unwrap();
        drop(far);
        let mut seen = vec![0; 1000];
        corked.read_exact(&mut seen).await.unwrap();
        assert_eq!(corked.0.borrow().ahead.len(), 0);
        seen.resize(1010, 0);
        corked.read_exact(&mut seen[1000..]).await.unwrap();
        assert_eq!(corked.0.borrow().ahead.len(), MOST);
        seen.resize(1000 + MOST, 0);
        corked.read_exact(&mut seen[1010..]).await.unwrap();
        let mut next = [0; 1];
        let mut context = Context::from_waker(Waker::noop());
        let turn = Pin::new(&mut corked).poll_read(&mut context, &mut ReadBuf::new(&mut next));
        assert!(turn.is_pending());
        corked.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, bytes);
        assert_eq!(corked.0.borrow().ahead.capacity(), 0);
    }

    #[tokio::test]
    async fn a_broken_stream_is_told_to_the_codec() {
        let (far, near) = tokio::io::duplex(16);
        drop(far);
        let (mut corked, cork) = Corked::new(near);
        let mut context = Context::from_waker(Waker::noop());
        let mut is_first = true;
        let polled = cork.poll(&mut context, |context| {
            if std::mem::take(&mut is_first) {
                assert!(Pin::new(&mut corked).poll_write(context, b"x").is_ready());
                return Poll::Pending;
            }
            Pin::new(&mut corked).poll_flush(context)
        });
        assert!(matches!(polled, Poll::Ready(Err(_))));
    }
}
