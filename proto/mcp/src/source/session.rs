//! One stream to one sink: what it watches, what it has, what is on its way.
//!
//! For each collection there is at most one response in flight. Its base, from which the next increment is counted, is what
//! the sink accepted last; a refused response leaves the base alone and is not repeated until the collection changes.

use super::Shared;
use crate::{
    snapshot::{Collection, Delta, Snapshot},
    wire::{RequestResources, Resources},
};
use prost::Message as _;
use proto_component::listen::Peer;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// Requests that a stream may send at once, and a second.
const REQUEST_BURST: u32 = 100;
/// How long a sink may take no data before it is let go.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// A connected sink, for `/debug/sinks`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SinkStatus {
    /// The id that the sink gave itself.
    pub id: String,
    /// Its address.
    pub address: String,
    /// The SPIFFE id of its certificate.
    pub spiffe_id: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Seconds since the epoch at which the stream began.
    pub since: u64,
    /// What it watches.
    pub collections: BTreeMap<String, CollectionStatus>,
}

/// How far a sink is with one collection.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CollectionStatus {
    /// Version sent last.
    pub sent: String,
    /// Version accepted last.
    pub acked: String,
    /// Version refused last, and why.
    pub nacked: Option<(String, String)>,
    /// Whether increments are sent.
    pub incremental: bool,
}

/// What the sink has of a collection.
#[derive(Debug)]
enum Base {
    /// Unknown: the next response must be a full state.
    Unknown,
    /// As the sink said when it subscribed.
    Versions(BTreeMap<String, String>),
    /// As the sink accepted.
    Accepted(Arc<Collection>),
}

#[derive(Debug)]
struct Watch {
    is_incremental: bool,
    base: Base,
    /// Version that needs no sending: accepted or refused.
    settled: Option<String>,
    in_flight: Option<(String, Arc<Collection>)>,
}

struct Session<'a> {
    shared: &'a Shared,
    id: u64,
    watches: BTreeMap<String, Watch>,
    nonce: u64,
    limit: RequestLimit,
}

/// What one stream may ask for.
#[derive(Debug)]
pub(crate) struct RequestLimit {
    tokens: f64,
    at: Instant,
}

/// Serves a stream until it ends; the status says why, if it is not the sink that ended it.
pub(super) async fn run(
    shared: &Shared,
    peer: Peer,
    mut requests: impl Stream<Item = Result<RequestResources, Status>> + Unpin,
    responses: mpsc::Sender<Resources>,
) -> Result<(), Status> {
    let _client = shared.metrics.client();
    let mut current = shared.current.subscribe();
    let mut session = Session::new(shared, peer);
    loop {
        let snapshot = current.borrow_and_update().clone();
        session.send_changes(&snapshot, &responses).await?;
        tokio::select! {
            request = requests.next() => match request {
                Some(Ok(request)) => session.take(request).await?,
                Some(Err(status)) => {
                    shared.metrics.recv_failed(status.code());
                    return Err(status);
                }
                None => return Ok(()),
            },
            changed = current.changed() => if changed.is_err() {
                return Err(Status::unavailable("the source is closed"));
            },
            () = shared.drain.signaled() => return Err(Status::unavailable("the source is shutting down")),
            () = responses.closed() => return Ok(()),
        }
    }
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, peer: Peer) -> Self {
        let id = shared.register(SinkStatus {
            address: peer
                .remote
                .map_or_else(String::new, |remote| remote.to_string()),
            spiffe_id: peer.spiffe_id,
            since: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            ..SinkStatus::default()
        });
        tracing::debug!(target: "mcp", sink = id, "stream opened");
        Self {
            shared,
            id,
            watches: BTreeMap::new(),
            nonce: 0,
            limit: RequestLimit::new(),
        }
    }

    /// A subscription, or the answer to what was sent.
    async fn take(&mut self, request: RequestResources) -> Result<(), Status> {
        self.limit.wait().await;
        let collection = request.collection.clone();
        if !self.shared.known.contains(&collection) {
            return Err(Status::invalid_argument(format!(
                "unsupported collection: {collection}"
            )));
        }
        self.shared
            .metrics
            .message(&collection, request.encoded_len());
        if request.response_nonce.is_empty() {
            self.subscribe(collection, request);
        } else {
            self.answer(&collection, &request);
        }
        Ok(())
    }

    fn subscribe(&mut self, collection: String, request: RequestResources) {
        self.describe(|status| {
            if let Some(node) = &request.sink_node {
                status.id.clone_from(&node.id);
                status.annotations = node
                    .annotations
                    .iter()
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
            }
            let entry = status.collections.entry(collection.clone()).or_default();
            entry.incremental = request.incremental;
        });
        let versions: BTreeMap<String, String> =
            request.initial_resource_versions.into_iter().collect();
        let base = if request.incremental && !versions.is_empty() {
            Base::Versions(versions)
        } else {
            Base::Unknown
        };
        let watch = Watch {
            is_incremental: request.incremental,
            base,
            settled: None,
            in_flight: None,
        };
        self.watches.insert(collection, watch);
    }

    fn answer(&mut self, collection: &str, request: &RequestResources) {
        let Some(watch) = self.watches.get_mut(collection) else {
            return;
        };
        // An answer to something older than what is in flight says nothing.
        let Some((_, sent)) = watch
            .in_flight
            .take_if(|(nonce, _)| *nonce == request.response_nonce)
        else {
            return;
        };
        let version = sent.version.clone();
        watch.settled = Some(version.clone());
        if let Some(error) = &request.error_detail {
            self.shared.metrics.nack(collection, error.code);
            tracing::warn!(target: "mcp", sink = self.id, collection, version, code = error.code, error = error.message, "sink refused a collection");
            let message = error.message.clone();
            self.describe_collection(collection, |status| {
                status.nacked = Some((version, message));
            });
        } else {
            watch.base = Base::Accepted(sent);
            self.shared.metrics.ack(collection);
            tracing::debug!(target: "mcp", sink = self.id, collection, version, "sink accepted a collection");
            self.describe_collection(collection, |status| {
                status.acked = version;
                status.nacked = None;
            });
        }
    }

    /// Sends every watched collection that differs from what is settled and has nothing in flight.
    async fn send_changes(
        &mut self,
        snapshot: &Snapshot,
        responses: &mpsc::Sender<Resources>,
    ) -> Result<(), Status> {
        let mut ready = Vec::new();
        for (name, watch) in &mut self.watches {
            let Some(collection) = snapshot.get(name) else {
                continue;
            };
            if watch.in_flight.is_some() || watch.settled.as_ref() == Some(&collection.version) {
                continue;
            }
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            ready.push(watch.response(name, collection, &nonce));
            watch.in_flight = Some((nonce, collection.clone()));
        }
        for response in ready {
            let (collection, version) = (
                response.collection.clone(),
                response.system_version_info.clone(),
            );
            tracing::debug!(target: "mcp", sink = self.id, collection, version, nonce = response.nonce, resources = response.resources.len(), removed = response.removed_resources.len(), "sending");
            let sent = tokio::select! {
                sent = responses.send_timeout(response, SEND_TIMEOUT) => sent,
                // A sink that takes nothing does not hold up the end.
                () = self.shared.drain.signaled() => {
                    return Err(Status::unavailable("the source is shutting down"));
                }
            };
            match sent {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                    self.shared.metrics.send_failed(tonic::Code::Cancelled);
                    return Err(Status::cancelled("the sink is gone"));
                }
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    self.shared
                        .metrics
                        .send_failed(tonic::Code::DeadlineExceeded);
                    return Err(Status::deadline_exceeded("the sink takes no data"));
                }
            }
            self.describe_collection(&collection, |status| status.sent = version);
        }
        Ok(())
    }

    fn describe(&self, change: impl FnOnce(&mut SinkStatus)) {
        if let Some(status) = self.shared.sinks.lock().get_mut(&self.id) {
            change(status);
        }
    }

    fn describe_collection(&self, collection: &str, change: impl FnOnce(&mut CollectionStatus)) {
        self.describe(|status| {
            if let Some(status) = status.collections.get_mut(collection) {
                change(status);
            }
        });
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.shared.sinks.lock().remove(&self.id);
        tracing::debug!(target: "mcp", sink = self.id, "stream closed");
    }
}

