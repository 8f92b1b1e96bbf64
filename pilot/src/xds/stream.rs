//! State-of-the-world streams: every response holds all listeners or clusters, or those route configurations and endpoints
//! that have changed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto_component::drain::Drain;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, Streaming};

use super::discovery::{Current, Registered};
use super::generate::{Generated, generate, version_text};
use super::push::PushRequest;
use super::watch::{Decision, Watched};
use super::{Connection, Discovery, ResourceType};
use crate::model::{ClusterName, Proxy};
use crate::networking::View;

/// How long a new stream may take to say who it is.
pub(super) const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// Responses that may wait for a slow proxy.
pub(super) const OUTGOING: usize = 8;

/// The way to the proxy.
pub(super) type Outgoing<T> = mpsc::Sender<Result<T, Status>>;

/// What ends streams besides their client.
#[derive(Clone, Debug)]
pub struct StreamLimits {
    /// The process ends.
    pub drain: Drain,
    /// The stream is old enough to come back, perhaps to another replica.
    pub max_age: Option<Duration>,
}

/// Serves one stream; `only` restricts it to one type (the services for single types).
pub(super) async fn serve(
    discovery: Arc<Discovery>,
    mut requests: Streaming<DiscoveryRequest>,
    outgoing: Outgoing<DiscoveryResponse>,
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
    let registered = discovery.register(proxy, false);
    let stream = Stream {
        discovery,
        registered,
        outgoing,
        only,
        responses: 0,
    };
    stream.run(first, requests, limits).await;
}

pub(super) async fn refuse<T>(outgoing: &Outgoing<T>, status: Status) {
    // A client that is gone needs no reason.
    let _ = outgoing.send(Err(status)).await;
}

/// Until when a stream may live.
pub(super) async fn end_of(limits: StreamLimits) {
    match limits.max_age {
        Some(age) => tokio::select! {
            () = tokio::time::sleep(age) => {}
            () = limits.drain.signaled() => {}
        },
        None => limits.drain.signaled().await,
    }
}

struct Stream {
    discovery: Arc<Discovery>,
    registered: Registered,
    outgoing: Outgoing<DiscoveryResponse>,
    only: Option<ResourceType>,
    responses: u64,
}

/// The proxy cannot be reached any more.
pub(super) struct Gone;

