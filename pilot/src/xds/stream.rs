//! What streams of both forms have in common: who is at the other end, what it asks for, when it is answered and pushed to.
//!
//! [`super::state_of_the_world`] and [`super::delta`] say how requests are read and responses written.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use proto_component::drain::Drain;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::authenticate::Caller;
use super::discovery::{Current, Registered};
use super::form::{Form, Planned, Said};
use super::frame::{Message, Requests};
use super::generate::Generated;
use super::name::Name;
use super::push::PushRequest;
use super::resource_type::TYPES;
use super::sent::Pools;
use super::watch::{Decision, Watched};
use super::{Connection, Discovery, ResourceType};
use crate::model::Proxy;
use crate::model::proxy::InvalidNode;
use crate::registry::registration::HEALTH;

/// How long a new stream may take to say who it is.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// How long a client may take to hear why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(5);
/// How long listeners and routes wait for new clusters to become warm.
const WARMING: Duration = Duration::from_secs(3);
/// Responses that may wait for a slow proxy.
pub(super) const OUTGOING: usize = 2;

/// The way to the proxy.
pub(super) type Outgoing = mpsc::Sender<Result<Message, Status>>;

/// What ends streams besides their client.
#[derive(Clone, Debug)]
pub struct StreamLimits {
    /// The process ends.
    pub drain: Drain,
    /// The stream is old enough to come back, perhaps to another replica.
    pub max_age: Option<Duration>,
}

/// Listeners and routes that wait until the clusters they may lead to are warm.
struct Held {
    request: PushRequest,
    /// New clusters that get their endpoints by EDS.
    clusters: Vec<Name>,
    until: Instant,
}

impl Held {
    /// True when the proxy has accepted the clusters and their endpoints.
    fn is_warm(&self, connection: &Connection) -> bool {
        let watches = connection.watches.lock();
        let has_acked = |kind: ResourceType| {
            let watched = watches[kind.index()].as_ref();
            watched.is_some_and(|watched| watched.nonce_sent == watched.nonce_acked)
        };
        let endpoints = watches[ResourceType::Endpoint.index()].as_ref();
        has_acked(ResourceType::Cluster)
            && (self.clusters.is_empty() || has_acked(ResourceType::Endpoint))
            && self
                .clusters
                .iter()
                .all(|name| endpoints.is_some_and(|endpoints| endpoints.sent.has(name)))
    }
}

/// The proxy cannot be reached any more.
struct Gone;

/// Serves one stream; `only` restricts it to one type (the services for single types), `caller` is who has proved to open it.
pub(super) async fn serve<F: Form>(
    discovery: Arc<Discovery>,
    mut requests: Requests<F::Request>,
    outgoing: Outgoing,
    only: Option<ResourceType>,
    caller: Option<Caller>,
    limits: StreamLimits,
) {
    let first = match tokio::time::timeout(FIRST_REQUEST, requests.next()).await {
        Ok(Some(Ok(request))) => request,
        Ok(_) => return,
        Err(_) => return refuse(&outgoing, Status::deadline_exceeded("no request came")).await,
    };
    let node = Said::of(&first).node.ok_or(InvalidNode::Missing);
    let mut proxy = match node.and_then(Proxy::try_from) {
        Ok(proxy) => proxy,
        Err(error) => {
            tracing::warn!(target: "ads", %error, "stream refused");
            return refuse(&outgoing, Status::invalid_argument(error.to_string())).await;
        }
    };
    if let Some(Caller { namespace, .. }) = &caller
        && *namespace != proxy.namespace
    {
        tracing::warn!(target: "ads", node = proxy.node_id, namespace, "stream refused: the node is of another namespace than its opener");
        let reason = format!("the node is not of namespace {namespace}");
        return refuse(&outgoing, Status::permission_denied(reason)).await;
    }
    proxy.is_authenticated = caller.is_some();
    let reader = caller.filter(|_| proxy.is_router());
    if let Some(reader) = &reader {
        proxy.may_read_secrets = reader.may_read_secrets().await;
    }
    let (drain, before) = (limits.drain.clone(), proxy.may_read_secrets);
    let registered = discovery.register(proxy, F::IS_DELTA, drain);
    let stream = Stream::<F> {
        discovery,
        registered,
        outgoing,
        only,
        responses: 0,
        held: None,
        turn: None,
        form: PhantomData,
    };
    stream
        .run(first, requests, end_of(limits, reader, before))
        .await;
}

