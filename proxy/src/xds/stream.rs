//! The life of a discovery stream, the same for both variants: open, ask for what is wanted, answer what comes, and again
//! after a pause when it breaks.

use super::{GrpcSource, Source, Versions, ttl::TimeToLive};
use crate::{
    config::{ConfigStore, Key, Kind, Names, Update, Wanted},
    upstream::GrpcChannel,
};
use proto::{envoy::config::core::v3::Node, google::rpc};
use proto_component::backoff::Backoff;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, Streaming, metadata::MetadataMap};

/// Patience for the server to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests on their way to the server; more types than there are can never wait.
const QUEUE: usize = 64;
/// A stream that lived so long was a good one: the next failure begins with the short pause again.
const GOOD_STREAM: Duration = Duration::from_secs(30);

/// What a stream's task works with.
pub(super) struct Subscriber {
    pub(super) store: Arc<ConfigStore>,
    pub(super) channel: GrpcChannel,
    pub(super) metadata: MetadataMap,
    pub(super) source: Arc<GrpcSource>,
    /// The one subscription that it serves; none for ADS, which serves all of its source.
    pub(super) only: Option<Key>,
}

/// A response, read: what it is about, and what is to be applied.
pub(super) struct Incoming {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) update: Update,
    /// Resources by name with the time that each may live; a heartbeat has nothing to apply.
    pub(super) lives: Vec<(String, Option<Duration>)>,
}

/// How requests and responses look: state of the world, or delta.
pub(super) trait Variant: Default + Send + 'static {
    /// Goes to the server.
    type Request: Send + 'static;
    /// Comes from it.
    type Response: Send + 'static;
    /// For logs.
    const NAME: &'static str;

    /// Opens the stream of one type, or of all.
    fn open(
        kind: Option<Kind>,
        channel: GrpcChannel,
        request: tonic::Request<ReceiverStream<Self::Request>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Response>>, Status>> + Send;

    /// A new stream begins: nonces and subscriptions of the one before are void.
    fn begin(&mut self);

    /// The request that asks for `names` of `kind`; nothing when that was asked already. `held` tells what is held of it, with
    /// versions.
    fn ask(
        &mut self,
        kind: Kind,
        names: Option<&Arc<Names>>,
        held: impl FnOnce() -> Versions,
    ) -> Option<Self::Request>;

    /// Reads a response.
    fn read(&mut self, kind: Option<Kind>, response: Self::Response) -> Incoming;

    /// The request that accepts or refuses what was read.
    fn answer(
        &mut self,
        kind: Kind,
        incoming: &Answered,
        error: Option<rpc::Status>,
    ) -> Self::Request;

    /// Says who asks.
    fn set_node(request: &mut Self::Request, node: Node);
}

/// What an answer refers to.
pub(super) struct Answered {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) version: String,
}

