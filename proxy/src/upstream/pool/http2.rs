//! An HTTP/2 exchange on a shared connection. The connection itself is one task; requests and responses are driven by whoever
//! waits for them.

use super::{PoolError, PoolErrorKind, UpstreamBodyError};
use crate::{
    http::{body::Body, codec::Http2Tunnel},
    transport::{Cork, Corked, UpstreamStream},
    upstream::HttpProtocolOptions,
};
use ::http::{Method, Request, Response};
use bytes::Bytes;
use h2::{
    Ping, Reason, RecvStream, SendStream,
    client::{self, ResponseFuture, SendRequest},
};
use http_body::{Body as HttpBody, Frame};
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

/// A request and its response on a shared connection.
pub(super) struct Exchange {
    response: Option<ResponseFuture>,
    receive: Option<RecvStream>,
    send: SendStream<Bytes>,
    body: Option<Body>,
    /// A piece that waits for the stream's window.
    piece: Bytes,
}

/// A connection, to be run by a task of its own.
pub(super) struct Connection {
    http2: client::Connection<Corked<UpstreamStream>, Bytes>,
    cork: Cork<UpstreamStream>,
}

/// Sets a connection up.
pub(super) async fn handshake(
    stream: UpstreamStream,
    options: &HttpProtocolOptions,
) -> Result<(SendRequest<Bytes>, Connection), h2::Error> {
    let (stream, cork) = Corked::new(stream);
    let (sender, http2) = client::Builder::new()
        .enable_push(false)
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .handshake(stream)
        .await?;
    Ok((sender, Connection { http2, cork }))
}

/// Runs a connection to its end, pinging it as configured.
pub(super) async fn run(
    connection: Connection,
    keepalive: Option<(Duration, Duration)>,
) -> Result<(), h2::Error> {
    let Connection { mut http2, cork } = connection;
    let pings = keepalive.and_then(|times| Some((times, http2.ping_pong()?)));
    let connection =
        poll_fn(|context| cork.poll(context, |context| Pin::new(&mut http2).poll(context)));
    let Some(((interval, patience), mut pings)) = pings else {
        return connection.await;
    };
    let watch = async {
        loop {
            tokio::time::sleep(interval).await;
            let answer = tokio::time::timeout(patience, pings.ping(Ping::opaque())).await;
            if !matches!(answer, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        ended = connection => ended,
        () = watch => Err(Reason::NO_ERROR.into()),
    }
}

impl Exchange {
    /// Begins a request.
    pub(super) async fn send(
        sender: SendRequest<Bytes>,
        request: Request<()>,
        body: Body,
    ) -> Result<Self, PoolError> {
        let mut sender = sender.ready().await.map_err(|error| classify(&error))?;
        let is_empty = body.is_end_stream();
        // The stream of a CONNECT stays open for what is tunnelled.
        let is_tunnel = request.method() == Method::CONNECT;
        let sent = sender.send_request(request, is_empty && !is_tunnel);
        let (response, send) = sent.map_err(|error| classify(&error))?;
        Ok(Exchange {
            response: Some(response),
            receive: None,
            send,
            body: (!is_empty).then_some(body),
            piece: Bytes::new(),
        })
    }

    /// Sends what it can of the request; an error only when its body broke off.
    fn poll_request(&mut self, context: &mut Context<'_>) -> Result<(), PoolError> {
        while let Some(body) = &mut self.body {
            if !self.piece.is_empty() {
                match self.send.poll_capacity(context) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Some(Ok(_))) => {}
                    // What was wrong comes with the response.
                    Poll::Ready(Some(Err(_)) | None) => {
                        self.body = None;
                        return Ok(());
                    }
                }
                let room = self.send.capacity().min(self.piece.len());
                if room == 0 {
                    continue;
                }
                let piece = self.piece.split_to(room);
                let is_last = self.piece.is_empty() && body.is_end_stream();
                if self.send.send_data(piece, is_last).is_err() || is_last {
                    self.body = None;
                }
                continue;
            }
            let frame = match Pin::new(body).poll_frame(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Err(error))) => {
                    self.send.send_reset(Reason::CANCEL);
                    return Err(PoolError::of_body(&error));
                }
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(None) => {
                    // A stream that is gone says so with its response.
                    let _ = self.send.send_data(Bytes::new(), true);
                    self.body = None;
                    return Ok(());
                }
            };
            match frame.into_data() {
                Ok(data) => self.take(data),
                Err(frame) => {
                    let _ = self
                        .send
                        .send_trailers(frame.into_trailers().unwrap_or_default());
                    self.body = None;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, mut data: Bytes) {
        let is_last = self.body.as_ref().is_none_or(HttpBody::is_end_stream);
        if data.is_empty() {
            if is_last {
                let _ = self.send.send_data(data, true);
                self.body = None;
            }
            return;
        }
        self.send.reserve_capacity(data.len());
        let room = self.send.capacity().min(data.len());
        if room > 0 {
            let piece = data.split_to(room);
            let is_last = is_last && data.is_empty();
            if self.send.send_data(piece, is_last).is_err() || is_last {
                self.body = None;
            }
        }
        self.piece = data;
    }

    /// The response's head, sending the request meanwhile.
    pub(super) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, PoolError>> {
        self.poll_request(context)?;
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(PoolError::new(PoolErrorKind::LocalReset, "")));
        };
        let response =
            ready!(Pin::new(response).poll(context)).map_err(|error| classify(&error))?;
        self.response = None;
        let (parts, receive) = response.into_parts();
        self.receive = Some(receive);
        Poll::Ready(Ok(Response::from_parts(parts, ())))
    }

    /// The next piece of the response's body, sending the request meanwhile.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        if self.body.is_some() && self.poll_request(context).is_err() {
            return Poll::Ready(Some(Err(UpstreamBodyError::Closed)));
        }
        let Some(receive) = &mut self.receive else {
            return Poll::Ready(None);
        };
        match ready!(receive.poll_data(context)) {
            Some(Ok(data)) => {
                // Whoever asks for the next piece has done with this one.
                let _ = receive.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(broken(&error)))),
            None => Poll::Ready(match ready!(receive.poll_trailers(context)) {
                Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Ok(None) => None,
                Err(error) => Some(Err(broken(&error))),
            }),
        }
    }

    /// The stream's bytes, when the response accepts a CONNECT.
    pub(super) fn into_tunnel(self) -> Option<Http2Tunnel> {
        Some(Http2Tunnel::new(self.receive?, self.send))
    }

    /// All of the response was read.
    pub(super) fn is_done(&self) -> bool {
        self.receive.as_ref().is_some_and(RecvStream::is_end_stream)
    }
}

fn broken(error: &h2::Error) -> UpstreamBodyError {
    if error.is_reset() && error.is_remote() {
        UpstreamBodyError::Reset
    } else if error.is_library() {
        UpstreamBodyError::Protocol
    } else {
        UpstreamBodyError::Closed
    }
}

/// What a failed exchange means to the router.
pub(super) fn classify(error: &h2::Error) -> PoolError {
    let kind = match error.reason() {
        Some(Reason::REFUSED_STREAM) => PoolErrorKind::RefusedStream,
        Some(_) if error.is_go_away() || error.is_io() => PoolErrorKind::ConnectionTermination,
        Some(_) if error.is_library() => PoolErrorKind::Protocol,
        Some(_) => PoolErrorKind::Reset,
        None => PoolErrorKind::ConnectionTermination,
    };
    PoolError::new(kind, error.to_string())
}
