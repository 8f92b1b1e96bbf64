//! A session with an adapter: Validate and CreateSession until they succeed, CloseSession at the end. Calls wait for it within
//! their deadline; an adapter that has forgotten it (it was started anew) gets a new one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use prost_types::Any;
use proto::istio::mixer::adapter::model::v1beta1 as model;
use proto_component::backoff::Backoff;
use proto_component::task;
use tokio::sync::{Notify, watch};
use tonic::{Code, Status};

use super::Caller;
use crate::adapter::AdapterError;

const SERVICE: &str = "/istio.mixer.adapter.model.v1beta1.InfrastructureBackend";
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// An open session, or one that is being opened. It closes when this goes.
#[derive(Debug)]
pub(in crate::adapter) struct Session {
    id: watch::Receiver<Option<String>>,
    lost: Arc<Notify>,
    /// Gone with the session: the task then closes it.
    _alive: watch::Sender<()>,
}

/// Whether a call failed because the adapter does not know the session.
pub(super) fn is_lost(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::FailedPrecondition)
}

impl Session {
    /// Begins to open a session.
    pub(in crate::adapter) fn open(
        caller: Caller,
        config: Any,
        types: BTreeMap<String, Any>,
        timeout: Duration,
    ) -> Self {
        let (sender, id) = watch::channel(None);
        let (alive, gone) = watch::channel(());
        let lost = Arc::new(Notify::new());
        let opener = Opener {
            caller,
            request: model::CreateSessionRequest {
                adapter_config: Some(config),
                inferred_types: types,
            },
            timeout,
            lost: lost.clone(),
        };
        task::spawn("adapter-session", opener.run(sender, gone));
        Self {
            id,
            lost,
            _alive: alive,
        }
    }

    /// The session's name; waits for it if it is being opened.
    pub(super) async fn id(&self, patience: Duration) -> Result<String, AdapterError> {
        let mut id = self.id.clone();
        let opened = tokio::time::timeout(patience, id.wait_for(Option::is_some)).await;
        match opened {
            Ok(Ok(id)) => Ok(id.clone().unwrap_or_default()),
            _ => Err(AdapterError::new("there is no session with the adapter")),
        }
    }

    /// The adapter does not know it any more.
    pub(super) fn renew(&self) {
        self.lost.notify_one();
    }
}

struct Opener {
    caller: Caller,
    request: model::CreateSessionRequest,
    timeout: Duration,
    lost: Arc<Notify>,
}

impl Opener {
    async fn run(self, id: watch::Sender<Option<String>>, mut gone: watch::Receiver<()>) {
        loop {
            let opened = tokio::select! {
                opened = self.open() => opened,
                _ = gone.changed() => return,
            };
            id.send_replace(Some(opened.clone()));
            tokio::select! {
                () = self.lost.notified() => {
                    tracing::info!(target: "adapters", adapter = ?self.caller, "the adapter has forgotten its session");
                    id.send_replace(None);
                }
                _ = gone.changed() => {
                    self.close(opened).await;
                    return;
                }
            }
        }
    }

    async fn open(&self) -> String {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match self.try_open().await {
                Ok(id) => return id,
                Err(problem) => {
                    let is_news = backoff.attempts() == 0;
                    if is_news {
                        tracing::warn!(target: "adapters", adapter = ?self.caller, problem, "no session with the adapter yet");
                    }
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn try_open(&self) -> Result<String, String> {
        let validate = model::ValidateRequest {
            adapter_config: self.request.adapter_config.clone(),
            inferred_types: self.request.inferred_types.clone(),
        };
        let answer = self.call("Validate", validate.encode_to_vec()).await;
        match answer {
            Ok(answer) => {
                let answer = model::ValidateResponse::decode(answer.as_slice());
                verdict(answer.map_err(|error| error.to_string())?.status)?;
            }
            // An adapter may leave it out.
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) => return Err(status.to_string()),
        }
        let answer = self
            .call("CreateSession", self.request.encode_to_vec())
            .await
            .map_err(|status| status.to_string())?;
        let answer = model::CreateSessionResponse::decode(answer.as_slice())
            .map_err(|error| error.to_string())?;
        verdict(answer.status)?;
        Ok(answer.session_id)
    }

    async fn close(&self, session_id: String) {
        let request = model::CloseSessionRequest { session_id };
        if let Err(status) = self.call("CloseSession", request.encode_to_vec()).await {
            tracing::debug!(target: "adapters", adapter = ?self.caller, %status, "a session was not closed");
        }
    }

    async fn call(&self, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
        let method = format!("{SERVICE}/{method}");
        self.caller.call(&method, message, None, self.timeout).await
    }
}

fn verdict(status: Option<proto::google::rpc::Status>) -> Result<(), String> {
    match status {
        Some(status) if status.code != 0 => Err(format!(
            "the adapter refuses its configuration: {}",
            status.message
        )),
        _ => Ok(()),
    }
}
