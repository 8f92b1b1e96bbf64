//! xDS: where configuration comes from. One ADS stream (state of the world or delta) for clusters, endpoints, listeners and
//! routes; one stream for each SDS secret.
//!
//! Order: clusters first, listeners once the clusters know their hosts, so that nothing is served before it can be reached.

mod ads;
mod delta;
mod sds;
mod stats;

pub(crate) use sds::run_secrets;

use crate::{
    bootstrap::Bootstrap,
    config::{ConfigStore, Kind, Wanted},
    invalid::Invalid,
    upstream::GrpcChannel,
};
use proto::envoy::config::core::v3::{
    ApiConfigSource, ConfigSource, GrpcService, api_config_source::ApiType,
    config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
};
use proto_component::{backoff::Backoff, task};
use stats::XdsStats;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tonic::metadata::{MetadataKey, MetadataMap};

/// How long the first answer about clusters or listeners is waited for.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a broken stream is opened again: from the first to the second, with jitter.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A stream that lived so long was a good one: the next failure begins with the short pause again.
const GOOD_STREAM: Duration = Duration::from_secs(30);

/// Whether a source means the ADS stream.
pub(crate) fn is_ads(source: &ConfigSource) -> bool {
    matches!(
        source.config_source_specifier,
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_))
    )
}

/// Checks that `source` is one that we can use.
pub(crate) fn check_source(source: &ApiConfigSource) -> Result<(), Invalid> {
    match source.api_type() {
        ApiType::Grpc | ApiType::DeltaGrpc => {}
        _ => return Err(Invalid::new("only GRPC and DELTA_GRPC are supported").at("api_type")),
    }
    // AUTO and V2 were dropped by Envoy as well; an unset version is read as V3.
    if source.transport_api_version == 1 {
        return Err(Invalid::new("only V3 is spoken").at("transport_api_version"));
    }
    grpc_target(source).map(|_| ())
}

/// The gRPC service of a source.
fn grpc_target(source: &ApiConfigSource) -> Result<&GrpcService, Invalid> {
    let service = source
        .grpc_services
        .first()
        .ok_or_else(|| Invalid::new("one is needed").at("grpc_services"))?;
    match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(_)) => Ok(service),
        _ => Err(Invalid::new("only envoy_grpc is supported").at("grpc_services[0]")),
    }
}

/// A channel to the service of a source, and the metadata that goes with each call.
fn channel(
    store: &ConfigStore,
    source: &ApiConfigSource,
) -> Result<(GrpcChannel, MetadataMap), Invalid> {
    let service = grpc_target(source)?;
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &service.target_specifier else {
        return Err(Invalid::new("only envoy_grpc is supported"));
    };
    let mut metadata = MetadataMap::new();
    for header in &service.initial_metadata {
        let name = MetadataKey::from_bytes(header.key.as_bytes())
            .map_err(|error| Invalid::new(error.to_string()).at("initial_metadata"))?;
        let value = header
            .value
            .parse()
            .map_err(|_| Invalid::new("not a header's value").at("initial_metadata"))?;
        metadata.insert(name, value);
    }
    Ok((
        GrpcChannel::new(
            store.server.clusters.clone(),
            &target.cluster_name,
            &target.authority,
        ),
        metadata,
    ))
}

/// Tells when the first configuration is there.
pub(crate) struct Ready(Option<watch::Receiver<Progress>>);

/// How far the first configuration has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    clusters: bool,
    listeners: bool,
}

impl Ready {
    /// Waits for the first clusters and listeners, or until they have taken too long.
    pub(crate) async fn wait(mut self) {
        if let Some(progress) = &mut self.0 {
            // The sender is gone only when the stream's task is: nothing more to wait for.
            let _ = progress
                .wait_for(|progress| progress.clusters && progress.listeners)
                .await;
        }
    }
}