impl Watch {
    fn response(&self, name: &str, collection: &Collection, nonce: &str) -> Resources {
        let delta = match (&self.base, self.is_incremental) {
            (Base::Versions(versions), true) => Some(collection.since(versions)),
            (Base::Accepted(accepted), true) => Some(collection.since_collection(accepted)),
            (Base::Unknown, _) | (_, false) => None,
        };
        let incremental = delta.is_some();
        let Delta { updated, removed } = delta.unwrap_or_else(|| Delta {
            updated: collection.resources.values().cloned().collect(),
            removed: Vec::new(),
        });
        Resources {
            system_version_info: collection.version.clone(),
            collection: name.to_owned(),
            resources: updated.iter().map(|r| r.as_ref().clone()).collect(),
            removed_resources: removed,
            nonce: nonce.to_owned(),
            incremental,
        }
    }
}

impl RequestLimit {
    /// The whole burst is there yet.
    pub(crate) fn new() -> Self {
        Self {
            tokens: f64::from(REQUEST_BURST),
            at: Instant::now(),
        }
    }

    /// Waits until one more request is within the limit; the sink's later requests wait in its connection.
    pub(crate) async fn wait(&mut self) {
        let rate = f64::from(REQUEST_BURST);
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + earned).min(rate);
        self.at = now;
        if self.tokens < 1.0 {
            let missing = Duration::from_secs_f64((1.0 - self.tokens) / rate);
            tokio::time::sleep(missing).await;
            self.at = Instant::now();
            self.tokens = 1.0;
        }
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks `count` times; how long that took.
    async fn ask(limit: &mut RequestLimit, count: u32) -> Duration {
        let begun = Instant::now();
        for _ in 0..count {
            limit.wait().await;
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_then_each_request_waits_for_its_share_of_a_second() {
        let mut limit = RequestLimit::new();
        assert_eq!(ask(&mut limit, REQUEST_BURST).await, Duration::ZERO);
        let took = ask(&mut limit, REQUEST_BURST / 2).await;
        assert!((500..600).contains(&took.as_millis()), "{took:?}");
        // However long it was quiet: one burst, no more.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(ask(&mut limit, REQUEST_BURST).await, Duration::ZERO);
        assert!(ask(&mut limit, 1).await >= Duration::from_millis(10));
    }
}
