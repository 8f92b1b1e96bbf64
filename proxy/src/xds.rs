//! xDS: where configuration comes from. One ADS stream for whatever says `ads`; a stream of its own for each type of each other
//! gRPC source (each secret, as Envoy has it); a watch for each file.
//!
//! Flow: the store tells what is wanted ([`Wanted`](crate::config::Wanted)) → [`run_sources`] keeps a task for each source →
//! [`stream`] opens, asks and answers, in one of two variants ([`sotw`], [`delta`]) → the store applies.
//!
//! Order: clusters first, listeners once the clusters know their hosts, so that nothing is served before it can be reached.

mod delta;
mod file;
mod service;
mod sotw;
mod source;
mod stats;
mod stream;
mod ttl;

pub(crate) use source::{GrpcSource, INITIAL_FETCH_TIMEOUT, Source, fetch_timeout};
pub(crate) use stats::XdsStats;

use crate::{
    bootstrap::{Bootstrap, DynamicSource},
    config::{ConfigStore, Key, Kind},
    upstream::GrpcChannel,
};
use proto_component::task;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use stream::Subscriber;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Tells when the first configuration is there.
pub(crate) struct Ready(watch::Receiver<Progress>);

/// How far the first configuration has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    clusters: bool,
    listeners: bool,
}

impl Ready {
    /// Waits for the first clusters and listeners, or until they have taken too long.
    pub(crate) async fn wait(mut self) {
        // The sender is gone only when its task is: nothing more to wait for.
        let _ = self
            .0
            .wait_for(|progress| progress.clusters && progress.listeners)
            .await;
    }
}

/// Starts what the bootstrap's dynamic resources ask for, and whatever is asked for later.
pub(crate) fn start(store: &Arc<ConfigStore>, bootstrap: &Bootstrap) -> Ready {
    let dynamic = &bootstrap.dynamic;
    let (progress, told) = watch::channel(Progress::default());
    task::spawn(
        "xds",
        run_sources(store.clone(), dynamic.ads.clone().map(Arc::new)),
    );
    task::spawn("demand", store.clone().run_demand());
    for layer in &dynamic.runtime {
        store.want_runtime(layer);
    }
    task::spawn(
        "first-configuration",
        first(
            store.clone(),
            dynamic.clusters.clone(),
            dynamic.listeners.clone(),
            progress,
        ),
    );
    Ready(told)
}

/// Asks for clusters, and for listeners once the clusters are warm or have taken too long.
async fn first(
    store: Arc<ConfigStore>,
    clusters: Option<DynamicSource>,
    listeners: Option<DynamicSource>,
    progress: watch::Sender<Progress>,
) {
    if let Some(dynamic) = clusters {
        await_first(&store, Kind::Cluster, &dynamic).await;
        // Their endpoints follow; each cluster has a deadline of its own.
        let deadline = Instant::now() + dynamic.timeout;
        let _ = tokio::time::timeout_at(deadline, store.clusters_ready()).await;
    }
    progress.send_modify(|progress| progress.clusters = true);
    if let Some(dynamic) = listeners {
        await_first(&store, Kind::Listener, &dynamic).await;
    }
    progress.send_modify(|progress| progress.listeners = true);
}

/// Without an answer in time the proxy goes on with what it has; the answer is still waited for.
async fn await_first(store: &Arc<ConfigStore>, kind: Kind, dynamic: &DynamicSource) {
    store.want_all(kind, dynamic.source.clone());
    let answered = tokio::time::timeout(dynamic.timeout, store.answered(kind)).await;
    if answered.is_err() {
        store.xds_stats.of(kind).init_fetch_timeout.inc();
        tracing::warn!(target: "config", ?kind, "initial fetch timed out");
    }
}

/// Keeps a task for every source that something is wanted of.
async fn run_sources(store: Arc<ConfigStore>, ads: Option<Arc<GrpcSource>>) {
    let mut wanted = store.wanted();
    let mut running: HashMap<Key, CancellationToken> = HashMap::new();
    if let Some(ads) = ads {
        // It lives as long as the process, whatever is wanted of it.
        spawn(&store, &ads, None, CancellationToken::new());
    }
    loop {
        let now = wanted.borrow_and_update().clone();
        running.retain(|key, token| {
            let is_wanted = now.contains_key(key);
            if !is_wanted {
                token.cancel();
            }
            is_wanted
        });
        for key in now.keys().filter(|key| key.source != Source::Ads) {
            if running.contains_key(key) {
                continue;
            }
            let token = CancellationToken::new();
            running.insert(key.clone(), token.clone());
            match &key.source {
                Source::Grpc(source) => spawn(&store, source, Some(key.clone()), token),
                Source::File(file) => {
                    task::spawn(
                        "xds-file",
                        file::follow(store.clone(), key.clone(), file.clone(), token),
                    );
                }
                Source::Ads => {}
            }
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

fn spawn(
    store: &Arc<ConfigStore>,
    source: &Arc<GrpcSource>,
    only: Option<Key>,
    closed: CancellationToken,
) {
    // It was checked with the source.
    let metadata = source.metadata().unwrap_or_default();
    let subscriber = Subscriber {
        store: store.clone(),
        channel: GrpcChannel::new(
            store.server.clusters.clone(),
            &source.cluster,
            &source.authority,
        ),
        metadata,
        source: source.clone(),
        only,
    };
    if source.is_delta {
        task::spawn("xds", stream::run::<delta::Delta>(subscriber, closed));
    } else {
        task::spawn(
            "xds",
            stream::run::<sotw::StateOfTheWorld>(subscriber, closed),
        );
    }
}

/// Versions of what is held, by name.
type Versions = BTreeMap<String, String>;
