//! The sink: subscribes to collections, keeps what it has got, and hands each change to one consumer.
//!
//! [`Sink::next`] yields an [`Update`] with the whole state of a collection (increments are folded in already) and what
//! changed; the consumer accepts it or refuses it with a reason. While it works, newer updates of the same collection
//! replace the one that waits. After a lost connection the journal tells the source what we have, so that only the rest comes.

use crate::{
    metrics::McpMetrics,
    snapshot::{Collection, Delta},
    wire::{
        RequestResources, Resources, resource_sink_server::ResourceSink,
        resource_sink_server::ResourceSinkServer, resource_source_client::ResourceSourceClient,
    },
};
use indexmap::IndexMap;
use parking_lot::Mutex;
use proto_component::{backoff::Backoff, drain::Drain, task};
use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

mod journal;
mod session;

pub use journal::{CollectionStatus, SinkStatus};

/// Requests that wait for a slow connection.
const OUTGOING: usize = 16;
/// A stream that has lived this long was a good one: the next failure starts the back-off anew.
const GOOD_STREAM: Duration = Duration::from_secs(10);

/// How long a call that takes no requests any more may take to say why.
const CALL_END: Duration = Duration::from_secs(1);

/// What to subscribe to, and as whom.
#[derive(Clone, Debug, Default)]
pub struct SinkOptions {
    /// Our id, as the source sees it.
    pub id: String,
    /// Our annotations.
    pub annotations: BTreeMap<String, String>,
    /// gRPC metadata sent with the stream.
    pub metadata: Vec<(String, String)>,
    /// The collections.
    pub collections: Vec<Subscription>,
    /// Largest message taken; 64 MiB if zero.
    pub max_message: usize,
}

/// One collection to subscribe to.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// `istio/networking/v1alpha3/virtualservices`.
    pub collection: String,
    /// Whether increments are wanted.
    pub incremental: bool,
    /// Whether we can do without: a source that does not know the collection is then asked again without it.
    pub optional: bool,
}

/// The consumer's end.
pub struct Sink {
    shared: Arc<Shared>,
}

/// Looks at a sink from anywhere: what is synced, what it has. Cheap to clone.
#[derive(Clone)]
pub struct SinkView {
    shared: Arc<Shared>,
}

/// A new state of a collection. Dropping it without an answer refuses it.
pub struct Update {
    /// The collection's name.
    pub collection: String,
    /// Its whole state.
    pub state: Arc<Collection>,
    /// What changed since the state that was accepted last.
    pub delta: Delta,
    answer: Option<Answer>,
}

struct Answer {
    shared: Arc<Shared>,
    epoch: u64,
    nonce: String,
}

struct Shared {
    options: SinkOptions,
    metrics: McpMetrics,
    drain: Drain,
    journal: Mutex<journal::Journal>,
    /// Waiting for the consumer; at most one a collection.
    pending: Mutex<IndexMap<String, Update>>,
    arrived: Notify,
    /// Waiting to be sent; at most one for each update handed out.
    answers: Mutex<Vec<(u64, RequestResources)>>,
    answered: Notify,
    /// Number of the current stream; an older one ends.
    epoch: watch::Sender<u64>,
    /// Ticks whenever the journal changes.
    changed: watch::Sender<()>,
}

impl Subscription {
    /// A collection that the source must know; with increments.
    pub fn required(collection: impl Into<String>) -> Self {
        Self {
            collection: collection.into(),
            incremental: true,
            optional: false,
        }
    }

    /// A collection that the source may not know; with increments.
    pub fn optional(collection: impl Into<String>) -> Self {
        Self {
            optional: true,
            ..Self::required(collection)
        }
    }
}

impl Sink {
    /// Dials a source and stays connected until the drain.
    pub fn dial(channel: Channel, options: SinkOptions, metrics: McpMetrics, drain: Drain) -> Self {
        let sink = Self::listen(options, metrics, drain);
        let shared = sink.shared.clone();
        task::spawn("mcp-sink", async move {
            stay_connected(&shared, &channel).await;
        });
        sink
    }

    /// Waits for a source to dial us; see [`Sink::service`].
    pub fn listen(options: SinkOptions, metrics: McpMetrics, drain: Drain) -> Self {
        let journal = journal::Journal::new(&options.collections);
        Self {
            shared: Arc::new(Shared {
                options,
                metrics,
                drain,
                journal: Mutex::new(journal),
                pending: Mutex::default(),
                arrived: Notify::new(),
                answers: Mutex::default(),
                answered: Notify::new(),
                epoch: watch::channel(0).0,
                changed: watch::channel(()).0,
            }),
        }
    }

