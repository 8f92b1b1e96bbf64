//! The application's own metrics, where its pod says by `prometheus.io` annotations that it has some: the injector points Prometheus
//! at the agent, which asks the application from inside the pod and gives its metrics together with the proxy's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde::Deserialize;

use crate::admin::AdminClient;

const DEFAULT_PORT: u16 = 80;
const DEFAULT_PATH: &str = "/metrics";
/// The end of a page in OpenMetrics, which may not come before other metrics.
const END: &str = "# EOF";

/// Where the application's metrics are.
#[derive(Debug)]
pub struct AppMetrics {
    page: Option<(AdminClient, String)>,
    scrapes: IntCounter,
    failures: IntCounterVec,
}

/// `ISTIO_PROMETHEUS_ANNOTATIONS` that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidScrape {
    /// It is not what the injector writes.
    #[error("ISTIO_PROMETHEUS_ANNOTATIONS: {0}")]
    Text(#[from] serde_json::Error),
    /// There is no such port.
    #[error("ISTIO_PROMETHEUS_ANNOTATIONS: {0:?} is not a port")]
    Port(String),
    /// The agent's metrics cannot be kept.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// The pod's annotations.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    scrape: String,
    path: String,
    port: String,
}

impl AppMetrics {
    /// Reads the variable; an empty one means no metrics. The application listens on `address`.
    ///
    /// # Errors
    /// When the variable is not what the injector writes.
    pub fn new(text: &str, address: IpAddr, registry: &Registry) -> Result<Self, InvalidScrape> {
        let annotations: Annotations = match text.trim() {
            "" => Annotations::default(),
            text => serde_json::from_str(text)?,
        };
        let scrapes = IntCounter::new("istio_agent_scrapes_total", "The total number of scrapes.")?;
        let failures = IntCounterVec::new(
            Opts::new(
                "istio_agent_scrape_failures_total",
                "The total number of failed scrapes.",
            ),
            &["type"],
        )?;
        registry.register(Box::new(scrapes.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        let mut page = None;
        if annotations.scrape == "true" {
            let port = match annotations.port.as_str() {
                "" => DEFAULT_PORT,
                text => (text.parse()).map_err(|_| InvalidScrape::Port(text.to_owned()))?,
            };
            let path = match annotations.path.as_str() {
                "" => DEFAULT_PATH.to_owned(),
                path => format!("/{}", path.trim_start_matches('/')),
            };
            page = Some((AdminClient::new(SocketAddr::new(address, port)), path));
        }
        Ok(Self {
            page,
            scrapes,
            failures,
        })
    }

    /// The application's page of this moment; empty if there is none.
    pub(super) async fn scrape(&self, deadline: Duration) -> String {
        self.scrapes.inc();
        let Some((application, path)) = &self.page else {
            return String::new();
        };
        let answer = application.request(Method::GET, path, String::new(), deadline);
        let reason = match answer.await {
            Ok((StatusCode::OK, body)) => {
                let text = String::from_utf8_lossy(&body);
                return match text.trim_end().strip_suffix(END) {
                    Some(text) => text.to_owned(),
                    None => text.into_owned(),
                };
            }
            Ok((status, _)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(target: "status", path, reason, "no metrics of the application");
        self.failures.with_label_values(&["application"]).inc();
        String::new()
    }
}
