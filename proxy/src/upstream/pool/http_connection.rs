//! A connection lent for one request.

use super::{
    PoolError, UpstreamBody,
    body::Exchange,
    http1::{self, Http1Request},
    http2,
    lease::{Lease, Sender},
};
use crate::http::{
    body::Body,
    h1::HeadLimits,
    h2,
    headers::{RequestHeaders, ResponseHeaders, Scheme},
};
use crate::stream_info::{ByteMeter, UpstreamConnection};
use crate::upstream::Http1Options;
use ::http::{
    HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts,
    uri::PathAndQuery,
};
use http_body::Body as _;
use std::{future::poll_fn, rc::Rc};

/// A connection for one request.
pub(crate) struct HttpConnection {
    /// What stays the same about it.
    pub(crate) facts: Rc<UpstreamConnection>,
    /// What is spoken.
    pub(crate) protocol: Version,
    pub(super) sender: Sender,
    pub(super) lease: Lease,
    pub(super) limits: HeadLimits,
    pub(super) http1: Http1Options,
}

/// A request's head as the connection's protocol has it.
pub(crate) enum UpstreamRequest {
    /// HTTP/1.1: to be written.
    Http1(Http1Request),
    /// HTTP/2: a stream that begins with it.
    Http2 {
        receive: h2::Receive,
        send: h2::Send,
        /// A CONNECT, whose stream is a tunnel once it is accepted.
        is_connect: bool,
    },
}

impl UpstreamRequest {
    /// What counts its bytes, and those of its response.
    pub(crate) fn meter(&self) -> Rc<dyn ByteMeter> {
        match self {
            UpstreamRequest::Http1(request) => request.meter(),
            UpstreamRequest::Http2 { send, .. } => send.meter(),
        }
    }
}

impl HttpConnection {
    /// Begins a request; `is_bodyless` when its head is all.
    pub(crate) fn request(
        &mut self,
        headers: &RequestHeaders,
        is_bodyless: bool,
    ) -> Result<UpstreamRequest, PoolError> {
        let requests = match &mut self.sender {
            Sender::Http2(requests) => requests,
            Sender::Http1(connection) => {
                return Ok(UpstreamRequest::Http1(Http1Request::new(
                    headers, connection,
                )));
            }
        };
        let connect = headers.upgrade.is_some().then(|| extended_connect(headers));
        let headers = connect.as_ref().unwrap_or(headers);
        // The stream of a CONNECT stays open for what is tunnelled.
        let is_connect = headers.method == Method::CONNECT;
        let sent = requests.send(headers, is_bodyless && !is_connect);
        let (receive, send) = sent.map_err(http2::classify)?;
        Ok(UpstreamRequest::Http2 {
            receive,
            send,
            is_connect,
        })
    }

    /// Sends a request that is ours alone, and waits for the response's head.
    pub(crate) async fn send(
        mut self,
        request: Request<Body>,
    ) -> Result<Response<UpstreamBody>, PoolError> {
        let (parts, body) = request.into_parts();
        let request = self.request(&headers_of(parts), body.is_end_stream())?;
        let (head, body) = self.exchange(request, body).await?;
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.map;
        Ok(response)
    }

    /// Sends the request and waits for the response's head.
    pub(crate) async fn exchange(
        self,
        request: UpstreamRequest,
        body: Body,
    ) -> Result<(ResponseHeaders, UpstreamBody), PoolError> {
        match (self.sender, request) {
            (Sender::Http1(connection), UpstreamRequest::Http1(request)) => {
                let is_connect = request.is_connect();
                let exchange = connection.send(request, body, self.http1);
                receive_http1(exchange, is_connect, self.lease, self.limits).await
            }
            (
                Sender::Http2(_),
                UpstreamRequest::Http2 {
                    receive,
                    send,
                    is_connect,
                },
            ) => {
                let mut exchange = http2::Exchange::new(receive, send, body);
                let head = poll_fn(|context| exchange.poll_head(context)).await?;
                let exchange = Exchange::Http2(Box::new(exchange));
                let is_tunnel = is_connect && head.status.is_success();
                Ok((head, UpstreamBody::new(exchange, self.lease, is_tunnel)))
            }
            _ => Err(PoolError::new(
                super::PoolErrorKind::LocalReset,
                "the request is of another protocol",
            )),
        }
    }
}

async fn receive_http1(
    exchange: http1::Exchange,
    is_connect: bool,
    lease: Lease,
    limits: HeadLimits,
) -> Result<(ResponseHeaders, UpstreamBody), PoolError> {
    let mut exchange = Box::new(exchange);
    let head = poll_fn(|context| exchange.poll_head(limits, context)).await?;
    let status = head.headers.status;
    let is_tunnel = status == StatusCode::SWITCHING_PROTOCOLS || is_connect && status.is_success();
    let body = UpstreamBody::new(Exchange::Http1(exchange), lease, is_tunnel);
    Ok((head.headers, body))
}

/// An upgrade as the CONNECT that stands for it (RFC 8441).
fn extended_connect(headers: &RequestHeaders) -> RequestHeaders {
    let mut headers = headers.clone();
    headers.method = Method::CONNECT;
    for name in [header::CONNECTION, header::UPGRADE, header::CONTENT_LENGTH] {
        headers.map.remove(name);
    }
    headers
}

/// A head as our own type; the host comes from its header, else from the target.
fn headers_of(parts: Parts) -> RequestHeaders {
    let mut map = parts.headers;
    let uri = parts.uri.into_parts();
    let host = map.remove(header::HOST).or_else(|| {
        uri.authority
            .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
    });
    RequestHeaders {
        method: parts.method,
        scheme: Scheme::Http,
        authority: host.unwrap_or(HeaderValue::from_static("")),
        path: uri.path_and_query.unwrap_or(PathAndQuery::from_static("/")),
        upgrade: None,
        map,
    }
}
