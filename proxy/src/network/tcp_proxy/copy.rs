//! Copying both ways with half-close: the end of one direction is passed on while the other goes on.
//!
//! Two plain TCP sockets are joined by `splice`, so that the bytes never come up from the kernel.

mod splice;

use super::tunnel::Http2Tunnel;
use crate::{listener::Connection, transport::UpstreamStream};
use bytes::Bytes;
use std::{cell::Cell, io, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};

const BUFFER: usize = 16 << 10;

/// How long a connection may be idle, and may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) idle: Option<Duration>,
    pub(super) longest: Option<Duration>,
}

/// Why copying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both sides have said all.
    Finished,
    /// Nothing moved for too long.
    Idle,
    /// It lasted too long.
    TooLong,
    /// The chain's drain is over.
    Drained,
    /// Upstream broke off.
    UpstreamReset,
    /// Downstream broke off.
    DownstreamReset,
}

/// Which side an error came from.
enum Broken {
    Reader,
    Writer,
}

/// Shared by the two directions: when a byte last moved.
#[derive(Clone)]
pub(super) struct Activity(Rc<Cell<Instant>>);

impl Activity {
    fn touch(&self) {
        self.0.set(Instant::now());
    }
}

/// The upstream side.
pub(super) enum Upstream {
    /// A connection, and what it has said already.
    Stream(UpstreamStream, Bytes),
    /// A tunnel.
    Http2(Box<Http2Tunnel>),
}

impl Upstream {
    /// Our end's address.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Stream(stream, _) => stream.local_address(),
            Self::Http2(_) => None,
        }
    }
}

/// Copies until both directions are done, or something ends the connection.
pub(super) async fn run(connection: &mut Connection, upstream: Upstream, limits: Limits) -> Ended {
    let activity = Activity(Rc::new(Cell::new(Instant::now())));
    let drain = connection.drain.clone();
    let watch = watch(activity.clone(), limits);
    let copy = async {
        match upstream {
            Upstream::Stream(stream, ahead) => {
                join_stream(connection, stream, &ahead, &activity).await
            }
            Upstream::Http2(mut tunnel) => {
                let size = piece(connection);
                copy_both(&mut connection.stream, &mut *tunnel, &activity, size).await
            }
        }
    };
    tokio::select! {
        ended = copy => ended,
        ended = watch => ended,
        () = drain.expired() => Ended::Drained,
    }
}

/// How much is read at once: never more than the connection may buffer.
fn piece(connection: &Connection) -> usize {
    let limit = usize::try_from(connection.info.buffer_limit).unwrap_or(usize::MAX);
    // A limit of zero is none, as in Envoy.
    if limit == 0 {
        BUFFER
    } else {
        BUFFER.min(limit)
    }
}

async fn join_stream(
    connection: &mut Connection,
    mut upstream: UpstreamStream,
    said: &[u8],
    activity: &Activity,
) -> Ended {
    if connection.stream.write_all(said).await.is_err() {
        return Ended::DownstreamReset;
    }
    if upstream.plain_tcp().is_some() {
        let ahead = connection.stream.take_ahead();
        if upstream.write_all(&ahead).await.is_err() {
            return Ended::UpstreamReset;
        }
    }
    let size = piece(connection);
    // A pipe holds at least a page; smaller limits are kept by reading.
    if size == BUFFER && connection.stream.plain_tcp().is_some() && upstream.plain_tcp().is_some() {
        let info = &connection.info;
        return splice::both(&connection.stream, info, &upstream, activity).await;
    }
    copy_both(&mut connection.stream, &mut upstream, activity, size).await
}

async fn watch(activity: Activity, limits: Limits) -> Ended {
    let began = Instant::now();
    loop {
        let idle_at = limits.idle.map(|idle| activity.0.get() + idle);
        let end_at = limits.longest.map(|longest| began + longest);
        let Some(next) = [idle_at, end_at].into_iter().flatten().min() else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(next).await;
        if end_at.is_some_and(|end| end <= Instant::now()) {
            return Ended::TooLong;
        }
        if limits
            .idle
            .is_some_and(|idle| activity.0.get() + idle <= Instant::now())
        {
            return Ended::Idle;
        }
    }
}

async fn copy_both<D, U>(
    downstream: &mut D,
    upstream: &mut U,
    activity: &Activity,
    size: usize,
) -> Ended
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(downstream);
    let (mut from_host, mut to_host) = tokio::io::split(upstream);
    let request = copy(&mut from_client, &mut to_host, activity, size);
    let response = copy(&mut from_host, &mut to_client, activity, size);
    join(request, response).await
}

/// Waits for both directions; the first that breaks ends it.
async fn join(
    request: impl Future<Output = Result<(), Broken>>,
    response: impl Future<Output = Result<(), Broken>>,
) -> Ended {
    let outcome = futures::future::try_join(
        async {
            request.await.map_err(|broken| {
                if matches!(broken, Broken::Reader) {
                    Ended::DownstreamReset
                } else {
                    Ended::UpstreamReset
                }
            })
        },
        async {
            response.await.map_err(|broken| {
                if matches!(broken, Broken::Reader) {
                    Ended::UpstreamReset
                } else {
                    Ended::DownstreamReset
                }
            })
        },
    )
    .await;
    outcome.map_or_else(|ended| ended, |_| Ended::Finished)
}

async fn copy(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    activity: &Activity,
    size: usize,
) -> Result<(), Broken> {
    let mut buffer = vec![0; size];
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(count) => count,
            // A TLS peer that leaves without saying so has ended its side all the same.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(_) => return Err(Broken::Reader),
        };
        if count == 0 {
            // The other side may be gone already.
            let _ = writer.shutdown().await;
            return Ok(());
        }
        activity.touch();
        let written = async {
            writer.write_all(&buffer[..count]).await?;
            writer.flush().await
        };
        written.await.map_err(|_: io::Error| Broken::Writer)?;
        activity.touch();
    }
}
