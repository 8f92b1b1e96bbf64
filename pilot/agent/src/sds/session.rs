//! One SDS stream: which names it wants, which versions it has, what to send next. The two protocols differ only in their
//! messages; [`Protocol`] hides that.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt as _};
use proto_component::drain::Drain;
use tokio::sync::mpsc;
use tonic::Status;

use super::Metrics;
use crate::secret::Versioned;
use crate::secret_cache::SecretCache;

/// What a request means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    /// Names wanted from now on.
    pub(super) subscribe: Vec<String>,
    /// Names not wanted any more.
    pub(super) unsubscribe: Vec<String>,
    /// Versions that the proxy says it has, from before a reconnect.
    pub(super) known: BTreeMap<String, String>,
    /// The nonce that it answers; empty for none.
    pub(super) nonce: String,
    /// Why it refused what the nonce stands for.
    pub(super) error: Option<String>,
}

/// State of the world, or delta.
pub(super) trait Protocol: Default + Send + 'static {
    /// What comes in.
    type Request: Send + 'static;
    /// What goes out.
    type Response: Send + 'static;

    /// Reads a request; `wanted` are the names so far.
    fn read(
        &mut self,
        request: Self::Request,
        wanted: &BTreeMap<String, Option<String>>,
    ) -> Result<Meaning, Status>;

    /// An answer with these secrets.
    fn respond(&self, secrets: &[Versioned], nonce: String) -> Self::Response;
}

/// One stream's state.
pub(super) struct Session<P> {
    protocol: P,
    cache: SecretCache,
    metrics: Metrics,
    drain: Drain,
    /// Names wanted, with the version last sent.
    wanted: BTreeMap<String, Option<String>>,
    nonce: u64,
}

impl<P: Protocol> Session<P> {
    pub(super) fn new(cache: SecretCache, metrics: Metrics, drain: Drain) -> Self {
        Self {
            protocol: P::default(),
            cache,
            metrics,
            drain,
            wanted: BTreeMap::new(),
            nonce: 0,
        }
    }

    /// Answers until the proxy goes, or the drain's deadline.
    pub(super) async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<P::Request, Status>> + Send + Unpin,
        answers: mpsc::Sender<Result<P::Response, Status>>,
    ) {
        let connections = self.metrics.connections.clone();
        connections.inc();
        let mut changes = self.cache.subscribe();
        let drain = self.drain.clone();
        loop {
            let outcome = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.take(request),
                    // The proxy has gone.
                    Some(Err(_)) | None => break,
                },
                changed = changes.changed() => if changed.is_ok() { Ok(()) } else { break },
                () = answers.closed() => break,
                () = drain.expired() => break,
            };
            let answer = match outcome {
                Ok(()) => match self.due() {
                    Some(response) => Ok(response),
                    None => continue,
                },
                Err(status) => Err(status),
            };
            let is_end = answer.is_err();
            // A proxy that does not read must not hold the drain.
            let is_sent = tokio::select! {
                sent = answers.send(answer) => sent.is_ok(),
                () = drain.expired() => false,
            };
            if !is_sent || is_end {
                break;
            }
        }
        connections.dec();
    }

    /// Takes a request in.
    fn take(&mut self, request: P::Request) -> Result<(), Status> {
        let meaning = self.protocol.read(request, &self.wanted)?;
        if let Some(error) = meaning.error {
            self.metrics.push_errors.inc();
            tracing::warn!(target: "sds", error, nonce = meaning.nonce, "the proxy refused a secret");
        }
        for name in meaning.unsubscribe {
            self.wanted.remove(&name);
        }
        for name in meaning.subscribe {
            let known = meaning.known.get(&name).cloned();
            // Asked for again means: send it again.
            self.wanted.insert(name, known);
        }
        if self.wanted.len() > super::MAX_NAMES {
            return Err(Status::resource_exhausted("too many secrets on one stream"));
        }
        Ok(())
    }

    /// What has not been sent in its present version.
    fn due(&mut self) -> Option<P::Response> {
        let mut secrets = Vec::new();
        for (name, sent) in &mut self.wanted {
            let Some(secret) = self.cache.get(name) else {
                continue;
            };
            if sent.as_ref() != Some(&secret.version) {
                *sent = Some(secret.version.clone());
                secrets.push(secret);
            }
        }
        if secrets.is_empty() {
            return None;
        }
        self.nonce += 1;
        self.metrics.pushes.inc();
        Some(self.protocol.respond(&secrets, self.nonce.to_string()))
    }
}
