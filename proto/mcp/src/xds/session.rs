//! One xDS stream: what it is subscribed to, what it has, what is on its way.
//!
//! For each type at most one response is in flight; a refused one is not repeated until the collection changes. The two
//! protocols differ in the shape of their messages only, which [`Protocol`] hides.

use crate::{
    snapshot::{Collection, Delta, Snapshot, version_of},
    source::{Source, session::RequestLimit},
    wire,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use proto_component::listen::Peer;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// How long a sink may take no data before it is let go.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Types that one stream may subscribe to.
const MOST_TYPES: usize = 256;

/// What a request says, in either protocol.
pub(super) struct Asked {
    type_url: String,
    nonce: String,
    error: Option<String>,
    node: String,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
    /// Whether the names replace those before (state of the world), or come to them.
    replaces: bool,
    versions: BTreeMap<String, String>,
}

/// What a response has to say.
pub(super) struct Told<'a> {
    type_url: &'a str,
    version: &'a str,
    nonce: String,
    updated: Vec<Arc<wire::Resource>>,
    removed: Vec<String>,
}

/// The shape of the messages.
pub(super) trait Protocol: Send + 'static {
    /// What sinks send.
    type Request: Send + 'static;
    /// What they are sent.
    type Response: Send + 'static;
    /// Whether a response holds what changed only.
    const IS_INCREMENTAL: bool;

    /// Reads a request.
    fn read(request: Self::Request) -> Asked;
    /// Writes a response.
    fn write(told: Told<'_>) -> Self::Response;
}

/// Every response holds the whole collection.
pub(super) struct StateOfTheWorld;

/// Responses hold what changed.
pub(super) struct Incremental;

impl Protocol for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const IS_INCREMENTAL: bool = false;

    fn read(request: DiscoveryRequest) -> Asked {
        Asked {
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
            node: request.node.map(|node| node.id).unwrap_or_default(),
            subscribe: request.resource_names,
            unsubscribe: Vec::new(),
            replaces: true,
            versions: BTreeMap::new(),
        }
    }

    fn write(told: Told<'_>) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: told.version.to_owned(),
            resources: told
                .updated
                .iter()
                .map(|resource| proto::any::pack(resource.as_ref()))
                .collect(),
            type_url: told.type_url.to_owned(),
            nonce: told.nonce,
            ..DiscoveryResponse::default()
        }
    }
}

impl Protocol for Incremental {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const IS_INCREMENTAL: bool = true;

    fn read(request: DeltaDiscoveryRequest) -> Asked {
        Asked {
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
            node: request.node.map(|node| node.id).unwrap_or_default(),
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            replaces: false,
            versions: request.initial_resource_versions.into_iter().collect(),
        }
    }

