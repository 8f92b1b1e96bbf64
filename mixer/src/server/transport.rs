//! gRPC over HTTP/2 for calls with one message each way. A call is answered where its frames were read, on the connection's
//! own task: no task, no channel and no wake-up for each, and one write for the answers to all that came together. Only a
//! call that has to wait for somebody is set aside, and does not hold up the others. (`PERFORMANCE.md` says what that is worth.)

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use h2::server::SendResponse;
use h2::{Ping, PingPong, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use proto_component::drain::Drain;
use proto_component::grpc::{Call, GrpcMetrics, ServerOptions};
use proto_component::listen::{Connection, Incoming};
use proto_component::task;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tonic::{Code, Status};

use super::{Method, Service};

/// For the connection's first frames.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The longest a call may take, whatever the caller says.
const PATIENCE: Duration = Duration::from_secs(60);
/// Calls that are answered before their answers are written.
const BATCH: usize = 64;
/// A request's headers are a path and what proxies add.
const LARGEST_HEADERS: u32 = 16 << 10;
/// Reports are large: few frames, and no copy to put them together.
const LARGEST_FRAME: u32 = 256 << 10;
/// In front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

type Requests = Vec<(Request<RecvStream>, SendResponse<Bytes>)>;

/// Serves calls.
pub(crate) struct Transport {
    pub(crate) service: Service,
    pub(crate) options: ServerOptions,
    pub(crate) max_message: usize,
    pub(crate) metrics: GrpcMetrics,
}

/// A peer that does not answer pings is gone.
struct Keepalive {
    pings: PingPong,
    interval: Interval,
    is_waiting: bool,
}

/// A message with its prefix.
pub(super) fn frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    // Numbers are written byte by byte, which is quicker in a vector.
    let mut buffer = Vec::with_capacity(PREFIX + length);
    buffer.put_u8(0);
    // An answer is some hundred bytes long.
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut buffer);
    buffer.into()
}

impl Transport {
    /// Serves until the drain begins, then lets calls in flight finish until its deadline.
    pub(crate) async fn serve(self: Arc<Self>, mut incoming: Incoming, drain: Drain) {
        // Closed when the last connection has gone.
        let (alive, mut gone) = mpsc::channel::<()>(1);
        // The stream ends when the drain begins.
        while let Some(Ok(connection)) = incoming.next().await {
            let (transport, drain, alive) = (self.clone(), drain.clone(), alive.clone());
            task::spawn("grpc-connection", async move {
                let _alive = alive;
                transport.serve_connection(connection, &drain).await;
            });
        }
        drop(alive);
        tokio::select! {
            _ = gone.recv() => {}
            () = drain.expired() => {}
        }
    }

    async fn serve_connection(self: Arc<Self>, connection: Connection, drain: &Drain) {
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(self.options.max_concurrent_streams)
            .initial_window_size(self.options.stream_window)
            .initial_connection_window_size(self.options.connection_window)
            .max_header_list_size(LARGEST_HEADERS)
            .max_frame_size(LARGEST_FRAME);
        let handshake = builder.handshake::<_, Bytes>(connection);
        let mut connection = match timeout(HANDSHAKE, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!(target: "api", %error, "no HTTP/2 connection came about");
                return;
            }
            Err(_) => return,
        };
        let Some(mut keepalive) = Keepalive::new(connection.ping_pong(), &self.options) else {
            return;
        };
        let mut draining = pin!(drain.signaled());
        let mut is_draining = false;
        let mut waiting: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut requests = Requests::with_capacity(BATCH);
        loop {
            tokio::select! {
                // New calls come last: a peer that always has more of them would keep everything else from its turn.
                biased;
                () = &mut draining, if !is_draining => {
                    is_draining = true;
                    connection.graceful_shutdown();
                }
                () = poll_fn(|cx| keepalive.poll_lost(cx)) => {
                    tracing::debug!(target: "api", "a connection is given up: no answer to a ping");
                    return;
                }
                Some(()) = waiting.next(), if !waiting.is_empty() => {}
                is_open = poll_fn(|cx| take(&mut connection, &mut requests, cx)) => {
                    for (request, respond) in requests.drain(..) {
                        let mut call: BoxFuture<'static, ()> =
                            Box::pin(self.clone().answer(request, respond));
                        // Polled here once: most calls wait for nobody.
                        if poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await.is_pending() {
                            waiting.push(call);
                        }
                    }
                    if !is_open {
                        return;
                    }
                    // Others are waiting, too.
                    tokio::task::consume_budget().await;
                }
            }
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (head, body) = request.into_parts();
        if !is_grpc(&head.headers) {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            // Nobody may be there any more.
            let _ = respond.send_response(response, true);
            return;
        }
        let path = head.uri.path();
        let Some(method) = Method::of(path) else {
            // A name of the caller's choice must not become a label.
            let mut call = self.metrics.begin("");
            let unknown = Status::unimplemented(format!("there is no method {path}"));
            conclude(respond, Err(unknown), &mut call);
            return;
        };
        let mut call = self.metrics.begin(method.path());
        let outcome = tokio::select! {
            biased;
            outcome = self.exchange(method, &head.headers, body) => outcome,
            // The caller does not want the answer any more.
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        };
        conclude(respond, outcome, &mut call);
    }

