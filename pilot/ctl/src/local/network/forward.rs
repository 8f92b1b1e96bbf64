//! Ports on the host: a listener in the host's namespace for each `hostPort` of a pod, whose connections go on from the
//! node's namespace to a ready pod.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use proto_component::{process::Usage, task};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::node::Node;

/// How long a connection waits for a pod that is just coming up.
const PATIENCE: Duration = Duration::from_secs(5);

/// All forwarded ports.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    node: Node,
    ports: Arc<Mutex<BTreeMap<SocketAddr, Port>>>,
}

#[derive(Debug)]
struct Port {
    targets: watch::Sender<Vec<SocketAddrV4>>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Forwards nothing yet.
    pub(crate) fn new(node: Node) -> Self {
        Self {
            node,
            ports: Arc::default(),
        }
    }

    /// Takes a port; its connections go to the pods that [`Forwarder::sync`] names.
    pub(crate) async fn bind(&self, address: SocketAddr) -> anyhow::Result<()> {
        if self.ports.lock().contains_key(&address) {
            return Ok(());
        }
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Usage(format!(
                "cannot listen on {address}: {error}; end what listens there, or choose another port with --set (see `biremectl local up --help`)"
            ))
        })?;
        let (targets, receiver) = watch::channel(Vec::new());
        let task = task::spawn("forward", accept(listener, self.node.clone(), receiver));
        self.ports.lock().insert(address, Port { targets, task });
        Ok(())
    }

    /// Sets every port's ready pods, and lets go of ports that no pod wants any more. Returns the ports still to be bound.
    pub(crate) fn sync(&self, wanted: &BTreeMap<SocketAddr, Vec<SocketAddrV4>>) -> Vec<SocketAddr> {
        let mut ports = self.ports.lock();
        ports.retain(|address, port| {
            let stays = wanted.contains_key(address);
            if !stays {
                port.task.abort();
            }
            stays
        });
        let mut unbound = Vec::new();
        for (address, targets) in wanted {
            match ports.get(address) {
                Some(port) => {
                    port.targets.send_if_modified(|current| {
                        let changed = current != targets;
                        if changed {
                            current.clone_from(targets);
                        }
                        changed
                    });
                }
                None => unbound.push(*address),
            }
        }
        unbound
    }
}

async fn accept(listener: TcpListener, node: Node, targets: watch::Receiver<Vec<SocketAddrV4>>) {
    let mut turn = 0usize;
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: others need a moment to close theirs.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        turn = turn.wrapping_add(1);
        let targets = targets.clone();
        let Ok(client) = client.into_std() else {
            continue;
        };
        node.spawn("forward-connection", async move {
            // The connection is simply closed when there is no pod, as a port without a process refuses.
            let _ = forward(client, targets, turn).await;
        });
    }
}

async fn forward(
    client: std::net::TcpStream,
    mut targets: watch::Receiver<Vec<SocketAddrV4>>,
    turn: usize,
) -> std::io::Result<()> {
    let target = {
        let ready = tokio::time::timeout(PATIENCE, targets.wait_for(|targets| !targets.is_empty()));
        let Ok(Ok(targets)) = ready.await else {
            return Ok(());
        };
        targets[turn % targets.len()]
    };
    let mut client = TcpStream::from_std(client)?;
    let mut server = tokio::time::timeout(PATIENCE, TcpStream::connect(target))
        .await
        .map_err(|_| std::io::ErrorKind::TimedOut)??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