    fn write(told: Told<'_>) -> DeltaDiscoveryResponse {
        let resource = |resource: &Arc<wire::Resource>| Resource {
            name: crate::snapshot::name_of(resource).to_owned(),
            version: version_of(resource).to_owned(),
            resource: Some(proto::any::pack(resource.as_ref())),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: told.version.to_owned(),
            resources: told.updated.iter().map(resource).collect(),
            type_url: told.type_url.to_owned(),
            removed_resources: told.removed,
            nonce: told.nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

/// A subscription to a type.
#[derive(Debug, Default)]
struct Watch {
    /// None for a type that nobody here knows: it has no resources.
    collection: Option<String>,
    /// The names that are wanted; all of them where this is empty.
    names: BTreeSet<String>,
    /// What the sink said that it has when it subscribed.
    versions: Option<BTreeMap<String, String>>,
    accepted: Option<Arc<Collection>>,
    /// Version that needs no sending: accepted or refused.
    settled: Option<String>,
    in_flight: Option<(String, Arc<Collection>)>,
}

/// Serves a stream until it ends; the status says why, if it is not the sink that ended it.
pub(super) async fn run<P: Protocol>(
    source: &Source,
    types: &HashMap<String, String>,
    peer: &Peer,
    mut requests: impl Stream<Item = Result<P::Request, Status>> + Unpin,
    responses: mpsc::Sender<P::Response>,
) -> Result<(), Status> {
    let drain = source.drain();
    let mut current = source.changes();
    let mut watches: BTreeMap<String, Watch> = BTreeMap::new();
    let mut nonce = 0_u64;
    let mut limit = RequestLimit::new();
    tracing::debug!(target: "mcp", remote = ?peer.remote, "xDS stream opened");
    loop {
        let snapshot = current.borrow_and_update().clone();
        for (type_url, watch) in &mut watches {
            let Some(response) = next::<P>(type_url, watch, &snapshot, &mut nonce) else {
                continue;
            };
            let sent = tokio::select! {
                sent = responses.send_timeout(response, SEND_TIMEOUT) => sent,
                () = drain.signaled() => return Err(Status::unavailable("the source is shutting down")),
            };
            match sent {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                    return Err(Status::cancelled("the sink is gone"));
                }
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    return Err(Status::deadline_exceeded("the sink takes no data"));
                }
            }
        }
        tokio::select! {
            request = requests.next() => match request {
                Some(Ok(request)) => {
                    limit.wait().await;
                    take(&mut watches, types, P::read(request))?;
                }
                Some(Err(status)) => return Err(status),
                None => return Ok(()),
            },
            changed = current.changed() => if changed.is_err() {
                return Err(Status::unavailable("the source is closed"));
            },
            () = drain.signaled() => return Err(Status::unavailable("the source is shutting down")),
            () = responses.closed() => return Ok(()),
        }
    }
}

/// A subscription, or the answer to what was sent.
fn take(
    watches: &mut BTreeMap<String, Watch>,
    types: &HashMap<String, String>,
    asked: Asked,
) -> Result<(), Status> {
    if !watches.contains_key(&asked.type_url) {
        if watches.len() >= MOST_TYPES {
            return Err(Status::resource_exhausted("too many types on one stream"));
        }
        let collection = types.get(&asked.type_url).cloned();
        if collection.is_none() {
            tracing::info!(target: "mcp", type_url = asked.type_url, node = asked.node, "a sink asks for a type that is not served; it gets no resources");
        }
        let watch = Watch {
            collection,
            versions: Some(asked.versions).filter(|versions| !versions.is_empty()),
            names: names(asked.subscribe),
            ..Watch::default()
        };
        watches.insert(asked.type_url, watch);
        return Ok(());
    }
    let Some(watch) = watches.get_mut(&asked.type_url) else {
        return Ok(());
    };
    let answered = watch
        .in_flight
        .take_if(|(nonce, _)| !asked.nonce.is_empty() && *nonce == asked.nonce);
    if let Some((_, sent)) = answered {
        watch.settled = Some(sent.version.clone());
        match &asked.error {
            Some(error) => {
                tracing::warn!(target: "mcp", type_url = asked.type_url, node = asked.node, version = sent.version, error, "sink refused a type");
            }
            None => watch.accepted = Some(sent),
        }
    } else if !asked.nonce.is_empty() && asked.replaces {
        // An answer to something older says nothing.
        return Ok(());
    }
    let before = watch.names.clone();
    if asked.replaces {
        watch.names = names(asked.subscribe);
    } else {
        watch.names.extend(names(asked.subscribe));
        for name in asked.unsubscribe {
            watch.names.remove(&name);
        }
    }
    if watch.names != before {
        // Other names are another subscription: everything that is wanted is told again.
        watch.settled = None;
        watch.accepted = None;
        watch.versions = None;
    }
    Ok(())
}

fn names(list: Vec<String>) -> BTreeSet<String> {
    let names: BTreeSet<String> = list.into_iter().collect();
    if names.contains("*") {
        BTreeSet::new()
    } else {
        names
    }
}

/// The next response for a type, if there is something to say and nothing in flight.
fn next<P: Protocol>(
    type_url: &str,
    watch: &mut Watch,
    snapshot: &Snapshot,
    nonce: &mut u64,
) -> Option<P::Response> {
    if watch.in_flight.is_some() {
        return None;
    }
    let collection = match &watch.collection {
        Some(name) => snapshot.get(name)?.clone(),
        // Nothing is said before anything is known.
        None if snapshot.names().is_empty() => return None,
        None => Arc::new(Collection::new([])),
    };
    if watch.settled.as_ref() == Some(&collection.version) {
        return None;
    }
    let delta = match (&watch.accepted, &watch.versions) {
        (Some(accepted), _) if P::IS_INCREMENTAL => collection.since_collection(accepted),
        (None, Some(versions)) if P::IS_INCREMENTAL => collection.since(versions),
        _ => Delta {
            updated: collection.resources.values().cloned().collect(),
            removed: Vec::new(),
        },
    };
    let is_wanted = |name: &str| watch.names.is_empty() || watch.names.contains(name);
    let updated = delta.updated.into_iter();
    let updated: Vec<_> = updated
        .filter(|resource| is_wanted(crate::snapshot::name_of(resource)))
        .collect();
    let removed: Vec<_> = delta
        .removed
        .into_iter()
        .filter(|name| is_wanted(name))
        .collect();
    if updated.is_empty() && removed.is_empty() && watch.accepted.is_some() && P::IS_INCREMENTAL {
        // What changed is not among what is wanted.
        watch.settled = Some(collection.version.clone());
        watch.accepted = Some(collection);
        return None;
    }
    *nonce += 1;
    let response = P::write(Told {
        type_url,
        version: &collection.version,
        nonce: nonce.to_string(),
        updated,
        removed,
    });
    watch.in_flight = Some((nonce.to_string(), collection));
    Some(response)
}
