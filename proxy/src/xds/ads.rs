//! ADS, state of the world: every response carries all resources of its type that were asked for.

use super::{Client, Pause};
use crate::config::{Kind, Resource, Update, Wanted};
use prost_types::Any;
use proto::{
    envoy::service::discovery::v3::{
        DiscoveryRequest, DiscoveryResponse, Resource as WireResource,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    google::rpc::{Code, Status},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

/// Patience for the server to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests on their way to the server.
const QUEUE: usize = 64;

/// Where we are with one type on one stream.
#[derive(Default)]
struct Subscription {
    names: Option<Vec<String>>,
    nonce: String,
}

/// Keeps a stream open for ever.
pub(super) async fn run(client: Client) {
    let mut versions = BTreeMap::new();
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

async fn stream(
    client: &Client,
    versions: &mut BTreeMap<Kind, String>,
) -> Result<(), tonic::Status> {
    let (sender, requests) = mpsc::channel(QUEUE);
    let mut wanted = client.store.wanted();
    let mut progress = client.progress.subscribe();
    let mut subscriptions: BTreeMap<Kind, Subscription> = BTreeMap::new();
    let mut is_first = true;
    let now = wanted.borrow_and_update().clone();
    // Some servers answer the call only with the first response: the first requests are on their way before it.
    ask(
        client,
        &now,
        &mut subscriptions,
        versions,
        &sender,
        &mut is_first,
    )
    .await;
    let mut request = tonic::Request::new(ReceiverStream::new(requests));
    *request.metadata_mut() = client.metadata.clone();
    let mut service = AggregatedDiscoveryServiceClient::new(client.channel.clone())
        .max_decoding_message_size(usize::MAX);
    let opened =
        tokio::time::timeout(OPEN_TIMEOUT, service.stream_aggregated_resources(request)).await;
    let mut responses = opened
        .map_err(|_| tonic::Status::deadline_exceeded("the server does not accept the stream"))??
        .into_inner();
    client.stats.control_plane.connected_state.set(1);
    tracing::info!(target: "ads", "connected");
    loop {
        let response = tokio::select! {
            response = responses.message() => Some(response?),
            _ = wanted.changed() => None,
            _ = progress.changed() => None,
        };
        match response {
            Some(None) => return Ok(()),
            Some(Some(response)) => {
                answer(client, response, &mut subscriptions, versions, &sender).await;
            }
            None => {}
        }
        let now = wanted.borrow_and_update().clone();
        ask(
            client,
            &now,
            &mut subscriptions,
            versions,
            &sender,
            &mut is_first,
        )
        .await;
    }
}

/// Sends a request for every type whose names have changed.
async fn ask(
    client: &Client,
    wanted: &Wanted,
    subscriptions: &mut BTreeMap<Kind, Subscription>,
    versions: &BTreeMap<Kind, String>,
    sender: &mpsc::Sender<DiscoveryRequest>,
    is_first: &mut bool,
) {
    for kind in Kind::ALL {
        let names = client.names(kind, wanted);
        let known = subscriptions.entry(kind).or_default();
        if known.names == names || (names.is_none() && known.names.is_none()) {
            continue;
        }
        client.stats.of(kind).update_attempt.inc();
        let request = DiscoveryRequest {
            version_info: versions.get(&kind).cloned().unwrap_or_default(),
            node: std::mem::take(is_first).then(|| client.store.server.node.clone()),
            // No names left means none, not all, for the types that are asked for by name.
            resource_names: names.clone().unwrap_or_default(),
            type_url: kind.type_url().to_owned(),
            response_nonce: known.nonce.clone(),
            ..DiscoveryRequest::default()
        };
        known.names = names;
        // The stream has ended if nobody takes it.
        let _ = sender.send(request).await;
    }
}

async fn answer(
    client: &Client,
    response: DiscoveryResponse,
    subscriptions: &mut BTreeMap<Kind, Subscription>,
    versions: &mut BTreeMap<Kind, String>,
    sender: &mpsc::Sender<DiscoveryRequest>,
) {
    let Some(kind) = Kind::of(&response.type_url) else {
        tracing::warn!(target: "ads", type_url = response.type_url, "response of an unknown type");
        return;
    };
    let known = subscriptions.entry(kind).or_default();
    known.nonce.clone_from(&response.nonce);
    let began = Instant::now();
    let count = response.resources.len();
    let update = Update {
        is_full: matches!(kind, Kind::Cluster | Kind::Listener),
        version: response.version_info.clone(),
        resources: response
            .resources
            .into_iter()
            .map(|any| unwrap(any, &response.version_info))
            .collect(),
        removed: Vec::new(),
    };
    let outcome = client.store.apply(kind, update);
    client
        .stats
        .updated(kind, &response.version_info, outcome.is_ok());
    client
        .stats
        .of(kind)
        .update_duration
        .record(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    match &outcome {
        Ok(()) => {
            tracing::debug!(target: "ads", ?kind, version = response.version_info, count, "accepted");
        }
        Err(error) => {
            tracing::warn!(target: "ads", ?kind, version = response.version_info, %error, "rejected");
        }
    }
    if outcome.is_ok() {
        versions.insert(kind, response.version_info);
    }
    client.answered(kind);
    let request = DiscoveryRequest {
        version_info: versions.get(&kind).cloned().unwrap_or_default(),
        resource_names: known.names.clone().unwrap_or_default(),
        type_url: response.type_url,
        response_nonce: response.nonce,
        error_detail: outcome.err().map(|message| Status {
            code: Code::InvalidArgument.into(),
            message,
            ..Status::default()
        }),
        ..DiscoveryRequest::default()
    };
    let _ = sender.send(request).await;
}

/// A resource may come in an envelope that tells its own version.
fn unwrap(any: Any, version: &str) -> Resource {
    match proto::any::unpack::<WireResource>(&any) {
        Ok(WireResource {
            version,
            resource: Some(inner),
            ..
        }) => Resource {
            version,
            any: inner,
        },
        _ => Resource {
            version: version.to_owned(),
            any,
        },
    }
}
