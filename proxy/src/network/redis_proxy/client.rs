//! Connections to Redis servers: one a host and worker, on which commands follow each other without waiting.

use super::resp::{Decoder, Value};
use crate::{
    upstream::{Cluster, Host, Outcome, Priority},
    worker::Worker,
};
use bytes::BytesMut;
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::Instant,
};

/// Commands that wait for one connection, at most.
const QUEUE: usize = 1024;

/// A connection without work ends after so long.
const IDLE: Duration = Duration::from_secs(60);

/// The connections of a worker, by host and by how long an answer may take.
#[derive(Default)]
pub(crate) struct RedisClients(RefCell<HashMap<(u64, Duration), mpsc::Sender<Asked>>>);

struct Asked {
    command: Value,
    answer: oneshot::Sender<Value>,
}

/// What a client is told when its command got no answer.
pub(super) fn upstream_failure() -> Value {
    Value::error("upstream failure")
}

impl RedisClients {
    /// Sends a command to `host`; an error value when there is no answer.
    pub(super) async fn ask(
        &self,
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        patience: Duration,
        command: Value,
    ) -> Value {
        let sender = self.sender(worker, cluster, host, patience);
        let (answer, answered) = oneshot::channel();
        let asked = Asked { command, answer };
        cluster.stats.upstream_rq_total.inc();
        if sender.try_send(asked).is_err() {
            return upstream_failure();
        }
        cluster.stats.upstream_rq_active.inc();
        let answer = answered.await.unwrap_or_else(|_| upstream_failure());
        cluster.stats.upstream_rq_active.dec();
        answer
    }

    fn sender(
        &self,
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        patience: Duration,
    ) -> mpsc::Sender<Asked> {
        let key = (host.id, patience);
        let mut clients = self.0.borrow_mut();
        if let Some(living) = clients.get(&key).filter(|sender| !sender.is_closed()) {
            return living.clone();
        }
        clients.retain(|_, sender| !sender.is_closed());
        let (sender, asked) = mpsc::channel(QUEUE);
        clients.insert(key, sender.clone());
        let link = Link {
            worker: Rc::downgrade(worker),
            cluster: cluster.clone(),
            host: host.clone(),
            patience,
        };
        tokio::task::spawn_local(link.run(asked));
        sender
    }

    /// Lets go of every connection.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

/// One connection.
struct Link {
    worker: Weak<Worker>,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    patience: Duration,
}

impl Link {
    /// Serves commands until the connection ends; those that have no answer then get none.
    async fn run(self, mut asked: mpsc::Receiver<Asked>) {
        let Some(worker) = self.worker.upgrade() else {
            return;
        };
        let connected = worker
            .pools
            .tcp(&self.cluster, &self.host, Priority::Default);
        let mut stream = match connected.await {
            Ok(connected) => connected.stream,
            Err(error) => {
                tracing::debug!(target: "redis", host = %self.host.address_text, %error, "cannot connect");
                self.cluster
                    .report(&self.host, Outcome::LocalFailure, worker.random());
                return;
            }
        };
        drop(worker);
        let mut waiting: VecDeque<oneshot::Sender<Value>> = VecDeque::new();
        let mut input = BytesMut::with_capacity(4 << 10);
        let (mut decoder, mut output) = (Decoder::default(), BytesMut::new());
        let mut deadline = Instant::now();
        loop {
            tokio::select! {
                // A command that is there comes before the end of an idle connection.
                biased;
                next = asked.recv(), if waiting.len() < QUEUE => {
                    let Some(mut next) = next else {
                        return;
                    };
                    if waiting.is_empty() {
                        deadline = Instant::now() + self.patience;
                    }
                    // Whatever else is there goes out in the same write.
                    loop {
                        next.command.encode(&mut output);
                        waiting.push_back(next.answer);
                        match asked.try_recv() {
                            Ok(more) if waiting.len() < QUEUE => next = more,
                            Ok(more) => {
                                // The queue is full: this one is told so.
                                let _ = more.answer.send(upstream_failure());
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    let sent = async {
                        stream.write_all(&output).await?;
                        stream.flush().await
                    };
                    if tokio::time::timeout(self.patience, sent).await.is_ok_and(|sent| sent.is_ok()) {
                        output.clear();
                    } else {
                        return;
                    }
                }
                count = stream.read_buf(&mut input) => {
                    if !count.is_ok_and(|count| count > 0) || !self.answer((&mut decoder, &mut input), &mut waiting) {
                        return;
                    }
                    deadline = Instant::now() + self.patience;
                }
                () = tokio::time::sleep(IDLE), if waiting.is_empty() => return,
                () = tokio::time::sleep_until(deadline), if !waiting.is_empty() => {
                    self.cluster.stats.upstream_rq_timeout.inc();
                    return;
                }
            }
        }
    }

    /// Hands answers out; `false` when the server does not speak the protocol.
    fn answer(
        &self,
        (decoder, input): (&mut Decoder, &mut BytesMut),
        waiting: &mut VecDeque<oneshot::Sender<Value>>,
    ) -> bool {
        loop {
            match decoder.decode(input) {
                Ok(Some(value)) => {
                    let Some(answer) = waiting.pop_front() else {
                        return false;
                    };
                    // Whoever asked may be gone.
                    let _ = answer.send(value);
                }
                Ok(None) => return true,
                Err(_) => {
                    self.cluster.stats.upstream_cx_protocol_error.inc();
                    if let Some(answer) = waiting.pop_front() {
                        let _ = answer.send(Value::error("upstream protocol error"));
                    }
                    return false;
                }
            }
        }
    }
}