    /// The gRPC service for a source that dials us. A newer stream takes the place of an older one.
    pub fn service(&self) -> ResourceSinkServer<impl ResourceSink + use<>> {
        ResourceSinkServer::new(Dialled(self.shared.clone()))
            .max_decoding_message_size(self.shared.max_message())
    }

    /// The next update; `None` once the process drains.
    pub async fn next(&self) -> Option<Update> {
        loop {
            if self.shared.drain.is_draining() {
                return None;
            }
            if let Some((_, update)) = self.shared.pending.lock().shift_remove_index(0) {
                return Some(update);
            }
            tokio::select! {
                () = self.shared.arrived.notified() => {}
                () = self.shared.drain.signaled() => return None,
            }
        }
    }

    /// A view for status pages and readiness.
    pub fn view(&self) -> SinkView {
        SinkView {
            shared: self.shared.clone(),
        }
    }
}

impl SinkView {
    /// Whether each subscribed collection has been received and answered once.
    pub fn is_synced(&self) -> bool {
        self.shared.journal.lock().missing().is_empty()
    }

    /// Collections that have not been received yet.
    pub fn missing(&self) -> Vec<String> {
        self.shared.journal.lock().missing()
    }

    /// Resolves once everything is synced.
    pub async fn synced(&self) {
        let mut changed = self.shared.changed.subscribe();
        while !self.is_synced() {
            // The sender lives as long as we do.
            let _ = changed.changed().await;
        }
    }

    /// The state of a collection that was accepted last.
    pub fn last_good(&self, collection: &str) -> Option<Arc<Collection>> {
        self.shared.journal.lock().accepted(collection)
    }

    /// Connection and collections, for a debug page.
    pub fn status(&self) -> SinkStatus {
        self.shared.journal.lock().status()
    }
}

impl Update {
    /// The state is in force.
    pub fn ack(mut self) {
        if let Some(answer) = self.answer.take() {
            answer.give(&self.collection, &self.state, None);
        }
    }

    /// The state is refused, for this reason; the source will not repeat it.
    pub fn nack(mut self, reason: impl Into<String>) {
        if let Some(answer) = self.answer.take() {
            let error = refusal(tonic::Code::InvalidArgument, reason.into());
            answer.give(&self.collection, &self.state, Some(error));
        }
    }

    /// Replaced by a newer one: nobody waits for its answer.
    fn supersede(mut self) {
        self.answer = None;
    }
}

impl Drop for Update {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            let error = refusal(tonic::Code::Internal, "the update was dropped".to_owned());
            answer.give(&self.collection, &self.state, Some(error));
        }
    }
}

impl Answer {
    fn give(
        self,
        collection: &str,
        state: &Arc<Collection>,
        error: Option<proto::google::rpc::Status>,
    ) {
        let shared = &self.shared;
        match &error {
            None => {
                shared.metrics.ack(collection);
                shared.journal.lock().accept(collection, state.clone());
            }
            Some(error) => {
                shared.metrics.nack(collection, error.code);
                tracing::warn!(target: "mcp", collection, version = state.version, error = error.message, "collection refused");
                shared.journal.lock().refuse(collection, &error.message);
            }
        }
        shared.changed.send_replace(());
        let request = RequestResources {
            sink_node: Some(shared.node()),
            collection: collection.to_owned(),
            response_nonce: self.nonce,
            error_detail: error,
            incremental: shared.is_incremental(collection),
            ..RequestResources::default()
        };
        shared.answers.lock().push((self.epoch, request));
        shared.answered.notify_one();
    }
}

fn refusal(code: tonic::Code, message: String) -> proto::google::rpc::Status {
    proto::google::rpc::Status {
        code: code as i32,
        message,
        ..Default::default()
    }
}