/// Ends a stream with a reason, if its client still reads.
pub(super) async fn refuse(outgoing: &Outgoing, status: Status) {
    // A client that is gone needs no reason.
    let _ = outgoing.send_timeout(Err(status), LAST_WORD).await;
}

/// Until when a stream may live: the process ends, the stream is old, or its opener, who might read Secrets `before` or not, is to
/// be told otherwise.
async fn end_of(limits: StreamLimits, reader: Option<Caller>, before: bool) {
    let old = async {
        match limits.max_age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    };
    let told = async {
        match reader {
            Some(reader) => reader.access_changed(before).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = old => {}
        () = told => {}
        () = limits.drain.signaled() => {}
    }
}

struct Stream<F: Form> {
    discovery: Arc<Discovery>,
    registered: Registered,
    outgoing: Outgoing,
    only: Option<ResourceType>,
    responses: u64,
    held: Option<Held>,
    /// The right to have resources made, which few have at a time.
    turn: Option<OwnedSemaphorePermit>,
    form: PhantomData<fn() -> F>,
}

impl<F: Form> Stream<F> {
    async fn run(
        mut self,
        first: F::Request,
        mut requests: Requests<F::Request>,
        end: impl Future<Output = ()>,
    ) {
        let connection = Arc::clone(&self.registered.connection);
        tracing::info!(target: "ads", connection = connection.id, version = connection.proxy.version, delta = F::IS_DELTA, "proxy connected");
        tokio::pin!(end);
        let mut request = Some(first);
        loop {
            let outcome = match request.take() {
                Some(request) => self.on_request(&request).await,
                None => Ok(()),
            };
            let outcome = match outcome {
                Ok(()) => self.release().await,
                gone => gone,
            };
            self.turn = None;
            if outcome.is_err() {
                tracing::info!(target: "ads", connection = connection.id, "proxy gone");
                return;
            }
            let until = self.held.as_ref().map(|held| held.until);
            let push = tokio::select! {
                () = wait_until(until), if until.is_some() => continue,
                next = requests.next() => match next {
                    Some(Ok(next)) => {
                        request = Some(next);
                        continue;
                    }
                    Some(Err(status)) => {
                        tracing::info!(target: "ads", connection = connection.id, error = status.message(), "proxy disconnected");
                        return;
                    }
                    None => {
                        tracing::info!(target: "ads", connection = connection.id, "proxy disconnected");
                        return;
                    }
                },
                push = connection.next_push() => push,
                () = &mut end => return refuse(&self.outgoing, Status::unavailable("come back")).await,
            };
            if self.push(&push).await.is_err() {
                tracing::info!(target: "ads", connection = connection.id, "proxy gone");
                return;
            }
        }
    }

    async fn on_request(&mut self, request: &F::Request) -> Result<(), Gone> {
        let connection = Arc::clone(&self.registered.connection);
        let said = Said::of(request);
        if said.type_url == HEALTH {
            let error = said.error.map(|error| error.message.clone());
            self.registered.report(error);
            return Ok(());
        }
        let kind = match (ResourceType::from_url(said.type_url), self.only) {
            (Some(kind), None) => kind,
            (Some(kind), Some(only)) if kind == only => kind,
            (None, Some(only)) if said.type_url.is_empty() => only,
            _ => {
                tracing::debug!(target: "ads", connection = connection.id, type_url = said.type_url, "this type is not served");
                return Ok(());
            }
        };
        let decision = {
            let mut watches = connection.watches.lock();
            let slot = &mut watches[kind.index()];
            let is_first = slot.is_none();
            let watched = slot.get_or_insert_default();
            F::decide(watched, kind, request, is_first, &self.discovery.names)
        };
        note(&self.discovery, &connection, kind, &decision, &said);
        let names: Option<Vec<Name>> = match decision {
            Decision::Nothing | Decision::Stale | Decision::Rejected => return Ok(()),
            Decision::Respond => None,
            Decision::RespondWith(names) => Some(names.into_iter().collect()),
        };
        // Many proxies that come at once must not all have their answers in memory.
        self.take_turn().await;
        let current = self.discovery.current();
        let planned = F::answer(&connection, &current, kind, names.as_deref());
        if planned.is_empty() && kind.is_withheld() {
            return Ok(());
        }
        self.send(planned, &current).await
    }

    /// Sends what a change has made different.
    async fn push(&mut self, request: &PushRequest) -> Result<(), Gone> {
        let discovery = Arc::clone(&self.discovery);
        let connection = Arc::clone(&self.registered.connection);
        self.take_turn().await;
        let metrics = &discovery.metrics;
        metrics
            .queue_time
            .observe(request.since.elapsed().as_secs_f64());
        let current = discovery.current();
        let affected = request.affected_types(&connection.proxy, &current.push);
        let (first, rest): (Vec<_>, Vec<_>) = affected
            .into_iter()
            .partition(|kind| matches!(kind, ResourceType::Cluster | ResourceType::Endpoint));
        let mut clusters = Vec::new();
        for planned in F::plan(&connection, &current, request, &first) {
            if planned.kind == ResourceType::Cluster {
                clusters = new_clusters(&connection, &planned);
            }
            self.send(planned, &current).await?;
        }
        if let Some(held) = &mut self.held {
            held.request.merge(request);
            held.clusters.extend(clusters);
        } else if clusters.is_empty() {
            self.push_kinds(request, &rest, &current).await?;
        } else {
            self.held = Some(Held {
                request: request.clone(),
                clusters,
                until: Instant::now() + WARMING,
            });
        }
        connection.set_pushed(current.push.version);
        metrics
            .convergence_time
            .observe(request.since.elapsed().as_secs_f64());
        Ok(())
    }

    async fn push_kinds(
        &mut self,
        request: &PushRequest,
        kinds: &[ResourceType],
        current: &Current,
    ) -> Result<(), Gone> {
        let connection = Arc::clone(&self.registered.connection);
        for planned in F::plan(&connection, current, request, kinds) {
            self.send(planned, current).await?;
        }
        Ok(())
    }

    /// Sends what was held back, once it may be.
    async fn release(&mut self) -> Result<(), Gone> {
        let connection = Arc::clone(&self.registered.connection);
        let is_due = |held: &mut Held| held.until <= Instant::now() || held.is_warm(&connection);
        let Some(held) = self.held.take_if(is_due) else {
            return Ok(());
        };
        self.take_turn().await;
        let current = self.discovery.current();
        let mut kinds = held
            .request
            .affected_types(&connection.proxy, &current.push);
        kinds.retain(|kind| !matches!(kind, ResourceType::Cluster | ResourceType::Endpoint));
        self.push_kinds(&held.request, &kinds, &current).await
    }

    async fn send(&mut self, planned: Planned, current: &Current) -> Result<(), Gone> {
        self.take_turn().await;
        let begun = Instant::now();
        let connection = Arc::clone(&self.registered.connection);
        self.responses += 1;
        let kind = planned.kind;
        let (count, removed) = (planned.resources.len(), planned.removed.len());
        let response = {
            let mut watches = connection.watches.lock();
            let sent = watches[kind.index()].get_or_insert_default();
            let clusters: Vec<Name> = if kind == ResourceType::Cluster {
                sent.changed(&planned.resources)
                    .map(|resource| Arc::clone(&resource.name))
                    .collect()
            } else {
                Vec::new()
            };
            let pools = &self.discovery.names.pools;
            let response = F::respond(sent, &planned, current, self.responses, pools);
            forget_endpoints(&mut watches, &clusters, pools);
            response
        };
        self.deliver(kind, response).await?;
        self.discovery
            .metrics
            .push_time
            .with_label_values(&[kind.short_name()])
            .observe(begun.elapsed().as_secs_f64());
        tracing::debug!(target: "ads", connection = connection.id, kind = kind.short_name(), resources = count, removed, "pushed");
        Ok(())
    }

    async fn take_turn(&mut self) {
        if self.turn.is_none() {
            let throttle = Arc::clone(&self.discovery.throttle);
            // It is never closed.
            self.turn = throttle.acquire_owned().await.ok();
        }
    }

    /// Hands a response to the proxy's stream within the send deadline. While the proxy is slow to read, others have its turn.
    async fn deliver(&mut self, kind: ResourceType, response: Message) -> Result<(), Gone> {
        if self.outgoing.capacity() == 0 {
            self.turn = None;
        }
        let metrics = &self.discovery.metrics;
        let patience = self.discovery.features.send_timeout;
        match tokio::time::timeout(patience, self.outgoing.send(Ok(response))).await {
            Ok(Ok(())) => {
                metrics.pushes.with_label_values(&[kind.short_name()]).inc();
                return Ok(());
            }
            Ok(Err(_)) => {}
            Err(_) => {
                metrics.write_timeout.inc();
                tracing::warn!(target: "ads", kind = kind.short_name(), "a proxy did not read its push in time; closing its stream");
            }
        }
        metrics
            .pushes
            .with_label_values(&[kind.send_error_name()])
            .inc();
        Err(Gone)
    }
}

/// The clusters that the proxy has not had before and whose endpoints it will ask for.
fn new_clusters(connection: &Connection, planned: &Planned) -> Vec<Name> {
    let watches = connection.watches.lock();
    let known = watches[ResourceType::Cluster.index()].as_ref();
    let is_new = |resource: &&Generated| known.is_some_and(|known| !known.sent.has(&resource.name));
    let by_eds = planned
        .resources
        .iter()
        .filter(|resource| resource.is_by_eds);
    let new = by_eds.filter(is_new);
    new.map(|resource| Arc::clone(&resource.name)).collect()
}

async fn wait_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}

