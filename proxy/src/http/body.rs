//! Bodies of upstream requests: the downstream request's body passed on piece by piece, kept (up to a limit) while a retry may
//! need it again, and copied to mirrors.

mod downstream;
mod mirror;
mod source;

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use super::codec::RequestBodyError;
use downstream::DownstreamError;
use mirror::MirrorQueue;

pub(crate) use downstream::DownstreamBody;
pub(crate) use source::{NotBuffered, RequestSource};

/// Why a request's body ended early.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an upstream request.
pub(crate) struct Body(Kind);

enum Kind {
    Empty,
    Full(Option<Bytes>),
    Attempt {
        source: Rc<RequestSource>,
        position: usize,
        generation: u32,
    },
    Mirror(Rc<MirrorQueue>),
    /// Pieces of our own, until the sender is dropped.
    Channel(mpsc::Receiver<Bytes>),
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("the downstream request ended early")]
    Downstream(#[source] DownstreamError),
    #[error("a filter wants no more of it")]
    Refused,
    #[error("another attempt has taken over")]
    Superseded,
    #[error("the mirror fell behind or the request ended early")]
    Mirror,
}

/// Whether a body ended because it is not framed as it says.
pub(crate) fn is_malformed(error: &BodyError) -> bool {
    matches!(
        error.downcast_ref(),
        Some(SourceError::Downstream(DownstreamError::Http1(
            RequestBodyError::Framing
        )))
    )
}

/// Whether a body ended because a filter wants no more of it.
pub(crate) fn is_refused(error: &BodyError) -> bool {
    matches!(error.downcast_ref(), Some(SourceError::Refused))
}

/// Two pieces in one.
pub(crate) fn join(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() {
        return second;
    }
    if second.is_empty() {
        return first;
    }
    [first, second].concat().into()
}

impl Body {
    /// No body.
    pub(crate) fn empty() -> Self {
        Body(Kind::Empty)
    }

    /// A body that is all there.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Body(if bytes.is_empty() {
            Kind::Empty
        } else {
            Kind::Full(Some(bytes))
        })
    }

    /// Pieces of our own as they come.
    pub(crate) fn channel(pieces: mpsc::Receiver<Bytes>) -> Self {
        Body(Kind::Channel(pieces))
    }

    /// The downstream request's body from its beginning.
    pub(crate) fn attempt(source: &Rc<RequestSource>) -> Self {
        source.show_kept();
        if source.is_empty() {
            return Body::empty();
        }
        Body(Kind::Attempt {
            generation: source.begin_attempt(),
            source: source.clone(),
            position: 0,
        })
    }

    /// The downstream request's body once more, beside the attempt that has read it: all of it must have been read and kept.
    pub(crate) fn replay(source: &Rc<RequestSource>) -> Self {
        if source.is_empty() {
            return Body::empty();
        }
        Body(Kind::Attempt {
            generation: source.generation(),
            source: source.clone(),
            position: 0,
        })
    }

    /// The upstream wants the body: a downstream client that waits to hear that is told.
    pub(crate) fn forward_continue(&self, context: &mut Context<'_>) {
        if let Kind::Attempt {
            source, generation, ..
        } = &self.0
            && !source.is_superseded(*generation)
        {
            source.forward_continue(context);
        }
    }

    /// A copy of the downstream request's body; must be made before anything is read.
    pub(crate) fn mirror(source: &Rc<RequestSource>) -> Self {
        if source.is_empty() {
            return Body::empty();
        }
        Body(Kind::Mirror(source.mirror()))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = match &mut self.0 {
            Kind::Empty => return Poll::Ready(None),
            Kind::Full(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Kind::Attempt {
                source, generation, ..
            } if source.is_superseded(*generation) => {
                return Poll::Ready(Some(Err(SourceError::Superseded.into())));
            }
            Kind::Attempt {
                source, position, ..
            } => ready!(source.poll_piece(position, context)),
            Kind::Mirror(queue) => ready!(queue.poll_piece(context)),
            Kind::Channel(pieces) => {
                let piece = ready!(pieces.poll_recv(context));
                return Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))));
            }
        };
        Poll::Ready(piece.map(|piece| {
            piece.map(|piece| match piece {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Attempt {
                source, position, ..
            } => source.is_done(*position),
            Kind::Mirror(queue) => queue.is_done(),
            Kind::Channel(pieces) => pieces.is_closed() && pieces.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Attempt { .. } | Kind::Mirror(_) | Kind::Channel(_) => SizeHint::default(),
        }
    }
}
