//! The gRPC service `istio.mixer.v1.Mixer`: load shedding, then [`crate::dispatch`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use proto::istio::mixer::v1::mixer_server::Mixer;
use proto::istio::mixer::v1::{CheckRequest, CheckResponse, ReportRequest, ReportResponse};
use proto_mesh::attribute::dictionary;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::dispatch;
use crate::load_shed::LoadShedder;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::routing::Table;
use crate::seldom::Seldom;

/// The service.
pub(crate) struct Service {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) pods: Arc<ArcSwap<Pods>>,
    pub(crate) metrics: Metrics,
    pub(crate) shedder: LoadShedder,
    /// Failures in the log.
    pub(crate) failures: Seldom,
}

impl Service {
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

#[tonic::async_trait]
impl Mixer for Service {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.global_word_count)?;
        let begun = Instant::now();
        let table = self.table.load_full();
        let pods = self.pods.load_full();
        let outcome = dispatch::check::check(&table, &pods, &self.metrics, &request).await;
        self.shedder.observe(begun.elapsed());
        match outcome {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => {
                if let Some(times) = self.failures.times() {
                    tracing::error!(target: "api", %error, times, "a check failed");
                }
                Err(Status::internal(format!(
                    "performing check operation failed: {error}"
                )))
            }
        }
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.global_word_count)?;
        if request.attributes.is_empty() {
            return Ok(Response::new(ReportResponse {}));
        }
        let begun = Instant::now();
        let table = self.table.load_full();
        let outcome = dispatch::report::report(&table, &self.pods.load(), &self.metrics, &request);
        self.shedder.observe(begun.elapsed());
        match outcome {
            Ok(()) => Ok(Response::new(ReportResponse {})),
            Err(error) => {
                if let Some(times) = self.failures.times() {
                    tracing::error!(target: "api", %error, times, "a report failed");
                }
                Err(Status::unknown(error.to_string()))
            }
        }
    }
}
