//! ADS, delta: a response carries what changed and what is gone.

use super::{Client, Pause};
use crate::config::{Kind, Resource, Update};
use proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    google::rpc::{Code, Status},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

/// Patience for the server to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests on their way to the server.
const QUEUE: usize = 64;

/// The versions that we have, by type and name; told to the server when a stream begins.
type Versions = BTreeMap<Kind, BTreeMap<String, String>>;

/// What was asked for on this stream; an empty set means everything.
type Asked = BTreeMap<Kind, BTreeSet<String>>;

/// Keeps a stream open for ever.
pub(super) async fn run(client: Client) {
    let mut versions = Versions::new();
    let mut pause = Pause::new();
    client.reachable().await;
    loop {
        let began = Instant::now();
        let outcome = stream(&client, &mut versions).await;
        client.stats.control_plane.connected_state.set(0);
        match outcome {
            Ok(()) => tracing::info!(target: "ads", "stream closed by the server"),
            Err(error) => {
                for kind in Kind::ALL {
                    client.stats.of(kind).update_failure.inc();
                }
                tracing::warn!(target: "ads", %error, "stream failed");
            }
        }
        pause.after(began.elapsed()).await;
    }
}

async fn stream(client: &Client, versions: &mut Versions) -> Result<(), tonic::Status> {
    let (sender, requests) = mpsc::channel(QUEUE);
    let mut wanted = client.store.wanted();
    let mut progress = client.progress.subscribe();
    wanted.mark_unchanged();
    let mut asked = Asked::new();
    let mut is_first = true;
    ask(client, &mut asked, versions, &sender, &mut is_first).await;
    let mut request = tonic::Request::new(ReceiverStream::new(requests));
    *request.metadata_mut() = client.metadata.clone();
    let mut service = AggregatedDiscoveryServiceClient::new(client.channel.clone())
        .max_decoding_message_size(usize::MAX);
    let opened =
        tokio::time::timeout(OPEN_TIMEOUT, service.delta_aggregated_resources(request)).await;
    let mut responses = opened
        .map_err(|_| tonic::Status::deadline_exceeded("the server does not accept the stream"))??
        .into_inner();
    client.stats.control_plane.connected_state.set(1);
    tracing::info!(target: "ads", mode = "delta", "connected");
    loop {
        let response = tokio::select! {
            response = responses.message() => Some(response?),
            _ = wanted.changed() => None,
            _ = progress.changed() => None,
        };
        match response {
            Some(None) => return Ok(()),
            Some(Some(response)) => answer(client, response, versions, &sender).await,
            None => {}
        }
        ask(client, &mut asked, versions, &sender, &mut is_first).await;
    }
}

async fn ask(
    client: &Client,
    asked: &mut Asked,
    versions: &mut Versions,
    sender: &mpsc::Sender<DeltaDiscoveryRequest>,
    is_first: &mut bool,
) {
    let wanted = client.store.wanted().borrow().clone();
    for kind in Kind::ALL {
        let names = client.names(kind, &wanted);
        let is_new = !asked.contains_key(&kind);
        let Some(names) = names.or_else(|| (!is_new).then(Vec::new)) else {
            continue;
        };
        let names: BTreeSet<String> = names.into_iter().collect();
        let known = asked.entry(kind).or_default();
        if !is_new && *known == names {
            continue;
        }
        client.stats.of(kind).update_attempt.inc();
        let unsubscribe: Vec<String> = known.difference(&names).cloned().collect();
        let have = versions.entry(kind).or_default();
        for gone in &unsubscribe {
            have.remove(gone);
        }
        let request = DeltaDiscoveryRequest {
            node: std::mem::take(is_first).then(|| client.store.server.node.clone()),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.difference(known).cloned().collect(),
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: if is_new {
                have.clone()
            } else {
                BTreeMap::new()
            },
            ..DeltaDiscoveryRequest::default()
        };
        *known = names;
        // The stream has ended if nobody takes it.
        let _ = sender.send(request).await;
    }
}

async fn answer(
    client: &Client,
    response: DeltaDiscoveryResponse,
    versions: &mut Versions,
    sender: &mpsc::Sender<DeltaDiscoveryRequest>,
) {
    let Some(kind) = Kind::of(&response.type_url) else {
        tracing::warn!(target: "ads", type_url = response.type_url, "response of an unknown type");
        return;
    };
    let have = versions.entry(kind).or_default();
    let fresh: Vec<(String, String)> = response
        .resources
        .iter()
        .map(|resource| (resource.name.clone(), resource.version.clone()))
        .collect();
    for name in &response.removed_resources {
        have.remove(name);
    }
    let update = Update {
        is_full: false,
        version: response.system_version_info.clone(),
        resources: response
            .resources
            .into_iter()
            .filter_map(|resource| {
                Some(Resource {
                    version: resource.version,
                    any: resource.resource?,
                })
            })
            .collect(),
        removed: response.removed_resources,
    };
    let outcome = client.store.apply(kind, update);
    client
        .stats
        .updated(kind, &response.system_version_info, outcome.is_ok());
    match &outcome {
        Ok(()) => {
            tracing::debug!(target: "ads", ?kind, version = response.system_version_info, count = fresh.len(), "accepted");
            have.extend(fresh);
        }
        Err(error) => {
            tracing::warn!(target: "ads", ?kind, version = response.system_version_info, %error, "rejected");
        }
    }
    client.answered(kind);
    let request = DeltaDiscoveryRequest {
        type_url: response.type_url,
        response_nonce: response.nonce,
        error_detail: outcome.err().map(|message| Status {
            code: Code::InvalidArgument.into(),
            message,
            ..Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    };
    let _ = sender.send(request).await;
}