/// Logs and counts what a request says of the last response.
fn note(
    discovery: &Discovery,
    connection: &Connection,
    kind: ResourceType,
    decision: &Decision,
    said: &Said<'_>,
) {
    let metrics = &discovery.metrics;
    let reject = &metrics.rejects[kind.index()];
    match (decision, said.error) {
        (Decision::Rejected, Some(error)) => {
            metrics.total_rejects.inc();
            // A number that is no code must not become a label.
            let code = Code::from_i32(error.code);
            reject
                .with_label_values(&[&connection.proxy.id, &(code as i32).to_string()])
                .set(1);
            tracing::warn!(target: "ads", connection = connection.id, kind = kind.short_name(), nonce = said.nonce, ?code, error = error.message, "proxy refuses what it was sent");
        }
        (Decision::Stale, _) => {
            if kind == ResourceType::Route {
                metrics.expired_nonce.inc();
            }
            tracing::debug!(target: "ads", connection = connection.id, kind = kind.short_name(), nonce = said.nonce, "answer to an old response");
        }
        _ if !said.nonce.is_empty() => {
            // Whatever was refused has been replaced by something good.
            for code in 0..=16 {
                let _ = reject.remove_label_values(&[&connection.proxy.id, &code.to_string()]);
            }
        }
        _ => {}
    }
}

/// Endpoints of clusters that are new to the proxy count as not sent.
fn forget_endpoints(watches: &mut [Option<Watched>; TYPES], clusters: &[Name], pools: &Pools) {
    if let Some(endpoints) = watches[ResourceType::Endpoint.index()].as_mut() {
        endpoints.sent.change(std::iter::empty(), clusters, pools);
    }
}
