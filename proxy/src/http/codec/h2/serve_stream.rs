//! One stream: head → engine → response head, body, trailers, within the client's windows.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Version};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::http::body::DownstreamBody;
use crate::http::headers::{RequestHeaders, Scheme};
use crate::http::stream::{self, DownstreamConnection, ResponseBody};
use crate::http::upgrade::DownstreamTunnel;

use super::tunnel::Tunnel;

/// The bytes of a CONNECT's stream on their way to whoever tunnels them.
type TunnelSlot = (oneshot::Sender<DownstreamTunnel>, RecvStream);

/// A client that breaks off an unanswered stream before that has not really asked (Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`, which compares whole seconds).
const PREMATURE: Duration = Duration::from_secs(2);

/// Serves a stream to its end.
pub(super) async fn serve(
    connection: Rc<DownstreamConnection>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let is_tls = connection.info.tls.is_some();
    let (parts, receive) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let headers = request_headers(parts, is_tls);
    let mut slot: Option<TunnelSlot> = None;
    let mut upgrade = None;
    let body = if headers.method == Method::CONNECT {
        let (sender, receiver) = oneshot::channel();
        slot = Some((sender, receive));
        upgrade = Some(receiver);
        DownstreamBody::Empty
    } else if receive.is_end_stream() {
        DownstreamBody::Empty
    } else {
        DownstreamBody::Http2(receive)
    };
    let request = stream::Request {
        headers,
        version: Version::HTTP_2,
        body,
        upgrade,
    };
    let start = Instant::now();
    let is_premature = {
        let mut serving = pin!(stream::serve(connection.clone(), request));
        let answer = poll_fn(|context| {
            if let Poll::Ready(body) = serving.as_mut().poll(context) {
                return Poll::Ready(Some(body));
            }
            respond.poll_reset(context).map(|_| None)
        })
        .await;
        match answer {
            Some(body) => {
                send(body, &mut respond, is_head, slot).await;
                false
            }
            None => start.elapsed() < PREMATURE,
        }
    };
    connection.stream_ended(is_premature);
}

/// Sends the response; `false` when the client broke it off.
async fn send(
    mut body: ResponseBody,
    respond: &mut SendResponse<Bytes>,
    is_head: bool,
    slot: Option<TunnelSlot>,
) -> bool {
    let (response, is_success) = body.with_head(|head, _| {
        let mut response = http::Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.map.clone();
        (response, head.status.is_success())
    });
    if let Some((sender, receive)) = slot.filter(|_| is_success && body.is_end_stream()) {
        let Ok(stream) = respond.send_response(response, false) else {
            return false;
        };
        // Nobody waits when the upstream was lost meanwhile: the stream is reset with the tunnel.
        let _ = sender.send(DownstreamTunnel::Http2(Tunnel::new(receive, stream)));
        return true;
    }
    let is_empty = body.is_end_stream() || is_head;
    let Ok(mut stream) = respond.send_response(response, is_empty) else {
        return false;
    };
    if is_empty {
        // A HEAD's body, if any comes, is read to its end, so that its connection can be used again.
        while poll_fn(|context| Pin::new(&mut body).poll_frame(context))
            .await
            .is_some_and(|frame| frame.is_ok())
        {}
        return true;
    }
    send_body(&mut body, &mut stream).await
}

async fn send_body(body: &mut ResponseBody, stream: &mut SendStream<Bytes>) -> bool {
    loop {
        // A reset is seen while there is nothing to send too.
        let frame = poll_fn(|context| match Pin::new(&mut *body).poll_frame(context) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => stream.poll_reset(context).map(|_| Err(())),
        })
        .await;
        let frame = match frame {
            Err(()) => return false,
            Ok(None) => return stream.send_data(Bytes::new(), true).is_ok(),
            Ok(Some(Err(_))) => {
                // A reset takes back what waits to be written: the connection's task writes the head and the data first.
                tokio::task::yield_now().await;
                stream.send_reset(Reason::INTERNAL_ERROR);
                return true;
            }
            Ok(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                let is_last = body.is_end_stream();
                let sent = {
                    let mut sending = pin!(send_data(stream, data, is_last));
                    poll_fn(|context| match sending.as_mut().poll(context) {
                        Poll::Ready(is_sent) => Poll::Ready(Some(is_sent)),
                        Poll::Pending => body.poll_stalled(context).map(|()| None),
                    })
                    .await
                };
                match sent {
                    Some(true) if !is_last => {}
                    Some(is_sent) => return is_sent,
                    None => {
                        stream.send_reset(Reason::INTERNAL_ERROR);
                        return true;
                    }
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return stream.send_trailers(trailers).is_ok();
            }
        }
    }
}

/// Sends a piece as the windows open; `false` when the client broke off.
pub(super) async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    is_last: bool,
) -> bool {
    if data.is_empty() {
        return !is_last || stream.send_data(data, true).is_ok();
    }
    stream.reserve_capacity(data.len());
    while !data.is_empty() {
        let room = match stream.capacity() {
            0 => match poll_fn(|context| poll_room(stream, context)).await {
                Some(room) => room,
                None => return false,
            },
            room => room,
        };
        let piece = data.split_to(room.min(data.len()));
        if stream.send_data(piece, is_last && data.is_empty()).is_err() {
            return false;
        }
    }
    true
}

fn poll_room(stream: &mut SendStream<Bytes>, context: &mut Context<'_>) -> Poll<Option<usize>> {
    if stream.poll_reset(context).is_ready() {
        return Poll::Ready(None);
    }
    loop {
        match stream.poll_capacity(context) {
            Poll::Ready(Some(Ok(0))) => {}
            Poll::Ready(Some(Ok(room))) => return Poll::Ready(Some(room)),
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// The head as filters see it.
fn request_headers(parts: http::request::Parts, is_tls: bool) -> RequestHeaders {
    let mut map = parts.headers;
    let uri = parts.uri.into_parts();
    let host = map.remove(header::HOST);
    let authority = match uri.authority {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => host,
    };
    join_cookies(&mut map);
    let upgrade = parts
        .extensions
        .get::<h2::ext::Protocol>()
        .and_then(|protocol| HeaderValue::from_str(protocol.as_str()).ok());
    RequestHeaders {
        method: parts.method,
        scheme: if is_tls { Scheme::Https } else { Scheme::Http },
        authority: authority.unwrap_or(HeaderValue::from_static("")),
        path: uri
            .path_and_query
            .unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")),
        upgrade,
        map,
    }
}

/// HTTP/2 may send a cookie in pieces.
fn join_cookies(map: &mut HeaderMap) {
    let mut cookies = map.get_all(header::COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = map
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        map.insert(header::COOKIE, joined);
    }
}
