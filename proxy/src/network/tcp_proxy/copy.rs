//! Copying both ways with half-close: the end of one direction is passed on while the other goes on.
//!
//! What comes in is read into a buffer that a worker's connections share, and is mostly written at once: only what is left then
//! needs memory of the connection's own. Between two plain TCP sockets a read that fills the buffer begins a large flow, which is
//! moved by `splice`, so that its bytes never come up from the kernel; a small exchange costs one read and one write.

mod splice;

use super::tunnel::Http2Tunnel;
use crate::{
    listener::Connection,
    overload::Action,
    stream_info::{StreamInfo, UpstreamConnection},
    transport::{Count as _, DownstreamStream, UpstreamStream},
    worker::Worker,
};
use bytes::Bytes;
use futures::future::{FusedFuture as _, FutureExt as _, TryFutureExt as _};
use splice::{Flow, Pipes};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::tcp::{ReadHalf, WriteHalf},
    time::Instant,
};

/// What is read at once.
const BUFFER: usize = 32 << 10;
/// What a socket that breaks has received is read in so many turns.
const LAST_TURNS: usize = 4;
/// A pipe holds at least pages; smaller limits are kept by reading.
const LEAST_SPLICED: usize = 16 << 10;

/// What the connections of a worker copy with.
pub(crate) struct CopySpace {
    buffer: RefCell<Box<[u8]>>,
    pipes: Pipes,
}

impl Default for CopySpace {
    fn default() -> Self {
        Self {
            buffer: RefCell::new(vec![0; BUFFER].into()),
            pipes: Pipes::default(),
        }
    }
}

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
    /// Upstream is gone.
    UpstreamGone(Gone),
    /// Downstream is gone.
    DownstreamGone(Gone),
    /// The overload manager wants no more of what downstream sends.
    Shed,
}

/// How a peer broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// With a reset.
    Reset,
    /// In another way; mostly it had ended already.
    Otherwise,
}

impl From<&io::Error> for Gone {
    fn from(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionReset {
            Self::Reset
        } else {
            Self::Otherwise
        }
    }
}

/// Which side an error came from.
enum Broken {
    Reader(Gone),
    Writer(Gone),
    Shed,
}

impl Broken {
    fn reader(error: &io::Error) -> Self {
        Self::Reader(error.into())
    }

    fn writer(error: &io::Error) -> Self {
        Self::Writer(error.into())
    }
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
    Stream(Box<UpstreamStream>, Bytes),
    /// A tunnel.
    Http2(Box<Http2Tunnel>),
}

impl Upstream {
    /// What stays the same about a connection of its own, which was made for `info`.
    pub(super) fn facts(&self, info: &StreamInfo) -> Option<UpstreamConnection> {
        match self {
            Self::Stream(stream, _) => Some(stream.facts(info.shared_state())),
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
            Upstream::Stream(mut stream, ahead) => {
                let ended = join_stream(connection, &mut stream, &ahead, &activity).await;
                // A reset is passed on as one.
                match ended {
                    Ended::UpstreamGone(Gone::Reset) => connection.stream.reset_on_close(),
                    Ended::DownstreamGone(Gone::Reset) => stream.reset_on_close(),
                    _ => {}
                }
                ended
            }
            Upstream::Http2(mut tunnel) => {
                let copy = Copy::new(connection, &activity);
                copy.both(&mut connection.stream, &mut *tunnel).await
            }
        }
    };
    tokio::select! {
        ended = copy => ended,
        ended = watch => ended,
        () = drain.expired() => Ended::Drained,
    }
}

