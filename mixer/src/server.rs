//! The gRPC service `istio.mixer.v1.Mixer`: [`transport`] (HTTP/2) → [`message`] (requests read in place) → load shedding →
//! [`crate::dispatch`].

pub(crate) mod message;
pub(crate) mod transport;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use proto::istio::mixer::v1::{CheckResponse, ReportResponse};
use proto_mesh::attribute::dictionary;
use proto_mesh::attribute::wire::InvalidMessage;
use tokio::time::Instant;
use tonic::Status;

use crate::dispatch;
use crate::load_shed::LoadShedder;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::routing::Table;
use crate::seldom::Seldom;
use message::{CheckMessage, ReportMessage};

/// Quotas of a check, and sets of attributes of a report: each is work for all rules at one go.
const MOST_QUOTAS: usize = 1000;
const MOST_SETS: usize = 10_000;

/// The service.
pub(crate) struct Service {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) pods: Arc<ArcSwap<Pods>>,
    pub(crate) metrics: Metrics,
    pub(crate) shedder: LoadShedder,
    /// Failures in the log.
    pub(crate) failures: Seldom,
}

/// Its methods.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    Check,
    Report,
}

impl Method {
    fn of(path: &str) -> Option<Self> {
        let methods = [Method::Check, Method::Report];
        methods.into_iter().find(|method| method.path() == path)
    }

    fn path(self) -> &'static str {
        match self {
            Method::Check => "/istio.mixer.v1.Mixer/Check",
            Method::Report => "/istio.mixer.v1.Mixer/Report",
        }
    }
}

impl Service {
    /// Answers a call of a method; the answer is framed.
    pub(crate) async fn call(&self, method: Method, message: Bytes) -> Result<Bytes, Status> {
        match method {
            Method::Check => Ok(transport::frame(&self.check(&message).await?)),
            Method::Report => Ok(transport::frame(&self.report(&message).await?)),
        }
    }

    fn admit(&self, global_word_count: u32) -> Result<(), Status> {
        if self.shedder.throttles() {
            self.metrics.throttled.inc();
            return Err(Status::unavailable(
                "server is currently overloaded (attempted load shedding)",
            ));
        }
        if usize::try_from(global_word_count).unwrap_or(usize::MAX) > dictionary::WORDS.len() {
            return Err(Status::internal("inconsistent global dictionary"));
        }
        // Nobody is let through, and nothing forgotten, because the rules have not come yet.
        if self.table.load().id == 0 {
            return Err(Status::unavailable("no configuration has come yet"));
        }
        Ok(())
    }
}

impl Service {
    async fn check(&self, message: &[u8]) -> Result<CheckResponse, Status> {
        let request = CheckMessage::read(message).map_err(unreadable)?;
        bounded("quotas", request.quotas.len(), MOST_QUOTAS)?;
        self.admit(request.global_word_count)?;
        let begun = Instant::now();
        let table = self.table.load_full();
        let pods = self.pods.load_full();
        let outcome = dispatch::check::check(&table, &pods, &self.metrics, &request).await;
        self.shedder.observe(begun.elapsed());
        outcome.map_err(|error| {
            if let Some(times) = self.failures.times() {
                tracing::error!(target: "api", %error, times, "a check failed");
            }
            Status::internal(format!("performing check operation failed: {error}"))
        })
    }

    async fn report(&self, message: &[u8]) -> Result<ReportResponse, Status> {
        let request = ReportMessage::read(message).map_err(unreadable)?;
        bounded("sets of attributes", request.sets.len(), MOST_SETS)?;
        self.admit(request.global_word_count)?;
        if request.sets.is_empty() {
            return Ok(ReportResponse {});
        }
        let begun = Instant::now();
        let table = self.table.load_full();
        let asked = dispatch::report::ask_all(&table, &request).await;
        let pods = self.pods.load();
        let outcome = asked.and_then(|asked| {
            dispatch::report::report(&table, &pods, &self.metrics, &request, &asked)
        });
        self.shedder.observe(begun.elapsed());
        outcome.map_err(|error| {
            if let Some(times) = self.failures.times() {
                tracing::error!(target: "api", %error, times, "a report failed");
            }
            Status::unknown(error.to_string())
        })?;
        Ok(ReportResponse {})
    }
}

fn bounded(what: &str, number: usize, most: usize) -> Result<(), Status> {
    if number > most {
        let problem = format!("there are {number} {what} in the message: {most} are allowed");
        return Err(Status::invalid_argument(problem));
    }
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "it is an error's last stop")]
fn unreadable(error: InvalidMessage) -> Status {
    Status::internal(error.to_string())
}
