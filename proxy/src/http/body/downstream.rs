//! The body of a downstream request, whichever protocol it comes by.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;

use crate::http::codec::{RequestBody, RequestBodyError};
use crate::http::h2;

/// The body of a downstream request, as its codec reads it.
pub(crate) enum DownstreamBody {
    /// None.
    Empty,
    /// Of an HTTP/1 connection.
    Http1(RequestBody),
    /// Of an HTTP/2 stream.
    Http2(h2::Receive),
}

/// Why a downstream request's body ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownstreamError {
    /// On an HTTP/1 connection.
    #[error(transparent)]
    Http1(#[from] RequestBodyError),
    /// On an HTTP/2 stream.
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

impl DownstreamBody {
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownstreamError>>> {
        match self {
            DownstreamBody::Empty => Poll::Ready(None),
            DownstreamBody::Http1(body) => body
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(DownstreamError::Http1))),
            DownstreamBody::Http2(stream) => stream
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(DownstreamError::Http2))),
        }
    }

    /// The upstream wants the body. Clients of HTTP/2 are not told: they need not wait.
    pub(super) fn forward_continue(&self, context: &mut Context<'_>) {
        if let DownstreamBody::Http1(body) = self {
            body.forward_continue(context);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            DownstreamBody::Empty => true,
            DownstreamBody::Http1(body) => body.is_end_stream(),
            DownstreamBody::Http2(stream) => stream.is_end_stream(),
        }
    }
}
