//! Sockets a component listens on: TCP or Unix, plaintext or TLS, and who is at the other end.
//!
//! [`Listener::bind`] takes the socket (so that bootstrap fails early, naming the flag); [`Incoming`] is the stream of
//! connections ready for HTTP: it serves tonic (a `Stream`) and axum (an `axum::serve::Listener`) alike.

use crate::{args::Address, drain::Drain, task, tls::ServerTls};
use rustls_pki_types::CertificateDer;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc},
};

mod connection;

pub use connection::Connection;

use connection::Io;

/// Names the address to listen on where all addresses are asked for (`:15014`): components that share one network with
/// others, as the pods of `biremectl local` do where there are no network namespaces, have one address each.
pub const LISTEN_ADDRESS: &str = "BIREME_LISTEN_ADDRESS";

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKES_AT_ONCE: usize = 512;
const BACKLOG: usize = 64;

/// A socket that could not be taken; ends a component with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error("address {address} is taken ({cause}); choose another with {flag}")]
    Taken {
        /// The address asked for.
        address: String,
        /// The flag that sets it.
        flag: String,
        /// The system's word.
        cause: io::Error,
    },
    /// Any other refusal.
    #[error("cannot listen on {address}: {cause}; change it with {flag}")]
    Refused {
        /// The address asked for.
        address: String,
        /// The flag that sets it.
        flag: String,
        /// The system's word.
        cause: io::Error,
    },
    /// Not an address at all.
    #[error("{flag}: {reason}")]
    Invalid {
        /// The flag that sets it.
        flag: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Connections of a listener, handshake done.
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
    local: Address,
}

/// Who is at the other end; in a tonic service: `request.extensions().get::<Peer>()`,
/// in an axum handler: `ConnectInfo<Peer>`.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Remote address (none for a Unix socket).
    pub remote: Option<SocketAddr>,
    /// Our address of the connection.
    pub local: Option<SocketAddr>,
    /// Whether the connection is TLS.
    pub is_tls: bool,
    /// The verified client certificate's chain, leaf first.
    pub certificates: Arc<Vec<CertificateDer<'static>>>,
    /// The verified client certificate's SPIFFE id (`spiffe://…`).
    pub spiffe_id: Option<String>,
}

impl Peer {
    /// Whether it calls over loopback: from the same pod.
    pub fn is_local(&self) -> bool {
        let is_loopback = |remote: SocketAddr| remote.ip().to_canonical().is_loopback();
        self.remote.is_some_and(is_loopback)
    }
}

