//! Delta streams: every response holds only what has changed, and the names of what is gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use super::discovery::Registered;
use super::generate::{Generated, generate};
use super::push::PushRequest;
use super::stream::{
    FIRST_REQUEST, Gone, Outgoing, StreamLimits, control_plane, deliver, end_of, forget_endpoints,
    names_to_push, note, refuse,
};
use super::watch::Decision;
use super::{Discovery, ResourceType};
use crate::model::Proxy;
use crate::networking::View;

/// Serves one stream; `only` restricts it to one type.
pub(super) async fn serve(
    discovery: Arc<Discovery>,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    outgoing: Outgoing<DeltaDiscoveryResponse>,
    only: Option<ResourceType>,
    limits: StreamLimits,
) {
    discovery.ready().await;
    let first = match tokio::time::timeout(FIRST_REQUEST, requests.next()).await {
        Ok(Some(Ok(request))) => request,
        Ok(_) => return,
        Err(_) => return refuse(&outgoing, Status::deadline_exceeded("no request came")).await,
    };
    let proxy = match first
        .node
        .as_ref()
        .ok_or(crate::model::proxy::InvalidNode::Missing)
        .and_then(Proxy::try_from)
    {
        Ok(proxy) => proxy,
        Err(error) => {
            tracing::warn!(target: "ads", %error, "stream refused");
            return refuse(&outgoing, Status::invalid_argument(error.to_string())).await;
        }
    };
    let registered = discovery.register(proxy, true);
    let stream = Stream {
        discovery,
        registered,
        outgoing,
        only,
        responses: 0,
    };
    stream.run(first, requests, limits).await;
}

struct Stream {
    discovery: Arc<Discovery>,
    registered: Registered,
    outgoing: Outgoing<DeltaDiscoveryResponse>,
    only: Option<ResourceType>,
    responses: u64,
}

/// What is to be sent of one type.
struct Increment {
    resources: Vec<Generated>,
    removed: Vec<String>,
}

impl Stream {
    async fn run(
        mut self,
        first: DeltaDiscoveryRequest,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        limits: StreamLimits,
    ) {
        let connection = Arc::clone(&self.registered.connection);
        tracing::info!(target: "ads", connection = connection.id, version = connection.proxy.version, "proxy connected (delta)");
        let end = end_of(limits);
        tokio::pin!(end);
        let mut request = Some(first);
        loop {
            let outcome = match request.take() {
                Some(request) => self.on_request(&request).await,
                None => Ok(()),
            };
            if outcome.is_err() {
                tracing::info!(target: "ads", connection = connection.id, "proxy gone");
                return;
            }
            let push = tokio::select! {
                next = requests.next() => {
                    let Some(Ok(next)) = next else {
                        tracing::info!(target: "ads", connection = connection.id, "proxy disconnected");
                        return;
                    };
                    request = Some(next);
                    continue;
                }
                push = connection.next_push() => push,
                () = &mut end => return refuse(&self.outgoing, Status::unavailable("come back")).await,
            };
            if self.push(&push).await.is_err() {
                tracing::info!(target: "ads", connection = connection.id, "proxy gone");
                return;
            }
        }
    }

