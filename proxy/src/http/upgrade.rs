//! Upgrades: WebSocket and others that HTTP/1 switches to, and their extended CONNECT form in HTTP/2. Allowed only as
//! configured; then both connections are joined byte by byte.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, StatusCode, header};
use proto_component::drain::Drain;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;

use crate::access_log::LogType;
use crate::overload::TimerType;
use crate::router::RouteKind;
use crate::stream_info::ResponseFlag;
use crate::transport::{DownstreamStream, ReadAhead, UpstreamStream};

use super::config::ConnectionManager;
use super::filter::router::UpstreamEnd;
use super::h2::Tunnel as Http2Tunnel;
use super::headers::RequestHeaders;
use super::local_reply::LocalReply;
use super::stream::{Stream, StreamCell};

/// The size of one copied piece.
const PIECE: usize = 16 << 10;

/// Resolves when the response's head has been written.
pub(crate) type OnUpgrade = oneshot::Receiver<Handed>;

/// What the downstream hands over.
pub(crate) struct Handed {
    /// Its bytes.
    pub(crate) bytes: DownstreamTunnel,
    /// Of a whole connection.
    pub(crate) whole: Option<Whole>,
}

/// A connection that has become a tunnel; it counts for its listener as long as this lives.
pub(crate) struct Whole {
    /// When it is over the tunnel is, too.
    pub(crate) drain: Drain,
    /// Who waits for the end.
    pub(crate) _open: oneshot::Sender<Infallible>,
}

/// One side's bytes after an upgrade.
pub(crate) enum Tunnel<S> {
    /// A whole connection.
    Http1(ReadAhead<S>),
    /// A stream.
    Http2(Http2Tunnel),
}

/// The downstream's bytes after an upgrade.
pub(crate) type DownstreamTunnel = Tunnel<DownstreamStream>;
/// The upstream's.
pub(crate) type UpstreamTunnel = Tunnel<UpstreamStream>;

impl<S: AsyncRead + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Tunnel::Http1(tunnel) => Pin::new(tunnel).poll_read(context, buffer),
            Tunnel::Http2(tunnel) => Pin::new(tunnel).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Tunnel::Http1(tunnel) => Pin::new(tunnel).poll_write(context, data),
            Tunnel::Http2(tunnel) => Pin::new(tunnel).poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Tunnel::Http1(tunnel) => Pin::new(tunnel).poll_flush(context),
            Tunnel::Http2(tunnel) => Pin::new(tunnel).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Tunnel::Http1(tunnel) => Pin::new(tunnel).poll_shutdown(context),
            Tunnel::Http2(tunnel) => Pin::new(tunnel).poll_shutdown(context),
        }
    }
}

/// Refuses an upgrade that is not configured; the error is the answer.
pub(crate) fn check(
    manager: &ConnectionManager,
    stream: &Stream,
    headers: &mut RequestHeaders,
) -> Result<(), Box<LocalReply>> {
    let kind = match &headers.upgrade {
        Some(kind) => String::from_utf8_lossy(kind.as_bytes()).into_owned(),
        None if headers.method == Method::CONNECT => "CONNECT".to_owned(),
        None => return Ok(()),
    };
    let of_route = stream.route().and_then(|route| match &route.route().kind {
        RouteKind::Forward(action) => action
            .upgrades
            .iter()
            .find(|rule| rule.kind.eq_ignore_ascii_case(&kind)),
        RouteKind::Redirect(_) | RouteKind::Direct(_) => None,
    });
    let of_manager = manager
        .upgrades
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(&kind));
    let is_allowed = of_route
        .map(|rule| rule.is_enabled)
        .or(of_manager.map(|(_, enabled)| *enabled));
    if is_allowed == Some(true) && (kind != "CONNECT" || stream.route().is_some()) {
        return Ok(());
    }
    if kind.eq_ignore_ascii_case("h2c") {
        // A client that would like HTTP/2 gets HTTP/1.1, as the protocol allows.
        headers.upgrade = None;
        headers.map.remove(header::CONNECTION);
        headers.map.remove(header::UPGRADE);
        headers.map.remove("http2-settings");
        return Ok(());
    }
    if kind == "CONNECT" && stream.route().is_none() {
        manager.stats.no_route.inc();
        return Err(Box::new(
            LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found")
                .flag(ResponseFlag::NoRouteFound)
                .closing(),
        ));
    }
    manager.stats.downstream_rq_ws_on_non_ws_route.inc();
    Err(Box::new(
        LocalReply::new(StatusCode::FORBIDDEN, "", "upgrade_failed").closing(),
    ))
}

/// Joins both sides until one ends, or nothing moves for the idle time.
pub(crate) fn tunnel<U: AsyncRead + AsyncWrite + Unpin + 'static>(
    cell: Rc<StreamCell>,
    downstream: OnUpgrade,
    upstream: U,
    idle: Option<Duration>,
    mut end: Option<UpstreamEnd>,
) {
    tokio::task::spawn_local(async move {
        let stats = cell.with(|state| state.stream.connection.manager.stats.clone());
        stats.downstream_cx_upgrades_total.inc();
        stats.downstream_cx_upgrades_active.inc();
        match downstream.await {
            Ok(Handed { bytes, whole }) => {
                cell.with(|state| {
                    if state.stream.connection.manager.log_moments.at_tunnel {
                        state.log(LogType::DownstreamTunnelSuccessfullyEstablished);
                    }
                });
                let (client_read, client_write) = tokio::io::split(bytes);
                let (server_read, server_write) = tokio::io::split(upstream);
                let to_upstream = copy(client_read, server_write, &cell, Way::Up);
                let to_downstream = copy(server_read, client_write, &cell, Way::Down);
                tokio::select! {
                    _ = futures::future::join(to_upstream, to_downstream) => {}
                    () = idle_expired(&cell, idle) => {
                        stats.downstream_rq_idle_timeout.inc();
                        cell.with(|state| state.stream.info.flags.set(ResponseFlag::StreamIdleTimeout));
                    }
                    () = drained(whole.as_ref()) => {}
                }
            }
            Err(_) => tracing::debug!("the client was lost before its upgrade"),
        }
        stats.downstream_cx_upgrades_active.dec();
        if let Some(end) = &mut end {
            cell.with(|state| end.finish(&mut state.stream.info, None));
        }
        cell.complete();
    });
}

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    cell: &StreamCell,
    way: Way,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        cell.touch();
        cell.with(|state| {
            let info = &mut state.stream.info;
            let (up, down) = match way {
                Way::Up => (count as u64, 0),
                Way::Down => (0, count as u64),
            };
            info.bytes_received += up;
            info.bytes_sent += down;
            if let Some(meter) = &info.meter {
                meter.tunnelled(up, down);
            }
            if let Some(meter) = &info.upstream.meter {
                meter.tunnelled(down, up);
            }
        });
        to.write_all(&piece[..count]).await?;
        to.flush().await?;
    }
}

async fn drained(whole: Option<&Whole>) {
    match whole {
        Some(whole) => whole.drain.expired().await,
        // Its connection sees to that.
        None => std::future::pending().await,
    }
}

async fn idle_expired(cell: &StreamCell, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    let mut timer = cell.timer();
    loop {
        let limit = timer.limit(TimerType::HttpDownstreamStreamIdle, idle);
        let at = cell.last_activity() + limit;
        if at <= tokio::time::Instant::now() {
            return;
        }
        timer.wait(Some(at)).await;
    }
}