/// Keeps a stream open until it is no longer wanted.
pub(super) async fn run<V: Variant>(subscriber: Subscriber, closed: CancellationToken) {
    let mut variant = V::default();
    let mut lives = TimeToLive::default();
    let (first, most) = subscriber.source.retry;
    let mut backoff = Backoff::new(first, most);
    let work = async {
        subscriber.reachable().await;
        loop {
            let began = Instant::now();
            let outcome = subscriber.stream(&mut variant, &mut lives).await;
            subscriber.ended(outcome.as_ref().err());
            if began.elapsed() >= GOOD_STREAM {
                backoff.reset();
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = lives.expire(&subscriber.store) => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.cancelled() => {}
    }
}

impl Subscriber {
    /// Waits until the server's cluster knows its hosts, so that the first attempt is not in vain.
    async fn reachable(&self) {
        if let Some(cluster) = self.channel.cluster() {
            // A name that does not resolve is the stream's error then.
            let _ = tokio::time::timeout(OPEN_TIMEOUT, cluster.ready()).await;
        }
    }

    fn kind(&self) -> Option<Kind> {
        self.only.as_ref().map(|key| key.kind)
    }

    /// The subscription of a type on this stream.
    fn key(&self, kind: Kind) -> Key {
        match &self.only {
            Some(key) => key.clone(),
            None => Key::of(kind, Source::Ads),
        }
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let only = self.kind();
        Kind::ALL
            .into_iter()
            .filter(move |kind| only.is_none_or(|only| only == *kind))
    }

    fn ended(&self, error: Option<&Status>) {
        let stats = &self.store.xds_stats;
        if self.only.is_none() {
            stats.control_plane.connected_state.set(0);
        }
        let cluster = &self.source.cluster;
        match error {
            None => tracing::info!(target: "ads", cluster, "stream closed by the server"),
            Some(error) => {
                for kind in self.kinds() {
                    stats.of(kind).update_failure.inc();
                }
                tracing::warn!(target: "ads", cluster, %error, "stream failed");
            }
        }
    }

    async fn stream<V: Variant>(
        &self,
        variant: &mut V,
        lives: &mut TimeToLive,
    ) -> Result<(), Status> {
        let (sender, requests) = mpsc::channel(QUEUE);
        let mut line = Line {
            subscriber: self,
            sender,
            is_first: true,
        };
        variant.begin();
        let mut wanted = self.store.wanted();
        let now = wanted.borrow_and_update().clone();
        // Some servers answer the call only with the first response: the first requests are on their way before it.
        line.ask(variant, &now).await;
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        *request.metadata_mut() = self.metadata.clone();
        let opening = V::open(self.kind(), self.channel.clone(), request);
        let mut responses = tokio::time::timeout(OPEN_TIMEOUT, opening)
            .await
            .map_err(|_| Status::deadline_exceeded("the server does not accept the stream"))??
            .into_inner();
        if self.only.is_none() {
            self.store.xds_stats.control_plane.connected_state.set(1);
        }
        tracing::info!(target: "ads", cluster = self.source.cluster, kind = ?self.kind(), variant = V::NAME, "connected");
        loop {
            tokio::select! {
                response = responses.message() => match response? {
                    None => return Ok(()),
                    Some(response) => line.answer(variant, lives, response).await,
                },
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = lives.expire(&self.store) => {}
            }
            let now = wanted.borrow_and_update().clone();
            line.ask(variant, &now).await;
        }
    }
}

/// The way to the server on one stream.
struct Line<'a, T> {
    subscriber: &'a Subscriber,
    sender: mpsc::Sender<T>,
    is_first: bool,
}

impl<T: Send + 'static> Line<'_, T> {
    async fn send<V: Variant<Request = T>>(&mut self, mut request: T) {
        if std::mem::take(&mut self.is_first) || self.subscriber.source.repeats_node {
            V::set_node(&mut request, self.subscriber.store.server.node.clone());
        }
        // The stream has ended if nobody takes it.
        let _ = self.sender.send(request).await;
    }

    /// Sends a request for every type whose names have changed.
    async fn ask<V: Variant<Request = T>>(&mut self, variant: &mut V, wanted: &Wanted) {
        for kind in self.subscriber.kinds() {
            let key = self.subscriber.key(kind);
            let held = || self.subscriber.store.held(&key);
            if let Some(request) = variant.ask(kind, wanted.get(&key), held) {
                let stats = self.subscriber.store.xds_stats.of(kind);
                stats.update_attempt.inc();
                self.send::<V>(request).await;
            }
        }
    }

    async fn answer<V: Variant<Request = T>>(
        &mut self,
        variant: &mut V,
        lives: &mut TimeToLive,
        response: V::Response,
    ) {
        let began = Instant::now();
        let store = &self.subscriber.store;
        let incoming = variant.read(self.subscriber.kind(), response);
        let own = self
            .subscriber
            .kind()
            .filter(|kind| incoming.type_url.is_empty() || incoming.type_url == kind.type_url());
        let Some(kind) = own.or_else(|| Kind::of(&incoming.type_url)) else {
            tracing::warn!(target: "ads", type_url = incoming.type_url, "response of an unknown type");
            return;
        };
        let key = self.subscriber.key(kind);
        let Incoming {
            type_url,
            nonce,
            update,
            lives: times,
        } = incoming;
        for (name, ttl) in &times {
            lives.renew(&key, name, *ttl);
        }
        for name in &update.removed {
            lives.forget(&key, name);
        }
        let answered = Answered {
            type_url,
            nonce,
            version: update.version.clone(),
        };
        let count = update.resources.len();
        let outcome = store.apply(&key, update);
        store
            .xds_stats
            .updated(kind, &answered.version, outcome.is_ok(), began.elapsed());
        let error = match outcome {
            Ok(()) => {
                tracing::debug!(target: "ads", ?kind, version = answered.version, count, "accepted");
                None
            }
            Err(message) => {
                tracing::warn!(target: "ads", ?kind, version = answered.version, error = message, "rejected");
                Some(rpc::Status {
                    code: rpc::Code::InvalidArgument.into(),
                    message,
                    ..rpc::Status::default()
                })
            }
        };
        let request = variant.answer(kind, &answered, error);
        self.send::<V>(request).await;
    }
}

/// What was asked for on this stream.
pub(super) type Asked = BTreeMap<Kind, Arc<Names>>;