    async fn on_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), Gone> {
        let connection = Arc::clone(&self.registered.connection);
        let kind = match (ResourceType::from_url(&request.type_url), self.only) {
            (Some(kind), None) => kind,
            (Some(kind), Some(only)) if kind == only => kind,
            (None, Some(only)) if request.type_url.is_empty() => only,
            _ => {
                tracing::debug!(target: "ads", connection = connection.id, type_url = request.type_url, "this type is not served");
                return Ok(());
            }
        };
        let decision = {
            let mut watches = connection.watches.lock();
            let slot = &mut watches[kind.index()];
            let is_first = slot.is_none();
            slot.get_or_insert_default()
                .on_delta_request(kind, request, is_first)
        };
        note(
            &self.discovery,
            &connection,
            kind,
            &decision,
            request.error_detail.as_ref(),
            &request.response_nonce,
        );
        match decision {
            Decision::Nothing | Decision::Stale | Decision::Rejected => Ok(()),
            Decision::Respond => {
                let increment = self.increment(kind, None);
                self.send(kind, increment).await
            }
            Decision::RespondWith(names) => {
                let increment = self.increment(kind, Some(&names));
                self.send(kind, increment).await
            }
        }
    }

    /// What differs from what the proxy has, among `names` or all that it asks for.
    fn increment(&self, kind: ResourceType, names: Option<&BTreeSet<String>>) -> Increment {
        let connection = &self.registered.connection;
        let current = self.discovery.current();
        let Some(watched) = connection.watched(kind) else {
            return Increment {
                resources: Vec::new(),
                removed: Vec::new(),
            };
        };
        let view = View::new(&connection.proxy, &current.push);
        let mut resources = generate(
            &view,
            kind,
            names.unwrap_or(&watched.names),
            &current.endpoint_cache,
        );
        resources.retain(|resource| watched.wants(&resource.name));
        let removed = match names {
            // A name that was asked for and does not exist is answered too, so that nobody waits for it.
            Some(names) if kind.is_wildcard() => {
                resources.retain(|resource| names.contains(&resource.name));
                names
                    .iter()
                    .filter(|name| resources.iter().all(|resource| resource.name != **name))
                    .cloned()
                    .collect()
            }
            None if kind.is_wildcard() => {
                let present: BTreeSet<&String> =
                    resources.iter().map(|resource| &resource.name).collect();
                watched
                    .sent
                    .keys()
                    .chain(&watched.names)
                    .filter(|name| !present.contains(name))
                    .cloned()
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        };
        resources.retain(|resource| watched.sent.get(&resource.name) != Some(&resource.hash));
        Increment { resources, removed }
    }

    async fn push(&mut self, request: &PushRequest) -> Result<(), Gone> {
        let discovery = Arc::clone(&self.discovery);
        let connection = Arc::clone(&self.registered.connection);
        let _permit = discovery.throttle.acquire().await;
        discovery
            .metrics
            .queue_time
            .observe(request.since.elapsed().as_secs_f64());
        let root = discovery.current().push.mesh.root_namespace.clone();
        for kind in request.affected_types(&connection.proxy, &root) {
            let Some(watched) = connection.watched(kind) else {
                continue;
            };
            let names = names_to_push(&watched, kind, request);
            let increment = if kind.is_wildcard() {
                self.increment(kind, None)
            } else {
                self.increment(kind, Some(&names))
            };
            let removed_known = increment
                .removed
                .iter()
                .any(|name| watched.sent.contains_key(name));
            if !increment.resources.is_empty() || removed_known {
                self.send(kind, increment).await?;
            }
        }
        discovery
            .metrics
            .convergence_time
            .observe(request.since.elapsed().as_secs_f64());
        Ok(())
    }

    async fn send(&mut self, kind: ResourceType, increment: Increment) -> Result<(), Gone> {
        let connection = Arc::clone(&self.registered.connection);
        self.responses += 1;
        let version = self.discovery.current().push.version.to_string();
        let nonce = format!("{version}-{}", self.responses);
        {
            let mut watches = connection.watches.lock();
            let watched = watches[kind.index()].get_or_insert_default();
            for name in &increment.removed {
                watched.sent.remove(name);
            }
            watched.sent.extend(
                increment
                    .resources
                    .iter()
                    .map(|resource| (resource.name.clone(), resource.hash)),
            );
            watched.on_sent(&version, &nonce);
            if kind == ResourceType::Cluster {
                let changed: Vec<String> = increment
                    .resources
                    .iter()
                    .map(|resource| resource.name.clone())
                    .collect();
                forget_endpoints(&mut watches, &changed);
            }
        }
        let (count, removed) = (increment.resources.len(), increment.removed.len());
        let resources = increment.resources.into_iter().map(|resource| Resource {
            version: resource.version(),
            resource: Some((*resource.any).clone()),
            name: resource.name,
            ..Resource::default()
        });
        let response = DeltaDiscoveryResponse {
            system_version_info: version,
            resources: resources.collect(),
            type_url: kind.url().to_owned(),
            removed_resources: increment.removed,
            nonce,
            control_plane: Some(control_plane()),
            ..DeltaDiscoveryResponse::default()
        };
        deliver(&self.discovery, &self.outgoing, kind, response).await?;
        tracing::debug!(target: "ads", connection = connection.id, kind = kind.short_name(), resources = count, removed, "pushed (delta)");
        Ok(())
    }
}
