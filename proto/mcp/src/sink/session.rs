//! One stream from one source: subscribes, folds what comes, sends the consumer's answers.

use super::{Answer, Shared, Update, refusal};
use crate::{
    snapshot::{Collection, name_of},
    wire::{RequestResources, Resources},
};
use prost::Message as _;
use proto::{kind, type_url};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

/// How long a source may take no data before the stream is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Versions of more bytes than this are not sent: the source may refuse so large a request, and sends all instead.
const MAX_VERSIONS: usize = 512 << 10;

pub(super) struct Session<'a> {
    shared: &'a Arc<Shared>,
    epoch: u64,
    current: watch::Receiver<u64>,
    requests: mpsc::Sender<RequestResources>,
    /// What increments of this stream are counted from: what we told when subscribing, then what we accepted.
    bases: BTreeMap<String, Arc<Collection>>,
    /// Handed out, not answered: becomes the base when accepted.
    handed: BTreeMap<String, (String, Arc<Collection>)>,
}

impl<'a> Session<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, requests: mpsc::Sender<RequestResources>) -> Self {
        shared.epoch.send_modify(|epoch| *epoch += 1);
        let mut current = shared.epoch.subscribe();
        let epoch = *current.borrow_and_update();
        Self {
            shared,
            epoch,
            current,
            requests,
            bases: BTreeMap::new(),
            handed: BTreeMap::new(),
        }
    }

    /// One request a collection, with what we have of it.
    pub(super) async fn subscribe(&mut self) -> Result<(), Status> {
        for subscription in &self.shared.options.collections {
            let name = &subscription.collection;
            let (is_wanted, accepted) = {
                let journal = self.shared.journal.lock();
                (journal.wants(name), journal.accepted(name))
            };
            if !is_wanted {
                continue;
            }
            let mut versions = BTreeMap::new();
            if let (true, Some(state)) = (subscription.incremental, accepted) {
                versions = state.versions();
                let size: usize = versions.iter().map(|(k, v)| k.len() + v.len() + 8).sum();
                if size > MAX_VERSIONS {
                    versions.clear();
                } else {
                    self.bases.insert(name.clone(), state);
                }
            }
            let request = RequestResources {
                sink_node: Some(self.shared.node()),
                collection: name.clone(),
                initial_resource_versions: versions.into_iter().collect(),
                incremental: subscription.incremental,
                ..RequestResources::default()
            };
            self.send(request).await?;
        }
        Ok(())
    }

    /// Until the stream ends, a newer stream takes over, or the process drains.
    pub(super) async fn run(
        &mut self,
        mut responses: impl Stream<Item = Result<Resources, Status>> + Unpin,
    ) -> Result<(), Status> {
        let _client = self.shared.metrics.client();
        self.shared.journal.lock().connected();
        self.shared.changed.send_replace(());
        loop {
            tokio::select! {
                response = responses.next() => match response {
                    Some(Ok(response)) => self.take(response).await?,
                    Some(Err(status)) => {
                        self.shared.metrics.recv_failed(status.code());
                        return Err(status);
                    }
                    None => return Ok(()),
                },
                () = self.shared.answered.notified() => self.send_answers().await?,
                _ = self.current.changed() => {
                    // Our permit may have been meant for the newer stream.
                    self.shared.answered.notify_one();
                    return Err(Status::aborted("a newer stream has taken over"));
                }
                () = self.shared.drain.signaled() => return Ok(()),
            }
        }
    }

    async fn take(&mut self, response: Resources) -> Result<(), Status> {
        let name = response.collection.clone();
        self.shared.metrics.message(&name, response.encoded_len());
        if !self.shared.journal.lock().wants(&name) {
            let error = refusal(
                Code::Unimplemented,
                format!("unsupported collection {name}"),
            );
            return self.refuse(response, error).await;
        }
        if let Err(reason) = check_bodies(&response) {
            self.shared.journal.lock().refuse(&name, &reason);
            self.shared.changed.send_replace(());
            let error = refusal(Code::InvalidArgument, reason);
            return self.refuse(response, error).await;
        }
        let nonce = response.nonce.clone();
        let state = Arc::new(self.fold(response));
        let accepted = self.shared.journal.lock().accepted(&name);
        let update = Update {
            delta: state.since_collection(&accepted.unwrap_or_default()),
            collection: name.clone(),
            state: state.clone(),
            answer: Some(Answer {
                shared: self.shared.clone(),
                epoch: self.epoch,
                nonce: nonce.clone(),
            }),
        };
        tracing::debug!(target: "mcp", collection = name, version = state.version, nonce, resources = state.resources.size(), "received");
        self.handed.insert(name.clone(), (nonce, state));
        let earlier = self.shared.pending.lock().insert(name, update);
        if let Some(earlier) = earlier {
            earlier.supersede();
        }
        self.shared.arrived.notify_one();
        Ok(())
    }

    /// The whole state: a full response's resources, or an increment upon the base.
    fn fold(&self, response: Resources) -> Collection {
        let mut resources = match self.bases.get(&response.collection) {
            Some(base) if response.incremental => base.resources.clone(),
            _ => crate::snapshot::Resources::default(),
        };
        for name in &response.removed_resources {
            resources.remove_mut(name);
        }
        for resource in response.resources {
            let name = name_of(&resource).to_owned();
            resources.insert_mut(name, Arc::new(resource));
        }
        Collection::received(response.system_version_info, resources)
    }

    async fn send_answers(&mut self) -> Result<(), Status> {
        let answers = std::mem::take(&mut *self.shared.answers.lock());
        for (epoch, answer) in answers {
            // An answer to a stream that is gone has no one to hear it.
            if epoch != self.epoch {
                continue;
            }
            let handed = self.handed.get(&answer.collection);
            if let Some((nonce, state)) = handed
                && *nonce == answer.response_nonce
            {
                if answer.error_detail.is_none() {
                    self.bases.insert(answer.collection.clone(), state.clone());
                }
                self.handed.remove(&answer.collection);
            }
            self.send(answer).await?;
        }
        Ok(())
    }

    async fn refuse(
        &mut self,
        response: Resources,
        error: proto::google::rpc::Status,
    ) -> Result<(), Status> {
        tracing::warn!(target: "mcp", collection = response.collection, error = error.message, "response refused");
        self.shared.metrics.nack(&response.collection, error.code);
        let request = RequestResources {
            sink_node: Some(self.shared.node()),
            incremental: response.incremental,
            collection: response.collection,
            response_nonce: response.nonce,
            error_detail: Some(error),
            ..RequestResources::default()
        };
        self.send(request).await
    }

    async fn send(&self, request: RequestResources) -> Result<(), Status> {
        match self.requests.send_timeout(request, SEND_TIMEOUT).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let code = match error {
                    mpsc::error::SendTimeoutError::Timeout(_) => Code::DeadlineExceeded,
                    mpsc::error::SendTimeoutError::Closed(_) => Code::Unavailable,
                };
                self.shared.metrics.send_failed(code);
                Err(Status::new(code, "the source takes no data"))
            }
        }
    }
}

/// Names, and bodies of the collection's own type; a collection that we have no kind for may hold anything.
fn check_bodies(response: &Resources) -> Result<(), String> {
    let expected = match response.collection.as_str() {
        kind::SYNTHETIC_SERVICE_ENTRIES => Some("istio.networking.v1alpha3.ServiceEntry"),
        kind::MESH_CONFIG => Some("istio.mesh.v1alpha1.MeshConfig"),
        other => kind::by_collection(other).map(|kind| kind.message),
    };
    for resource in &response.resources {
        let name = name_of(resource);
        if name.is_empty() {
            return Err("a resource has no name".to_owned());
        }
        let Some(body) = &resource.body else {
            return Err(format!("{name} has no body"));
        };
        if let Some(expected) = expected
            && type_url::message_name(&body.type_url) != expected
        {
            let found = &body.type_url;
            return Err(format!("{name} holds {found} where {expected} belongs"));
        }
    }
    Ok(())
}
