//! Accepting on a worker, within what the listener and the process may have at once.

use super::{
    Listener, Listeners,
    balance::Seat,
    serve::{serve_tcp, serve_unix},
    socket::BoundSocket,
};
use crate::{
    overload::{Action, GlobalSlot},
    worker::Worker,
};
use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// A connection's place among those that the listener and the process may have, until it is dropped.
pub(super) struct Admission {
    open: Arc<AtomicU64>,
    _global: Option<GlobalSlot>,
    seat: Option<Seat>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

impl Admission {
    /// A place for one more connection; none when it has to go at once.
    fn new(worker: &Worker, listener: &Listener) -> Option<Self> {
        let config = listener.config.load();
        let overload = &worker.server.overload;
        let global = if config.ignores_global_limit {
            None
        } else {
            let Ok(slot) = overload.connection() else {
                listener.stats.downstream_global_cx_overflow.inc();
                return None;
            };
            slot
        };
        let is_shed = |action| overload.is_active(action, || worker.random());
        if !config.bypasses_overload
            && (is_shed(Action::RejectIncomingConnections) || is_shed(Action::ShedAccept))
        {
            listener.stats.downstream_cx_overload_reject.inc();
            return None;
        }
        let limit = worker.server.runtime.number(&listener.limit_key);
        let before = listener.open.fetch_add(1, Relaxed);
        let admission = Self {
            open: listener.open.clone(),
            _global: global,
            seat: None,
        };
        #[allow(clippy::cast_precision_loss, reason = "nobody has so many connections")]
        if limit.is_some_and(|limit| before as f64 >= limit) {
            listener.stats.downstream_cx_overflow.inc();
            return None;
        }
        Some(admission)
    }
}

/// Follows the listeners of the process for ever: accepts on those that are new.
pub(crate) async fn run_listeners(worker: Rc<Worker>, listeners: Arc<Listeners>) {
    let mut changed = listeners.watch();
    listeners.stats.workers_started.set(1);
    loop {
        changed.mark_unchanged();
        let map = listeners.map();
        for listener in map.by_name.values() {
            // None of those that are known: a worker takes its sockets once.
            for socket in listener.take_sockets(worker.index) {
                start(&worker, &listeners, listener.clone(), socket);
            }
        }
        drop(map);
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn start(
    worker: &Rc<Worker>,
    listeners: &Arc<Listeners>,
    listener: Arc<Listener>,
    socket: BoundSocket,
) {
    let (worker, listeners) = (worker.clone(), listeners.clone());
    tokio::task::spawn_local(async move {
        let name = listener.name.clone();
        let closed = listener.closed.clone();
        let outcome = tokio::select! {
            outcome = accept(worker, listeners, listener, socket) => outcome,
            () = closed.cancelled() => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(target: "connection", listener = %name, %error, "accepting ended");
        }
    });
}

/// Counts the connections that were accepted in a row.
#[derive(Default)]
struct Turns(u32);

impl Turns {
    /// Lets others have their turn after as many as the listener says.
    async fn take(&mut self, listener: &Listener) {
        if self.0 >= listener.config.load().accepts_in_a_row {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
        self.0 += 1;
    }
}

async fn accept(
    worker: Rc<Worker>,
    listeners: Arc<Listeners>,
    listener: Arc<Listener>,
    socket: BoundSocket,
) -> io::Result<()> {
    let balancer = listener.balancer.as_ref();
    if let Some(mut handed) = balancer.and_then(|balancer| balancer.take_receiver(worker.index)) {
        let (worker, listeners, listener) = (worker.clone(), listeners.clone(), listener.clone());
        tokio::task::spawn_local(async move {
            // Ends with the listener, which holds the other end.
            while let Some((stream, remote, seat)) = handed.recv().await {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    spawn_tcp(&worker, &listeners, &listener, stream, remote, Some(seat));
                }
            }
        });
    }
    match socket {
        BoundSocket::Tcp(socket) => {
            let socket = TcpListener::from_std(socket)?;
            let mut turns = Turns::default();
            loop {
                turns.take(&listener).await;
                let accepted = unless_stopped(&worker, &listener, socket.accept());
                match accepted.await {
                    Some(Ok((stream, remote))) => {
                        balance(&worker, &listeners, &listener, stream, remote);
                    }
                    Some(Err(error)) => pause(&listener, &error).await,
                    None => {}
                }
            }
        }
        BoundSocket::Unix(socket) => {
            let socket = UnixListener::from_std(socket)?;
            let mut turns = Turns::default();
            loop {
                turns.take(&listener).await;
                let accepted = unless_stopped(&worker, &listener, socket.accept());
                match accepted.await {
                    Some(Ok((stream, _))) => {
                        if let Some(admission) = Admission::new(&worker, &listener) {
                            let (worker, listener) = (worker.clone(), listener.clone());
                            tokio::task::spawn_local(serve_unix(
                                worker, listener, stream, admission,
                            ));
                        }
                    }
                    Some(Err(error)) => pause(&listener, &error).await,
                    None => {}
                }
            }
        }
    }
}

/// The next connection, unless the overload manager says that connections are to stay in the queue; then it returns when they
/// are welcome again.
async fn unless_stopped<T>(
    worker: &Worker,
    listener: &Listener,
    accept: impl Future<Output = T>,
) -> Option<T> {
    let overload = &worker.server.overload;
    if !overload.has(Action::StopAcceptingConnections) || listener.config.load().bypasses_overload {
        return Some(accept.await);
    }
    tokio::select! {
        biased;
        () = overload.until(Action::StopAcceptingConnections, true) => {
            overload.until(Action::StopAcceptingConnections, false).await;
            None
        }
        accepted = accept => Some(accepted),
    }
}

/// Out of file descriptors, or a connection that was gone before it was accepted.
async fn pause(listener: &Listener, error: &io::Error) {
    tracing::warn!(target: "connection", listener = %listener.name, %error, "cannot accept");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Serves a connection here, or hands it to the worker that has the fewest.
fn balance(
    worker: &Rc<Worker>,
    listeners: &Arc<Listeners>,
    listener: &Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
) {
    let Some(balancer) = &listener.balancer else {
        spawn_tcp(worker, listeners, listener, stream, remote, None);
        return;
    };
    let (index, seat) = balancer.choose(worker.index);
    if index == worker.index {
        spawn_tcp(worker, listeners, listener, stream, remote, Some(seat));
        return;
    }
    let Ok(stream) = stream.into_std() else {
        return;
    };
    if let Err((stream, remote, _)) = balancer.hand(index, (stream, remote, seat))
        && let Ok(stream) = TcpStream::from_std(stream)
    {
        let seat = balancer.seat(worker.index);
        spawn_tcp(worker, listeners, listener, stream, remote, Some(seat));
    }
}

fn spawn_tcp(
    worker: &Rc<Worker>,
    listeners: &Arc<Listeners>,
    listener: &Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
    seat: Option<Seat>,
) {
    let Some(mut admission) = Admission::new(worker, listener) else {
        return;
    };
    admission.seat = seat;
    let (worker, listeners, listener) = (worker.clone(), listeners.clone(), listener.clone());
    // Spawning moves a future several times, and this one is large.
    tokio::task::spawn_local(Box::pin(async move {
        // Latency matters more than packets here; failure is harmless.
        let _ = stream.set_nodelay(true);
        let served = serve_tcp(worker, &listeners, listener, stream, remote, admission);
        if let Err(error) = served.await {
            tracing::debug!(target: "connection", %remote, %error, "connection ended early");
        }
    }));
}
