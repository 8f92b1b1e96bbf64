//! The reading half of a connection, shared by the codec (heads) and the request's body.

use std::cell::RefCell;
use std::future::Future as _;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::io::AsyncReadExt as _;

use crate::http::h1::decoder::{self, InvalidBody};
use crate::http::h1::{Decoded, Decoder, Framing, InvalidHead, Output, RequestHead};
use crate::stream_info::PlainMeter;
use crate::transport::{DownstreamStream, ReadAhead};

/// The least room for a read.
const READ: usize = 4 << 10;
/// Room that is left of a buffer and still enough for a read.
const LEFT: usize = 1 << 10;
/// The most room for a read.
const READ_MOST: usize = 64 << 10;
/// What a client may send ahead while its request is served.
const AHEAD: usize = 64 << 10;

/// What a client that waits for it is told.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A connection's two directions.
pub(super) struct Io {
    /// The socket, until a tunnel takes it.
    pub(super) stream: Option<DownstreamStream>,
    /// What was read and not yet used.
    pub(super) input: BytesMut,
    /// What is to be written.
    pub(super) output: Output,
    /// The running request's body.
    pub(super) decoder: Decoder,
    /// The client has ended its side.
    pub(super) is_eof: bool,
    /// The running request's number.
    pub(super) request: u64,
    /// The client waits until the upstream lets it go on.
    pub(super) awaits_continue: bool,
    /// Trailers are passed on.
    pub(super) has_trailers: bool,
    /// Counts the bytes of the running request and its response.
    pub(super) meter: Rc<PlainMeter>,
}

/// Shared by the codec and the body of the running request.
pub(super) type SharedIo = Rc<RefCell<Io>>;

/// The body of a request.
pub(crate) struct RequestBody {
    io: SharedIo,
    request: u64,
}

/// Why a request's body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    /// It is not framed as it says.
    #[error("the request's body is not framed as it says")]
    Framing,
    /// The client went away.
    #[error("the client went away")]
    Closed,
    /// The request is over.
    #[error("the request is over")]
    Over,
}

impl Io {
    /// Gives the connection to a tunnel; `None` when it was given before.
    pub(super) fn take_tunnel(&mut self) -> Option<ReadAhead<DownstreamStream>> {
        self.decoder = Decoder::new(Framing::Empty);
        let ahead = std::mem::take(&mut self.input).freeze();
        Some(ReadAhead::new(ahead, self.stream.take()?))
    }

    /// The running request's body, piece by piece.
    pub(super) fn decode(&mut self) -> Result<Decoded, InvalidBody> {
        let before = self.input.len();
        let decoded = self.decoder.decode(&mut self.input);
        self.meter.read(before - self.input.len());
        if let Ok(Decoded::Trailers(trailers)) = &decoded {
            self.meter.read_trailers(decoder::trailer_bytes(trailers));
        }
        decoded
    }

    /// A request's head was looked for in so many bytes: with one, or with what is none, something begins that is counted.
    pub(super) fn note_head(
        &mut self,
        before: usize,
        parsed: &Result<Option<RequestHead>, InvalidHead>,
    ) {
        let (bytes, fields) = match parsed {
            Ok(Some(head)) => (before - self.input.len(), head.field_bytes),
            Ok(None) => return,
            Err(_) => (before, 0),
        };
        PlainMeter::renew(&mut self.meter);
        self.meter.read(bytes);
        self.meter.read_head(fields);
    }

    /// Counts what was put where it is written from.
    pub(super) fn note_output(&mut self) {
        self.meter.wrote(self.output.take_put());
    }

    /// Reads more; 0 at the end.
    pub(super) fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(0));
        };
        let spare = self.input.capacity() - self.input.len();
        let wanted = match self.decoder.expected() {
            // Between bodies what is left of a buffer does: asked for more, a new one would be made just to see whether the
            // client is still there.
            0 if spare >= LEFT => LEFT,
            0 | usize::MAX => READ,
            known => known.clamp(READ, READ_MOST),
        };
        self.input.reserve(wanted);
        let read = ready!(pin!(stream.read_buf(&mut self.input)).poll(context));
        if !matches!(read, Ok(1..)) {
            self.is_eof = true;
        }
        Poll::Ready(read)
    }

    /// Writes what waits.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => self.output.poll_write(stream, context),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Ready when the client has gone while its request is served. What it sends ahead is kept, up to a limit.
    pub(super) fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.decoder.is_done() {
            return Poll::Pending;
        }
        while !self.is_eof {
            if self.input.len() >= AHEAD {
                return Poll::Pending;
            }
            let _ = ready!(self.poll_fill(context));
        }
        Poll::Ready(())
    }
}

impl RequestBody {
    pub(super) fn new(io: SharedIo, request: u64) -> Self {
        RequestBody { io, request }
    }

    /// The next piece.
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let mut io = self.io.borrow_mut();
        let io = &mut *io;
        if io.request != self.request {
            return Poll::Ready(Some(Err(RequestBodyError::Over)));
        }
        loop {
            match io.decode() {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Decoded::Trailers(trailers)) if io.has_trailers => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::End | Decoded::Trailers(_)) => return Poll::Ready(None),
                Ok(Decoded::More) if io.is_eof => {
                    return Poll::Ready(Some(Err(RequestBodyError::Closed)));
                }
                Ok(Decoded::More) => {
                    // An error is the end too.
                    let _ = ready!(io.poll_fill(context));
                }
                Err(_) => return Poll::Ready(Some(Err(RequestBodyError::Framing))),
            }
        }
    }

    /// The upstream wants the body: tells a client that waits for that.
    pub(crate) fn forward_continue(&self, context: &mut Context<'_>) {
        let mut io = self.io.borrow_mut();
        if io.request == self.request && std::mem::take(&mut io.awaits_continue) {
            io.output.put(|flat| flat.extend_from_slice(CONTINUE));
            io.note_output();
            // What cannot go now goes before the response.
            let _ = io.poll_flush(context);
        }
    }

    /// True when all of it was read.
    pub(crate) fn is_end_stream(&self) -> bool {
        let io = self.io.borrow();
        io.request == self.request && io.decoder.is_done()
    }
}
