//! Codecs: how requests and responses look on a downstream connection. Each serves a connection to its end and gives every
//! request to the engine (`stream::open`); HTTP/1 and HTTP/2 differ in nothing else.

mod detect;
mod h1;
mod h2;

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::CodecType;
use proto_component::drain::Drain;
use tokio::time::Instant;

use crate::http::timer::Timer;
use crate::overload::{Action, TimerType};
use crate::transport::DownstreamStream;

use super::stream::DownstreamConnection;

pub(crate) use h1::{RequestBody, RequestBodyError};

/// Serves a connection with the codec that is configured, negotiated or recognised by the first bytes.
pub(crate) async fn serve(
    mut stream: DownstreamStream,
    connection: Rc<DownstreamConnection>,
    drain: Drain,
) {
    let stats = connection.manager.stats.clone();
    let alpn = connection
        .info
        .tls
        .as_ref()
        .and_then(|tls| tls.alpn.as_deref());
    let is_http2 = match (connection.manager.codec, alpn) {
        (CodecType::Http1, _) => Some(false),
        (CodecType::Http2 | CodecType::Http3, _) | (CodecType::Auto, Some("h2")) => Some(true),
        (CodecType::Auto, Some("http/1.1" | "http/1.0")) => Some(false),
        (CodecType::Auto, _) => None,
    };
    let mut ahead = BytesMut::new();
    let has_shed_point = connection.worker.server.overload.has(Action::ShedCodec);
    let is_http2 = match is_http2 {
        Some(is_http2) if !has_shed_point => is_http2,
        known => {
            let detection = async {
                if detect::read(&mut stream, &mut ahead).await? == 0 {
                    return Ok(None);
                }
                if connection.sheds(Action::ShedCodec) {
                    stats.downstream_rq_overload_close.inc();
                    return Ok(None);
                }
                match known {
                    Some(_) => Ok(known),
                    None => detect::is_http2(&mut stream, &mut ahead).await,
                }
            };
            match greeted(detection, &connection, &drain).await {
                Some(Ok(Some(detected))) => detected,
                Some(Ok(None) | Err(_)) | None => return,
            }
        }
    };
    if is_http2 {
        stats.downstream_cx_http2_total.inc();
        stats.downstream_cx_http2_active.inc();
        h2::serve(stream, &ahead, connection, drain).await;
        stats.downstream_cx_http2_active.dec();
    } else {
        stats.downstream_cx_http1_total.inc();
        stats.downstream_cx_http1_active.inc();
        h1::serve(stream, ahead, connection, drain).await;
        stats.downstream_cx_http1_active.dec();
    }
}

/// What a connection is still given for its next request when the process ends, from when it was made or had its last response:
/// the client may have sent it already, and then learns by its response that no other may follow.
const FRESH: Duration = Duration::from_secs(1);

/// Waits for what a client says first; `None` when the connection, which has no request yet, is to end before.
async fn greeted<T>(
    greeting: impl Future<Output = T>,
    connection: &DownstreamConnection,
    drain: &Drain,
) -> Option<T> {
    let ending = tokio::select! {
        biased;
        greeting = greeting => return Some(greeting),
        () = aged(connection) => Ending::MaxDuration,
        () = idle(connection) => Ending::Idle,
        () = without_request(connection, drain) => return None,
    };
    connection.info.end_because(match ending {
        Ending::MaxDuration => "duration_timeout",
        Ending::Idle | Ending::Drain => "on_idle_timeout",
    });
    count_ending(connection, ending);
    None
}

/// Resolves when a connection without a request is to end.
async fn without_request(connection: &DownstreamConnection, drain: &Drain) {
    drain.signaled().await;
    let process = &connection.worker.server.drain;
    let ends = async {
        process.signaled().await;
        tokio::time::sleep(FRESH).await;
    };
    tokio::select! {
        () = ends => {}
        () = drain.expired() => {}
    }
}

/// Why a connection must find its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Told to drain.
    Drain,
    /// Nothing happened for too long.
    Idle,
    /// It has lived long enough.
    MaxDuration,
}

/// Resolves when the connection should end, by drain, idleness or age.
async fn ending(connection: &DownstreamConnection, drain: &Drain) -> Ending {
    tokio::select! {
        () = drain.signaled() => Ending::Drain,
        () = aged(connection) => Ending::MaxDuration,
        () = idle(connection) => Ending::Idle,
    }
}

/// Resolves when the connection has lived long enough.
async fn aged(connection: &DownstreamConnection) {
    let Some(limit) = connection.manager.timeouts.max_connection else {
        return std::future::pending().await;
    };
    let mut timer = Timer::own(&connection.worker.timers);
    loop {
        let at = connection.info.began + timer.limit(TimerType::HttpDownstreamConnectionMax, limit);
        if at <= Instant::now() {
            return;
        }
        timer.wait(Some(at)).await;
    }
}

/// A connection that has a stream is looked at so often at most.
const BUSY: Duration = Duration::from_millis(50);

/// Resolves when the connection has had no stream for too long.
async fn idle(connection: &DownstreamConnection) {
    let Some(limit) = connection.manager.timeouts.idle else {
        return std::future::pending().await;
    };
    let mut timer = Timer::own(&connection.worker.timers);
    loop {
        let limit = timer.limit(TimerType::HttpDownstreamConnectionIdle, limit);
        let is_idle = connection.active.get() == 0;
        let at = if is_idle {
            connection.idle_since.get() + limit
        } else {
            // A limit that pressure has made short is no reason to look all the time.
            Instant::now() + limit.max(BUSY)
        };
        if is_idle && at <= Instant::now() {
            return;
        }
        timer.wait(Some(at)).await;
    }
}

/// Why a connection was closed that nothing more is expected of, in Envoy's words.
const DRAINED: &str = "deferred_close_on_drained_connection";
/// Why one was closed whose client did not close it in time, having been told all.
const DELAYED: &str = "triggered_delayed_close_timeout";
/// Why one was closed that is not understood; the parser's own words would follow.
const NOT_UNDERSTOOD: &str = "codec_error";

/// Counts why a connection ends.
fn count_ending(connection: &DownstreamConnection, ending: Ending) {
    let stats = &connection.manager.stats;
    connection.info.end_because(DRAINED);
    match ending {
        Ending::Drain => stats.downstream_cx_drain_close.inc(),
        Ending::Idle => stats.downstream_cx_idle_timeout.inc(),
        Ending::MaxDuration => stats.downstream_cx_max_duration_reached.inc(),
    }
}