impl Stream {
    async fn run(
        mut self,
        first: DiscoveryRequest,
        mut requests: Streaming<DiscoveryRequest>,
        limits: StreamLimits,
    ) {
        let connection = Arc::clone(&self.registered.connection);
        tracing::info!(target: "ads", connection = connection.id, version = connection.proxy.version, "proxy connected");
        let end = end_of(limits);
        tokio::pin!(end);
        let mut request: Option<Result<DiscoveryRequest, Status>> = Some(Ok(first));
        loop {
            let outcome = match request.take() {
                Some(Ok(request)) => self.on_request(&request).await,
                Some(Err(status)) => {
                    tracing::info!(target: "ads", connection = connection.id, error = status.message(), "proxy disconnected");
                    return;
                }
                None => Ok(()),
            };
            if outcome.is_err() {
                tracing::info!(target: "ads", connection = connection.id, "proxy gone");
                return;
            }
            let push = tokio::select! {
                next = requests.next() => {
                    let Some(next) = next else {
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

    async fn on_request(&mut self, request: &DiscoveryRequest) -> Result<(), Gone> {
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
            watches[kind.index()]
                .get_or_insert_default()
                .on_request(kind, request)
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
            Decision::Respond => self.respond(kind, None).await,
            Decision::RespondWith(names) => self.respond(kind, Some(&names)).await,
        }
    }

    /// Answers a request: everything that is asked for, or what has been added to it.
    async fn respond(
        &mut self,
        kind: ResourceType,
        added: Option<&BTreeSet<String>>,
    ) -> Result<(), Gone> {
        let connection = Arc::clone(&self.registered.connection);
        let current = self.discovery.current();
        let names = added
            .cloned()
            .or_else(|| connection.watched(kind).map(|watched| watched.names))
            .unwrap_or_default();
        let resources = {
            let view = View::new(&connection.proxy, &current.push);
            let mut resources = generate(&view, kind, &names, &current.endpoint_cache);
            keep_wanted(&connection, kind, &mut resources);
            resources
        };
        self.send(kind, resources).await
    }

    /// Sends what a change has made different.
    async fn push(&mut self, request: &PushRequest) -> Result<(), Gone> {
        let discovery = Arc::clone(&self.discovery);
        let connection = Arc::clone(&self.registered.connection);
        let _permit = discovery.throttle.acquire().await;
        discovery
            .metrics
            .queue_time
            .observe(request.since.elapsed().as_secs_f64());
        let current = discovery.current();
        let kinds = request.affected_types(&connection.proxy, &current.push.mesh.root_namespace);
        for (kind, resources) in plan(&connection, &current, request, &kinds) {
            self.send(kind, resources).await?;
        }
        discovery
            .metrics
            .convergence_time
            .observe(request.since.elapsed().as_secs_f64());
        Ok(())
    }

    async fn send(&mut self, kind: ResourceType, resources: Vec<Generated>) -> Result<(), Gone> {
        let begun = Instant::now();
        let connection = Arc::clone(&self.registered.connection);
        self.responses += 1;
        let (version, nonce) = {
            let mut watches = connection.watches.lock();
            let watched = watches[kind.index()].get_or_insert_default();
            let changed = remember(watched, kind, &resources);
            let version = version_of(watched);
            let nonce = format!("{version}-{}", self.responses);
            watched.on_sent(&version, &nonce);
            if kind == ResourceType::Cluster {
                forget_endpoints(&mut watches, &changed);
            }
            (version, nonce)
        };
        let count = resources.len();
        let response = DiscoveryResponse {
            version_info: version.clone(),
            resources: resources
                .into_iter()
                .map(|resource| (*resource.any).clone())
                .collect(),
            type_url: kind.url().to_owned(),
            nonce,
            control_plane: Some(control_plane()),
            ..DiscoveryResponse::default()
        };
        deliver(&self.discovery, &self.outgoing, kind, response).await?;
        self.discovery
            .metrics
            .push_time
            .with_label_values(&[kind.short_name()])
            .observe(begun.elapsed().as_secs_f64());
        tracing::debug!(target: "ads", connection = connection.id, kind = kind.short_name(), version, resources = count, "pushed");
        Ok(())
    }
}

/// Hands a response to the proxy's stream within the send deadline.
pub(super) async fn deliver<T>(
    discovery: &Discovery,
    outgoing: &Outgoing<T>,
    kind: ResourceType,
    response: T,
) -> Result<(), Gone> {
    let metrics = &discovery.metrics;
    match tokio::time::timeout(discovery.features.send_timeout, outgoing.send(Ok(response))).await {
        Ok(Ok(())) => {
            metrics.pushes.with_label_values(&[kind.short_name()]).inc();
            Ok(())
        }
        Ok(Err(_)) => {
            metrics
                .pushes
                .with_label_values(&[kind.send_error_name()])
                .inc();
            Err(Gone)
        }
        Err(_) => {
            metrics.write_timeout.inc();
            metrics
                .pushes
                .with_label_values(&[kind.send_error_name()])
                .inc();
            tracing::warn!(target: "ads", kind = kind.short_name(), "a proxy did not read its push in time; closing its stream");
            Err(Gone)
        }
    }
}

/// Who answers.
pub(super) fn control_plane() -> proto::envoy::config::core::v3::ControlPlane {
    proto::envoy::config::core::v3::ControlPlane {
        identifier: concat!("pilot-", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// Logs and counts what a request says of the last response.
pub(super) fn note(
    discovery: &Discovery,
    connection: &Connection,
    kind: ResourceType,
    decision: &Decision,
    error: Option<&proto::google::rpc::Status>,
    nonce: &str,
) {
    let metrics = &discovery.metrics;
    let reject = &metrics.rejects[kind.index()];
    match (decision, error) {
        (Decision::Rejected, Some(error)) => {
            metrics.total_rejects.inc();
            reject
                .with_label_values(&[&connection.proxy.id, &error.code.to_string()])
                .set(1);
            let code = Code::from_i32(error.code);
            tracing::warn!(target: "ads", connection = connection.id, kind = kind.short_name(), nonce, ?code, error = error.message, "proxy refuses what it was sent");
        }
        (Decision::Stale, _) => {
            if kind == ResourceType::Route {
                metrics.expired_nonce.inc();
            }
            tracing::debug!(target: "ads", connection = connection.id, kind = kind.short_name(), nonce, "answer to an old response");
        }
        _ if !nonce.is_empty() => {
            // Whatever was refused has been replaced by something good.
            for code in 0..=16 {
                let _ = reject.remove_label_values(&[&connection.proxy.id, &code.to_string()]);
            }
        }
        _ => {}
    }
}

/// A wildcard type that is asked for by name.
pub(super) fn keep_wanted(
    connection: &Connection,
    kind: ResourceType,
    resources: &mut Vec<Generated>,
) {
    if let Some(watched) = connection.watched(kind) {
        resources.retain(|resource| watched.wants(&resource.name));
    }
}

/// What has to be sent of each type: nothing, if it is as it was sent last.
fn plan(
    connection: &Connection,
    current: &Current,
    request: &PushRequest,
    kinds: &[ResourceType],
) -> Vec<(ResourceType, Vec<Generated>)> {
    let view = View::new(&connection.proxy, &current.push);
    let mut planned = Vec::new();
    // Clusters that change are warmed anew, and wait for their endpoints even if those are the same.
    let mut warming: BTreeSet<String> = BTreeSet::new();
    for kind in kinds {
        let Some(watched) = connection.watched(*kind) else {
            continue;
        };
        let names = names_to_push(&watched, *kind, request);
        let mut resources = generate(&view, *kind, &names, &current.endpoint_cache);
        resources.retain(|resource| watched.wants(&resource.name));
        let is_changed =
            |resource: &Generated| watched.sent.get(&resource.name) != Some(&resource.hash);
        if kind.is_wildcard() {
            let is_same =
                resources.len() == watched.sent.len() && !resources.iter().any(is_changed);
            if is_same {
                continue;
            }
            if *kind == ResourceType::Cluster {
                warming.extend(
                    resources
                        .iter()
                        .filter(|resource| is_changed(resource))
                        .map(|resource| resource.name.clone()),
                );
            }
        } else {
            let is_warming = |resource: &Generated| {
                *kind == ResourceType::Endpoint && warming.contains(&resource.name)
            };
            resources.retain(|resource| is_changed(resource) || is_warming(resource));
            if resources.is_empty() {
                continue;
            }
        }
        planned.push((*kind, resources));
    }
    planned
}

/// The names of a type whose resources may have changed.
pub(super) fn names_to_push(
    watched: &Watched,
    kind: ResourceType,
    request: &PushRequest,
) -> BTreeSet<String> {
    if kind != ResourceType::Endpoint || !request.is_endpoints_only() {
        return watched.names.clone();
    }
    let is_touched = |name: &&String| {
        ClusterName::parse(name).is_some_and(|name| request.hosts.contains(&name.host))
    };
    watched.names.iter().filter(is_touched).cloned().collect()
}

/// Takes down what is sent; the names of what is different from before.
fn remember(watched: &mut Watched, kind: ResourceType, resources: &[Generated]) -> Vec<String> {
    let changed = resources
        .iter()
        .filter(|resource| watched.sent.get(&resource.name) != Some(&resource.hash))
        .map(|resource| resource.name.clone())
        .collect();
    if kind.is_wildcard() {
        watched.sent.clear();
    }
    watched.sent.extend(
        resources
            .iter()
            .map(|resource| (resource.name.clone(), resource.hash)),
    );
    changed
}

/// A version of everything the proxy has of a type.
fn version_of(watched: &Watched) -> String {
    let mut all: Vec<(&String, &u64)> = watched.sent.iter().collect();
    all.sort_unstable();
    let mut bytes = Vec::with_capacity(all.len() * 32);
    for (name, hash) in all {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&hash.to_le_bytes());
    }
    version_text(xxhash_rust::xxh64::xxh64(&bytes, 0))
}

/// Endpoints of clusters that are new to the proxy count as not sent.
pub(super) fn forget_endpoints(watches: &mut [Option<Watched>; 4], clusters: &[String]) {
    if let Some(endpoints) = watches[ResourceType::Endpoint.index()].as_mut() {
        for name in clusters {
            endpoints.sent.remove(name);
        }
    }
}