impl Listener {
    /// Takes the socket. `flag` is named in the error. A stale Unix socket file is replaced.
    pub async fn bind(address: &Address, flag: &str) -> Result<Self, BindError> {
        let socket = match address {
            Address::Tcp(socket) => {
                TcpListener::bind(own_address(*socket, shared_network_address()))
                    .await
                    .map(Socket::Tcp)
            }
            Address::Unix(path) => {
                bind_unix(path).map(|listener| Socket::Unix(listener, path.clone()))
            }
        };
        let socket = socket.map_err(|cause| {
            let (address, flag) = (address.to_string(), flag.to_owned());
            if cause.kind() == io::ErrorKind::AddrInUse {
                BindError::Taken {
                    address,
                    flag,
                    cause,
                }
            } else {
                BindError::Refused {
                    address,
                    flag,
                    cause,
                }
            }
        })?;
        let address = match &socket {
            // Port 0 becomes the port that was handed out.
            Socket::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| address.clone(), Address::Tcp),
            Socket::Unix(..) => address.clone(),
        };
        Ok(Self { socket, address })
    }

    /// As [`Listener::bind`], from a flag's text (`:15014`, `tcp://0.0.0.0:9901`, `unix:///run/x.sock`).
    pub async fn bind_text(address: &str, flag: &str) -> Result<Self, BindError> {
        let address = address
            .parse()
            .map_err(|error: crate::args::InvalidAddress| BindError::Invalid {
                flag: flag.to_owned(),
                reason: error.to_string(),
            })?;
        Self::bind(&address, flag).await
    }

    /// The address taken (with the real port if 0 was asked for).
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The TCP port taken.
    pub fn port(&self) -> Option<u16> {
        match self.address {
            Address::Tcp(socket) => Some(socket.port()),
            Address::Unix(_) => None,
        }
    }

    /// Starts accepting plaintext connections; stops when the drain begins.
    pub fn plaintext(self, drain: &Drain) -> Incoming {
        self.accept(None, drain)
    }

    /// Starts accepting TLS connections; stops when the drain begins.
    pub fn tls(self, tls: ServerTls, drain: &Drain) -> Incoming {
        self.accept(Some(tls), drain)
    }

    fn accept(self, tls: Option<ServerTls>, drain: &Drain) -> Incoming {
        let (sender, connections) = mpsc::channel(BACKLOG);
        let local = self.address.clone();
        let drain = drain.clone();
        task::spawn("accept", async move {
            let handshakes = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
            loop {
                let accepted = tokio::select! {
                    accepted = self.socket.accept() => accepted,
                    () = drain.signaled() => break,
                    () = sender.closed() => break,
                };
                match accepted {
                    Ok(connection) => {
                        hand_over(connection, tls.as_ref(), &handshakes, &sender).await;
                    }
                    Err(error) => {
                        // Out of file descriptors, or a connection gone before it was accepted.
                        tracing::warn!(%error, address = %self.address, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
        Incoming { connections, local }
    }
}

/// Gives a connection to the server, after the TLS handshake (which runs beside the accept loop).
async fn hand_over(
    connection: Connection,
    tls: Option<&ServerTls>,
    handshakes: &Arc<Semaphore>,
    sender: &mpsc::Sender<Connection>,
) {
    let (Some(tls), Io::Tcp(_)) = (tls, &connection.io) else {
        // The receiver is gone only when the server is.
        let _ = sender.send(connection).await;
        return;
    };
    let Ok(permit) = handshakes.clone().acquire_owned().await else {
        return;
    };
    let (tls, sender) = (tls.clone(), sender.clone());
    task::spawn("handshake", async move {
        let _permit = permit;
        let remote = connection.peer.remote;
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(connection, &tls)).await {
            Ok(Ok(connection)) => {
                let _ = sender.send(connection).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, ?remote, "TLS handshake failed"),
            Err(_) => tracing::debug!(?remote, "TLS handshake took too long"),
        }
    });
}

async fn handshake(connection: Connection, tls: &ServerTls) -> io::Result<Connection> {
    let Connection { io, mut peer, .. } = connection;
    let Io::Tcp(stream) = io else {
        return Ok(Connection::new(io, peer));
    };
    let stream = tls.acceptor().accept(stream).await?;
    peer.is_tls = true;
    let chain = stream.get_ref().1.peer_certificates();
    let seat = tls.enter(chain);
    if let Some(chain) = chain {
        peer.certificates = Arc::new(chain.iter().map(|c| c.clone().into_owned()).collect());
        peer.spiffe_id = chain
            .first()
            .and_then(|leaf| crate::tls::spiffe_id(leaf.as_ref()));
    }
    Ok(Connection {
        seat,
        ..Connection::new(Io::Tls(Box::new(stream)), peer)
    })
}

/// What [`LISTEN_ADDRESS`] says. It is the process's surroundings that ask for this, not its user: hence no flag.
fn shared_network_address() -> Option<IpAddr> {
    std::env::var_os(LISTEN_ADDRESS)?.to_str()?.parse().ok()
}

/// The process's own address in the place of all addresses.
fn own_address(socket: SocketAddr, own: Option<IpAddr>) -> SocketAddr {
    match own {
        Some(own) if socket.ip().is_unspecified() => SocketAddr::new(own, socket.port()),
        _ => socket,
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A socket file outlives its process; one that still answers is really taken.
    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && metadata.file_type().is_socket()
    {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

impl Socket {
    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                // Latency matters more than packets here; failure is harmless.
                let _ = stream.set_nodelay(true);
                let peer = Peer {
                    remote: Some(remote),
                    local: stream.local_addr().ok(),
                    ..Peer::default()
                };
                Ok(Connection::new(Io::Tcp(stream), peer))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok(Connection::new(Io::Unix(stream), Peer::default()))
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Incoming {
    /// The address listened on.
    pub fn address(&self) -> &Address {
        &self.local
    }
}

impl futures::Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|next| next.map(Ok))
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.connections.recv().await {
            Some(connection) => {
                let peer = connection.peer.clone();
                (connection, peer)
            }
            // The drain has begun: nothing more to accept, the server's own shutdown ends the wait.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        let local = match self.local {
            Address::Tcp(socket) => Some(socket),
            Address::Unix(_) => None,
        };
        Ok(Peer {
            local,
            ..Peer::default()
        })
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Incoming>> for Peer {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Incoming>) -> Self {
        stream.io().peer.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_the_flag() {
        let first = Listener::bind_text("127.0.0.1:0", "--monitoringPort")
            .await
            .unwrap();
        let again = Listener::bind(first.address(), "--monitoringPort")
            .await
            .unwrap_err();
        let text = again.to_string();
        assert!(text.starts_with("address 127.0.0.1:"), "{text}");
        assert!(
            text.ends_with("choose another with --monitoringPort"),
            "{text}"
        );
    }

    #[test]
    fn on_a_shared_network_only_the_own_address_is_taken() {
        let own = Some("127.64.0.9".parse().unwrap());
        let all = "0.0.0.0:15014".parse().unwrap();
        assert_eq!(own_address(all, own).to_string(), "127.64.0.9:15014");
        assert_eq!(own_address(all, None), all);
        let one = "127.0.0.1:15014".parse().unwrap();
        assert_eq!(own_address(one, own), one);
    }

    #[tokio::test]
    async fn a_stale_unix_socket_is_replaced_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/mesh.sock");
        let address = Address::Unix(path.clone());
        let first = Listener::bind(&address, "--sds").await.unwrap();
        assert!(matches!(
            Listener::bind(&address, "--sds").await,
            Err(BindError::Taken { .. })
        ));
        drop(first);
        std::os::unix::net::UnixListener::bind(&path).unwrap();
        Listener::bind(&address, "--sds").await.unwrap();
    }
}
