//! The source: serves snapshots to any number of sinks, each at its own pace.
//!
//! A [`Source`] holds the current snapshot; every stream is a session of its own that compares what its sink has with the
//! current snapshot, so a slow sink delays nobody and skips what was overtaken.

use crate::{
    metrics::McpMetrics,
    snapshot::Snapshot,
    wire::{
        RequestResources, Resources, resource_sink_client::ResourceSinkClient,
        resource_source_server::ResourceSource, resource_source_server::ResourceSourceServer,
    },
};
use parking_lot::Mutex;
use proto_component::{backoff::Backoff, drain::Drain, listen::Peer, task};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

pub(crate) mod session;

pub use session::{CollectionStatus, SinkStatus};

/// The gRPC path of the source's only method (for metrics).
pub const STREAM_PATH: &str = "/istio.mcp.v1alpha1.ResourceSource/EstablishResourceStream";

/// Responses that wait for a slow connection, all collections together.
const OUTGOING: usize = 4;

/// Decides whether a peer may read; the text says why not.
pub type Authorize = Arc<dyn Fn(&Peer) -> Result<(), String> + Send + Sync>;

/// A source of collections; clones share everything.
#[derive(Clone)]
pub struct Source {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// Every collection that may ever be asked for.
    known: BTreeSet<String>,
    current: watch::Sender<Arc<Snapshot>>,
    sinks: Mutex<BTreeMap<u64, SinkStatus>>,
    next_id: AtomicU64,
    metrics: McpMetrics,
    authorize: Authorize,
    drain: Drain,
}

type Outgoing = Pin<Box<dyn Stream<Item = Result<Resources, Status>> + Send>>;

impl Source {
    /// A source of these collections; nothing is sent before the first [`Source::publish`].
    pub fn new(
        known: impl IntoIterator<Item = String>,
        metrics: McpMetrics,
        authorize: Authorize,
        drain: Drain,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                known: known.into_iter().collect(),
                current: watch::channel(Arc::new(Snapshot::new())).0,
                sinks: Mutex::default(),
                next_id: AtomicU64::new(1),
                metrics,
                authorize,
                drain,
            }),
        }
    }

    /// Makes a snapshot the current one; sinks are sent what differs from what they have.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.shared.current.send_replace(snapshot);
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.current.borrow().clone()
    }

    /// Whether this peer may read; the status says why not.
    pub(crate) fn authorize(&self, peer: &Peer) -> Result<(), Status> {
        (self.shared.authorize)(peer).map_err(Status::permission_denied)
    }

    /// When to end.
    pub(crate) fn drain(&self) -> Drain {
        self.shared.drain.clone()
    }

    /// Tells of each new snapshot.
    pub fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.current.subscribe()
    }

    /// Who is connected, and how far each one is.
    pub fn sinks(&self) -> Vec<SinkStatus> {
        self.shared.sinks.lock().values().cloned().collect()
    }

    /// The gRPC service.
    pub fn service(&self, max_message: usize) -> ResourceSourceServer<Self> {
        ResourceSourceServer::new(self.clone())
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(usize::MAX)
    }

    /// Dials a sink (`ResourceSink`) and serves it, again and again until the drain. `metadata` goes with each stream.
    pub async fn push_to(&self, channel: Channel, metadata: &[(String, String)]) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        loop {
            match self
                .push_once(channel.clone(), metadata, &mut backoff)
                .await
            {
                Ok(()) => tracing::info!(target: "mcp", "sink closed the stream"),
                Err(status) => {
                    tracing::warn!(target: "mcp", code = ?status.code(), error = status.message(), "cannot push to the sink");
                }
            }
            if !backoff.wait(&self.shared.drain).await {
                return;
            }
            self.shared.metrics.reconnected();
        }
    }

    async fn push_once(
        &self,
        channel: Channel,
        metadata: &[(String, String)],
        backoff: &mut Backoff,
    ) -> Result<(), Status> {
        let (sender, receiver) = mpsc::channel(OUTGOING);
        let mut request = Request::new(ReceiverStream::new(receiver));
        for (key, value) in metadata {
            let key = key
                .parse::<tonic::metadata::MetadataKey<tonic::metadata::Ascii>>()
                .map_err(|_| Status::invalid_argument(format!("metadata key `{key}`")))?;
            let value = value
                .parse()
                .map_err(|_| Status::invalid_argument(format!("metadata value of `{key}`")))?;
            request.metadata_mut().insert(key, value);
        }
        let requests = ResourceSinkClient::new(channel)
            .establish_resource_stream(request)
            .await?
            .into_inner();
        backoff.reset();
        session::run(&self.shared, Peer::default(), requests, sender).await
    }
}

#[tonic::async_trait]
impl ResourceSource for Source {
    type EstablishResourceStreamStream = Outgoing;

    async fn establish_resource_stream(
        &self,
        request: Request<Streaming<RequestResources>>,
    ) -> Result<Response<Outgoing>, Status> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .cloned()
            .unwrap_or_default();
        self.authorize(&peer)?;
        let (sender, receiver) = mpsc::channel(OUTGOING);
        let (end, ended) = tokio::sync::oneshot::channel();
        let shared = self.shared.clone();
        let requests = request.into_inner();
        task::spawn("mcp-source-stream", async move {
            let outcome = session::run(&shared, peer, requests, sender).await;
            // The client may be gone already.
            let _ = end.send(outcome);
        });
        // The session's end comes after everything that it has sent.
        let last = async move { ended.await.ok().and_then(Result::err).map(Err) };
        let responses = ReceiverStream::new(receiver).map(Ok).chain(
            tokio_stream::once(last)
                .then(|last| last)
                .filter_map(|end| end),
        );
        Ok(Response::new(Box::pin(responses)))
    }
}

impl Shared {
    fn register(&self, status: SinkStatus) -> u64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.sinks.lock().insert(id, status);
        id
    }
}