async fn stay_connected(shared: &Arc<Shared>, channel: &Channel) {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    loop {
        let begun = tokio::time::Instant::now();
        let mut asks_for_less = false;
        match connect(shared, channel.clone()).await {
            Ok(()) => tracing::info!(target: "mcp", "the source closed the stream"),
            Err(_) if shared.drain.is_draining() => return,
            Err(status) => {
                let dropped = shared.journal.lock().drop_unknown(&status);
                for collection in &dropped {
                    tracing::warn!(target: "mcp", collection, "the source does not know this collection; going on without it");
                }
                if !dropped.is_empty() {
                    shared.changed.send_replace(());
                    asks_for_less = true;
                }
                tracing::warn!(target: "mcp", code = ?status.code(), error = status.message(), attempts = backoff.attempts(), "no stream to the source");
            }
        }
        shared.journal.lock().disconnected();
        if asks_for_less {
            // No failure: the source names one unknown collection after the other.
            continue;
        }
        if begun.elapsed() > GOOD_STREAM {
            backoff.reset();
        }
        if !backoff.wait(&shared.drain).await {
            return;
        }
        shared.metrics.reconnected();
    }
}

async fn connect(shared: &Arc<Shared>, channel: Channel) -> Result<(), Status> {
    let (sender, receiver) = mpsc::channel(OUTGOING);
    let mut request = Request::new(ReceiverStream::new(receiver));
    for (key, value) in &shared.options.metadata {
        let key = key
            .parse::<tonic::metadata::MetadataKey<tonic::metadata::Ascii>>()
            .map_err(|_| Status::invalid_argument(format!("metadata key `{key}`")))?;
        let value = value
            .parse()
            .map_err(|_| Status::invalid_argument(format!("metadata value of `{key}`")))?;
        request.metadata_mut().insert(key, value);
    }
    let mut client = ResourceSourceClient::new(channel)
        .max_decoding_message_size(shared.max_message())
        .max_encoding_message_size(usize::MAX);
    let mut session = session::Session::new(shared, sender);
    // A source may wait for our requests before it answers with headers, so they go out beside the call.
    let open = client.establish_resource_stream(request);
    let subscribed = async {
        let outcome = session.subscribe().await;
        if outcome.is_err() {
            // Most often the call has failed, which says itself why.
            tokio::time::sleep(CALL_END).await;
        }
        outcome
    };
    let (responses, ()) = tokio::try_join!(open, subscribed)?;
    session.run(responses.into_inner()).await
}

/// The service for sources that dial us.
struct Dialled(Arc<Shared>);

#[tonic::async_trait]
impl ResourceSink for Dialled {
    type EstablishResourceStreamStream =
        Pin<Box<dyn Stream<Item = Result<RequestResources, Status>> + Send>>;

    async fn establish_resource_stream(
        &self,
        request: Request<Streaming<Resources>>,
    ) -> Result<Response<Self::EstablishResourceStreamStream>, Status> {
        let (sender, receiver) = mpsc::channel(OUTGOING);
        let shared = self.0.clone();
        let responses = request.into_inner();
        task::spawn("mcp-sink-stream", async move {
            let mut session = session::Session::new(&shared, sender);
            let outcome = match session.subscribe().await {
                Ok(()) => session.run(responses).await,
                Err(status) => Err(status),
            };
            if let Err(status) = outcome {
                tracing::info!(target: "mcp", code = ?status.code(), error = status.message(), "stream of a source ended");
            }
            shared.journal.lock().disconnected();
        });
        let requests = ReceiverStream::new(receiver).map(Ok);
        Ok(Response::new(Box::pin(requests)))
    }
}

impl Shared {
    fn max_message(&self) -> usize {
        match self.options.max_message {
            0 => 64 << 20,
            size => size,
        }
    }

    fn node(&self) -> crate::wire::SinkNode {
        crate::wire::SinkNode {
            id: self.options.id.clone(),
            annotations: self
                .options
                .annotations
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        }
    }

    fn is_incremental(&self, collection: &str) -> bool {
        self.options
            .collections
            .iter()
            .any(|wanted| wanted.collection == collection && wanted.incremental)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_component::{drain, grpc};

    #[tokio::test]
    async fn a_source_that_cannot_be_reached_is_told_so() {
        // Nobody listens where somebody did a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let channel = grpc::channel(&address, None, &grpc::ClientOptions::default()).unwrap();
        let (_trigger, drain) = drain::channel();
        let options = SinkOptions {
            collections: vec![Subscription::required("a"); 2 * OUTGOING],
            ..SinkOptions::default()
        };
        let metrics = McpMetrics::register("test", &prometheus::Registry::new()).unwrap();
        let sink = Sink::listen(options, metrics, drain);
        let status = connect(&sink.shared, channel).await.unwrap_err();
        assert!(!status.message().contains("takes no data"), "{status:?}");
    }
}
