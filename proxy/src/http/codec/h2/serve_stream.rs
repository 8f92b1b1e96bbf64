//! One stream: head → engine → response head, body, trailers, within the client's windows.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::{Method, Version};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::http::body::DownstreamBody;
use crate::http::conn_manager;
use crate::http::h2::{Error, Incoming, Reason, Receive, Send, Tunnel};
use crate::http::stream::{self, Account, DownstreamConnection, Opened, ResponseBody};
use crate::http::upgrade::{DownstreamTunnel, Handed};

/// The bytes of a CONNECT's stream on their way to whoever tunnels them.
type TunnelSlot = (oneshot::Sender<Handed>, Receive);

/// A client that breaks off an unanswered stream before that has not really asked (Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`, which compares whole seconds).
const PREMATURE: Duration = Duration::from_secs(2);

/// What serves a stream to its end, unless it is refused at once. What a stream begins with is put where it stays before there
/// is a future, which would be moved with it.
pub(super) fn serve(
    connection: Rc<DownstreamConnection>,
    incoming: Incoming,
) -> Option<impl Future<Output = ()>> {
    let Incoming {
        head,
        receive,
        mut send,
    } = incoming;
    if conn_manager::refuses_names(&connection.manager, &head) {
        // As in Envoy there is no answer, as there is with HTTP/1, and it counts as if the client had taken it back.
        let stats = &connection.manager.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_http2_total.inc();
        stats.downstream_rq_rx_reset.inc();
        let server = &connection.worker.server;
        let stats = server.codecs.http2(&server.stats);
        stats.requests_rejected_with_underscores_in_headers.inc();
        send.reset(Reason::INTERNAL_ERROR);
        connection.stream_ended(true);
        return None;
    }
    let is_head = head.method == Method::HEAD;
    let mut slot: Option<TunnelSlot> = None;
    let mut upgrade = None;
    let body = if head.method == Method::CONNECT {
        let (sender, receiver) = oneshot::channel();
        slot = Some((sender, receive));
        upgrade = Some(receiver);
        DownstreamBody::Empty
    } else if receive.is_end_stream() {
        DownstreamBody::Empty
    } else {
        DownstreamBody::Http2(receive)
    };
    let account = connection.worker.accounts.open(|| send.whole());
    let request = stream::Request {
        account: account.clone(),
        headers: head,
        version: Version::HTTP_2,
        meter: send.meter(),
        body,
        upgrade,
    };
    let start = Instant::now();
    let opened = stream::open(&connection, request);
    Some(async move {
        // The engine is done, and its memory free, when the response goes out.
        let is_premature = match until_reset(opened, &mut send, account).await {
            Ok(body) => {
                answer_with(body, send, is_head, slot).await;
                false
            }
            // Not one that the overload manager has reset.
            Err(error) => matches!(error, Error::Reset(_)) && start.elapsed() < PREMATURE,
        };
        connection.stream_ended(is_premature);
    })
}

/// The response, unless the stream is reset before: by the client, or by the overload manager.
async fn until_reset(
    opened: Opened,
    send: &mut Send,
    account: Option<Rc<Account>>,
) -> Result<Box<ResponseBody>, Error> {
    let mut serving = pin!(opened.serve());
    poll_fn(|context| {
        // A stream that the overload manager has reset is not to be taken for one whose client sends nonsense.
        if !account.as_ref().is_some_and(|account| account.is_reset())
            && let Poll::Ready(body) = serving.as_mut().poll(context)
        {
            return Poll::Ready(Ok(body));
        }
        send.poll_reset(context).map(Err)
    })
    .await
}

/// Sends the response, unless the client breaks it off.
async fn answer_with(
    mut body: Box<ResponseBody>,
    mut send: Send,
    is_head: bool,
    slot: Option<TunnelSlot>,
) {
    let is_success = body.with_head(|head, _| head.status.is_success());
    let slot = slot.filter(|_| is_success && body.is_end_stream());
    let is_empty = slot.is_none() && (body.is_end_stream() || is_head);
    if body
        .with_head(|head, _| send.send_head(head, is_empty))
        .is_err()
    {
        return;
    }
    if let Some((sender, receive)) = slot {
        // Nobody waits when the upstream was lost meanwhile: the stream is reset with the tunnel.
        let bytes = DownstreamTunnel::Http2(Tunnel::new(receive, send));
        let _ = sender.send(Handed { bytes, whole: None });
    } else if !is_empty {
        send_body(&mut body, &mut send).await;
    } else if !body.is_end_stream() {
        // A HEAD's body, if any comes, is read to its end, so that its connection can be used again.
        while poll_fn(|context| Pin::new(&mut body).poll_frame(context))
            .await
            .is_some_and(|frame| frame.is_ok())
        {}
    }
}

async fn send_body(body: &mut ResponseBody, send: &mut Send) {
    loop {
        // A reset is seen while there is nothing to send too.
        let frame = poll_fn(|context| match Pin::new(&mut *body).poll_frame(context) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => send.poll_reset(context).map(Err),
        })
        .await;
        let frame = match frame {
            Err(_) => return,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => return send.reset(Reason::INTERNAL_ERROR),
            // A stream that is over meanwhile needs no end, here and below.
            Ok(None) => {
                let _ = send.send_data(&[], true);
                return;
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let is_last = body.is_end_stream();
                if !send_data(send, data, is_last, body).await || is_last {
                    return;
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                let _ = send.send_trailers(&trailers);
                return;
            }
        }
    }
}

/// Sends a piece as the windows open; `false` when the stream is over.
async fn send_data(
    send: &mut Send,
    mut data: bytes::Bytes,
    is_last: bool,
    body: &mut ResponseBody,
) -> bool {
    if data.is_empty() {
        return !is_last || send.send_data(&[], true).is_ok();
    }
    while !data.is_empty() {
        let room = poll_fn(|context| match send.poll_room(context) {
            Poll::Ready(room) => Poll::Ready(room.ok()),
            Poll::Pending => body.poll_stalled(context).map(|()| {
                send.time_out(is_last);
                None
            }),
        });
        let Some(room) = room.await else {
            return false;
        };
        let count = room.min(data.len());
        let piece = data.split_to(count);
        if send.send_piece(&piece, is_last && data.is_empty()).is_err() {
            return false;
        }
    }
    body.taken();
    true
}