/// What a stream's task works with.
struct Client {
    store: Arc<ConfigStore>,
    channel: GrpcChannel,
    metadata: MetadataMap,
    stats: XdsStats,
    has_cds: bool,
    has_lds: bool,
    progress: watch::Sender<Progress>,
}

impl Client {
    /// What to ask for of `kind` now; `None` for nothing at all, an empty list for everything.
    fn names(&self, kind: Kind, wanted: &Wanted) -> Option<Vec<String>> {
        let named = |names: &Vec<String>| (!names.is_empty()).then(|| names.clone());
        match kind {
            Kind::Cluster => self.has_cds.then(Vec::new),
            // Listeners come after the clusters they lead to.
            Kind::Listener => (self.has_lds && self.progress.borrow().clusters).then(Vec::new),
            Kind::Endpoint => named(&wanted.endpoints),
            Kind::Route => named(&wanted.routes),
            Kind::Secret => named(&wanted.secrets),
        }
    }

    /// A response of `kind` has been dealt with.
    fn answered(&self, kind: Kind) {
        match kind {
            Kind::Cluster if !self.progress.borrow().clusters => {
                let (store, progress) = (self.store.clone(), self.progress.clone());
                task::spawn("first-clusters", async move {
                    // Endpoints follow on the same stream.
                    let _ =
                        tokio::time::timeout(INITIAL_FETCH_TIMEOUT, store.clusters_ready()).await;
                    progress.send_if_modified(|progress| {
                        !std::mem::replace(&mut progress.clusters, true)
                    });
                });
            }
            Kind::Listener => {
                self.progress
                    .send_if_modified(|progress| !std::mem::replace(&mut progress.listeners, true));
            }
            _ => {}
        }
    }
}

impl Client {
    /// Waits until the server's cluster knows its hosts, so that the first attempt is not in vain.
    async fn reachable(&self) {
        if let Some(cluster) = self.channel.cluster() {
            // A name that does not resolve is the stream's error then.
            let _ = tokio::time::timeout(RETRY.1, cluster.ready()).await;
        }
    }
}

/// Starts what the bootstrap's dynamic resources ask for.
pub(crate) fn start(store: &Arc<ConfigStore>, bootstrap: &Bootstrap) -> Ready {
    let dynamic = &bootstrap.dynamic;
    let Some(ads) = &dynamic.ads else {
        return Ready(None);
    };
    // It was checked with the bootstrap.
    let Ok((channel, metadata)) = channel(store, ads) else {
        return Ready(None);
    };
    let (progress, told) = watch::channel(Progress {
        clusters: !dynamic.has_cds,
        listeners: !dynamic.has_lds,
    });
    let client = Client {
        store: store.clone(),
        channel,
        metadata,
        stats: XdsStats::new(&store.server.stats),
        has_cds: dynamic.has_cds,
        has_lds: dynamic.has_lds,
        progress: progress.clone(),
    };
    task::spawn("initial-fetch", async move {
        // Without an answer the proxy serves what it has.
        tokio::time::sleep(INITIAL_FETCH_TIMEOUT).await;
        progress.send_if_modified(|progress| !std::mem::replace(&mut progress.clusters, true));
        tokio::time::sleep(INITIAL_FETCH_TIMEOUT).await;
        progress.send_if_modified(|progress| !std::mem::replace(&mut progress.listeners, true));
    });
    if ads.api_type() == ApiType::DeltaGrpc {
        task::spawn("ads", delta::run(client));
    } else {
        task::spawn("ads", ads::run(client));
    }
    Ready(Some(told))
}

/// Pauses between streams.
struct Pause(Backoff);

impl Pause {
    fn new() -> Self {
        Self(Backoff::new(RETRY.0, RETRY.1))
    }

    async fn after(&mut self, lived: Duration) {
        if lived >= GOOD_STREAM {
            self.0.reset();
        }
        tokio::time::sleep(self.0.next_delay()).await;
    }
}