async fn join_stream(
    connection: &mut Connection,
    upstream: &mut UpstreamStream,
    said: &[u8],
    activity: &Activity,
) -> Ended {
    if let Err(error) = connection.stream.write_all(said).await {
        return Ended::DownstreamGone((&error).into());
    }
    if upstream.plain_tcp().is_some() {
        let ahead = connection.stream.take_ahead();
        if let Err(error) = upstream.write_all(&ahead).await {
            return Ended::UpstreamGone((&error).into());
        }
    }
    let copy = Copy::new(connection, activity);
    let is_looked_at = connection.worker.server.overload.has(Action::ShedTcpData);
    if copy.most >= LEAST_SPLICED
        && !is_looked_at
        && let Some(ended) = copy.sockets(&mut connection.stream, upstream).await
    {
        return ended;
    }
    copy.both(&mut connection.stream, upstream).await
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

/// Waits for both directions; the first that breaks ends it. Who resets may have answered before: that is passed on still.
async fn join(
    request: impl Future<Output = Result<(), Broken>>,
    response: impl Future<Output = Result<(), Broken>>,
) -> Ended {
    let request = request.map_err(|broken| match broken {
        Broken::Reader(gone) => Ended::DownstreamGone(gone),
        Broken::Writer(gone) => Ended::UpstreamGone(gone),
        Broken::Shed => Ended::Shed,
    });
    let response = response.map_err(|broken| match broken {
        Broken::Reader(gone) => Ended::UpstreamGone(gone),
        Broken::Writer(gone) => Ended::DownstreamGone(gone),
        Broken::Shed => Ended::Shed,
    });
    let mut response = pin!(response.fuse());
    let joined = futures::future::try_join(request, &mut response).await;
    let Err(ended) = joined else {
        return Ended::Finished;
    };
    for _ in 0..LAST_TURNS {
        if !matches!(ended, Ended::UpstreamGone(_)) || response.is_terminated() {
            break;
        }
        // After a look at what has come; a client that takes nothing now is not waited for.
        tokio::task::yield_now().await;
        let _ = futures::poll!(&mut response);
    }
    ended
}

/// Copying for one connection.
struct Copy {
    worker: Rc<Worker>,
    activity: Activity,
    /// What may be on its way at once, in each direction.
    most: usize,
}

impl Copy {
    fn new(connection: &Connection, activity: &Activity) -> Self {
        let limit = usize::try_from(connection.info.buffer_limit).unwrap_or(usize::MAX);
        Self {
            worker: connection.worker.clone(),
            activity: activity.clone(),
            // A limit of zero is none, as in Envoy.
            most: if limit == 0 { usize::MAX } else { limit },
        }
    }

    /// Joins two streams of any kind until both directions are done.
    async fn both<D, U>(&self, downstream: &mut D, upstream: &mut U) -> Ended
    where
        D: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut from_client, mut to_client) = tokio::io::split(downstream);
        let (mut from_host, mut to_host) = tokio::io::split(upstream);
        let admit = |_| {
            self.activity.touch();
            !self.worker.sheds(Action::ShedTcpData)
        };
        let request = async {
            while self.relay(&mut from_client, &mut to_host, &admit).await? > 0 {}
            Ok(())
        };
        let touch = |_| {
            self.activity.touch();
            true
        };
        let response = async {
            while self.relay(&mut from_host, &mut to_client, &touch).await? > 0 {}
            Ok(())
        };
        join(request, response).await
    }

    /// Joins two plain sockets until both directions are done; `None` when that is not what they are.
    async fn sockets(
        &self,
        downstream: &mut DownstreamStream,
        upstream: &mut UpstreamStream,
    ) -> Option<Ended> {
        let (client, meter) = downstream.plain_tcp_mut()?;
        let (host, guard) = upstream.plain_tcp_mut()?;
        let (from_client, to_client) = client.split();
        let (from_host, to_host) = host.split();
        let request = self.one_way(from_client, to_host, |count| {
            self.activity.touch();
            meter.moved(count, 0);
            guard.moved(0, count);
        });
        let response = self.one_way(from_host, to_client, |count| {
            self.activity.touch();
            meter.moved(0, count);
            guard.moved(count, 0);
        });
        Some(join(request, response).await)
    }

    async fn one_way(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        moved: impl Fn(u64),
    ) -> Result<(), Broken> {
        let pipes = &self.worker.copying.pipes;
        let always = |count| {
            moved(count);
            true
        };
        loop {
            let count = self.relay(&mut from, &mut to, &always).await?;
            if count == 0 {
                return Ok(());
            }
            let mut is_large = count == BUFFER.min(self.most);
            while is_large {
                from.readable()
                    .await
                    .map_err(|error| Broken::reader(&error))?;
                let flow = pipes.flow(from.as_ref(), to.as_ref(), self.most, &moved);
                is_large = match flow.await.transpose()? {
                    Some(Flow::End) => {
                        // The other side may be gone already.
                        let _ = to.shutdown().await;
                        return Ok(());
                    }
                    Some(Flow::Dry(total)) => total >= BUFFER,
                    None => false,
                };
            }
        }
    }

    /// Copies what one read brings, if `moved` admits it; 0 at the end, which is passed on.
    async fn relay(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        moved: &impl Fn(u64) -> bool,
    ) -> Result<usize, Broken> {
        let (count, rest) = poll_fn(|context| {
            let mut buffer = self.worker.copying.buffer.borrow_mut();
            let size = buffer.len().min(self.most);
            let mut buffer = ReadBuf::new(&mut buffer[..size]);
            match ready!(Pin::new(&mut *reader).poll_read(context, &mut buffer)) {
                // A TLS peer that leaves without saying so has ended its side all the same.
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Err(Broken::reader(&error)));
                }
                Ok(()) | Err(_) => {}
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok((0, Vec::new())));
            }
            if !moved(bytes.len() as u64) {
                return Poll::Ready(Err(Broken::Shed));
            }
            let written = match Pin::new(&mut *writer).poll_write(context, bytes) {
                Poll::Ready(written) => written.map_err(|error| Broken::writer(&error))?,
                Poll::Pending => 0,
            };
            Poll::Ready(Ok((bytes.len(), bytes[written..].to_vec())))
        })
        .await?;
        if count == 0 {
            // The other side may be gone already.
            let _ = writer.shutdown().await;
            return Ok(0);
        }
        let written = async {
            writer.write_all(&rest).await?;
            writer.flush().await
        };
        written
            .await
            .map_err(|error: io::Error| Broken::writer(&error))?;
        if !rest.is_empty() {
            moved(0);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::io::Write as _;
    use tokio::{io::AsyncReadExt as _, net::TcpStream};

    #[tokio::test]
    async fn what_was_said_before_a_reset_is_passed_on() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Written to before, so that the next write is tried without waiting for anything.
        stream.write_all(b"a").await.unwrap();
        let (mut host, _) = listener.accept().unwrap();
        host.write_all(b"answer").unwrap();
        SockRef::from(&host)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(host);

        let (mut reader, mut writer) = stream.split();
        let (mut to_client, mut client) = tokio::io::duplex(64);
        let request = async {
            loop {
                let written = writer.write_all(b"more").await;
                written.map_err(|error| Broken::writer(&error))?;
            }
        };
        let response = async {
            let copied = tokio::io::copy(&mut reader, &mut to_client).await;
            copied.map_err(|error| Broken::reader(&error)).map(|_| ())
        };
        let ended = join(request, response).await;
        assert_eq!(ended, Ended::UpstreamGone(Gone::Reset));
        drop(to_client);
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "answer");
    }
}
