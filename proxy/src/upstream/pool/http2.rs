//! An HTTP/2 exchange on a shared connection. The connection itself is one task; requests and responses are driven by whoever
//! waits for them.

use super::{PoolError, PoolErrorKind, UpstreamBodyError};
use crate::{
    http::{
        body::Body,
        h2::{Error, FloodLimits, HeadLimits, Options, Reason, Receive, Send, Tunnel},
        headers::ResponseHeaders,
        stream::Holder,
    },
    upstream::HttpProtocolOptions,
};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use std::{
    pin::Pin,
    rc::Weak,
    task::{Context, Poll, ready},
};

/// A request and its response on a shared connection.
pub(super) struct Exchange {
    receive: Receive,
    send: Send,
    body: Option<Body>,
    /// A piece that waits for room.
    piece: Bytes,
}

/// What our end of a connection is like.
pub(super) fn options(options: &HttpProtocolOptions) -> Options {
    Options {
        // Nothing is pushed.
        max_concurrent_streams: 0,
        stream_window: options.initial_stream_window,
        connection_window: options.initial_connection_window,
        head: HeadLimits {
            bytes: super::http::MAX_RESPONSE_HEAD,
            count: options.max_headers_count as usize,
        },
        allows_connect_protocol: false,
        is_tolerant: true,
        flood: FloodLimits::USUAL,
    }
}

impl Exchange {
    /// The exchange of a stream that has begun with a request's head.
    pub(super) fn new(receive: Receive, send: Send, body: Body) -> Self {
        Exchange {
            receive,
            send,
            body: (!body.is_end_stream()).then_some(body),
            piece: Bytes::new(),
        }
    }

    /// Who holds what has come of the response.
    pub(super) fn holder(&self) -> Weak<dyn Holder> {
        self.receive.holder()
    }

    /// Sends what it can of the request; an error only when its body broke off.
    fn poll_request(&mut self, context: &mut Context<'_>) -> Result<(), PoolError> {
        while let Some(body) = &mut self.body {
            if !self.piece.is_empty() {
                let room = match self.send.poll_room(context) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(room)) => room.min(self.piece.len()),
                    // What was wrong comes with the response.
                    Poll::Ready(Err(_)) => {
                        self.body = None;
                        return Ok(());
                    }
                };
                let is_last = room == self.piece.len() && body.is_end_stream();
                let sent = self.send.send_piece(&self.piece.split_to(room), is_last);
                if sent.is_err() || is_last {
                    self.body = None;
                }
                continue;
            }
            let sent = match Pin::new(&mut *body).poll_frame(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Err(error))) => {
                    self.send.reset(Reason::CANCEL);
                    return Err(PoolError::of_body(&error));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        self.piece = data;
                        continue;
                    }
                    Ok(_) if !body.is_end_stream() => continue,
                    Ok(_) => self.send.send_data(&[], true),
                    Err(frame) => self
                        .send
                        .send_trailers(&frame.into_trailers().unwrap_or_default()),
                },
                Poll::Ready(None) => self.send.send_data(&[], true),
            };
            if let Err(error) = sent {
                // A stream that is gone says so with its response, too.
                tracing::trace!(target: "pool", %error, "request not sent to its end");
            }
            self.body = None;
        }
        Ok(())
    }

    /// The response's head, sending the request meanwhile.
    pub(super) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<ResponseHeaders, PoolError>> {
        self.poll_request(context)?;
        self.receive.poll_head(context).map_err(classify)
    }

    /// The next piece of the response's body, sending the request meanwhile.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        if self.body.is_some() && self.poll_request(context).is_err() {
            return Poll::Ready(Some(Err(UpstreamBodyError::Closed)));
        }
        let frame = ready!(self.receive.poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(broken)))
    }

    /// The stream's bytes, when the response accepts a CONNECT.
    pub(super) fn into_tunnel(self) -> Tunnel {
        Tunnel::new(self.receive, self.send)
    }

    /// All of the response was read.
    pub(super) fn is_done(&self) -> bool {
        self.receive.is_end_stream()
    }
}

fn broken(error: Error) -> UpstreamBodyError {
    match error {
        Error::Reset(_) => UpstreamBodyError::Reset,
        Error::Protocol(_) => UpstreamBodyError::Protocol,
        Error::GivenUp(_) | Error::GoAway(_) | Error::Closed => UpstreamBodyError::Closed,
    }
}

/// What a failed exchange means to the router.
pub(super) fn classify(error: Error) -> PoolError {
    let kind = match error {
        Error::Reset(Reason::REFUSED_STREAM) => PoolErrorKind::RefusedStream,
        Error::Reset(_) | Error::GivenUp(_) => PoolErrorKind::Reset,
        Error::Protocol(_) => PoolErrorKind::Protocol,
        Error::GoAway(_) | Error::Closed => PoolErrorKind::ConnectionTermination,
    };
    PoolError::new(kind, error.to_string())
}