    async fn exchange(
        &self,
        method: Method,
        headers: &HeaderMap,
        body: RecvStream,
    ) -> Result<Bytes, Status> {
        let work = async {
            let message = gather(body, self.max_message).await?;
            self.service.call(method, message).await
        };
        let patience = patience(headers).unwrap_or(PATIENCE).min(PATIENCE);
        timeout(patience, work)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the call's time is up")))
    }
}

/// Takes all calls that have come; false when the connection is done.
fn take(
    connection: &mut h2::server::Connection<Connection, Bytes>,
    requests: &mut Requests,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    while requests.len() < BATCH {
        match pin!(connection.accept()).poll(cx) {
            Poll::Ready(Some(Ok(request))) => requests.push(request),
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(target: "api", %error, "a connection failed");
                return Poll::Ready(false);
            }
            Poll::Ready(None) => return Poll::Ready(false),
            Poll::Pending if requests.is_empty() => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(true)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The caller's deadline: up to eight digits and a unit.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The one message of a call.
async fn gather(mut body: RecvStream, max_message: usize) -> Result<Bytes, Status> {
    let lost = |error: h2::Error| Status::cancelled(error.to_string());
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(lost)?;
        // The stream may be gone by now.
        let _ = body.flow_control().release_capacity(part.len());
        if whole.len() + parts.len() + part.len() > max_message.saturating_add(PREFIX) {
            return Err(Status::out_of_range(format!(
                "the message is too large: more than {max_message} bytes"
            )));
        }
        // Mostly there is one part, which is taken as it is.
        if whole.is_empty() && parts.is_empty() {
            whole = part;
        } else {
            if parts.is_empty() {
                parts.extend_from_slice(&std::mem::take(&mut whole));
            }
            parts.extend_from_slice(&part);
        }
    }
    if !parts.is_empty() {
        whole = parts.freeze();
    }
    let Some(([flag, length @ ..], _)) = whole.split_first_chunk::<PREFIX>() else {
        return Err(Status::internal("there is no message in the call"));
    };
    if *flag != 0 {
        let problem = "compressed messages are not supported";
        return Err(Status::unimplemented(problem));
    }
    if u32::from_be_bytes(*length) as usize != whole.len() - PREFIX {
        return Err(Status::internal(
            "there is not one whole message in the call",
        ));
    }
    Ok(whole.slice(PREFIX..))
}

fn conclude(respond: SendResponse<Bytes>, outcome: Result<Bytes, Status>, call: &mut Call) {
    if let Err(error) = send(respond, outcome, call) {
        tracing::debug!(target: "api", %error, "an answer could not be sent");
    }
}

fn send(
    mut respond: SendResponse<Bytes>,
    outcome: Result<Bytes, Status>,
    call: &mut Call,
) -> Result<(), h2::Error> {
    let message = match outcome {
        Ok(message) => message,
        Err(status) => {
            call.end(status.code());
            respond.send_response(status.into_http(), true)?;
            return Ok(());
        }
    };
    let mut response = Response::new(());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(message, false)?;
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    call.end(Code::Ok);
    Ok(())
}

impl Keepalive {
    fn new(pings: Option<PingPong>, options: &ServerOptions) -> Option<Self> {
        // A ping has until the next one to be answered.
        let period = options.keepalive_interval;
        let mut interval = interval_at(Instant::now() + period, period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(Self {
            pings: pings?,
            interval,
            is_waiting: false,
        })
    }

    /// Ready when the peer is lost.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.interval.poll_tick(cx).is_ready() {
            let is_answered = !self.is_waiting || self.pings.poll_pong(cx).is_ready();
            if !is_answered || self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.is_waiting = true;
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_units() {
        for (text, want) in [
            ("5S", Some(Duration::from_secs(5))),
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5", None),
            ("-5S", None),
            ("5é", None),
        ] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)]);
            assert_eq!(patience(&headers), want, "{text}");
        }
    }
}
