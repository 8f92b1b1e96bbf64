//! The status server (15020): the kubelet's view of the pod. Readiness of the proxy, the application's own probes (which the
//! injector has redirected here), statistics for Prometheus, and the way to end the agent.

mod metrics;
mod probe;
mod ready;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use prometheus::Encoder as _;
use proto_component::drain::{DEFAULT_GRACE, Trigger};
use proto_component::listen::{BindError, Listener, Peer};
use proto_component::process::Process;
use proto_component::{monitoring, task};

use crate::admin::AdminClient;

pub use metrics::{AppMetrics, InvalidScrape};
pub use probe::{AppProbers, InvalidProbers};
pub use ready::Readiness;

const STATS_DEADLINE: Duration = Duration::from_secs(5);

/// What the pages need.
pub struct Status {
    /// The proxy's admin port.
    pub admin: AdminClient,
    /// Whether the proxy is ready.
    pub readiness: Readiness,
    /// The application's probes.
    pub probers: AppProbers,
    /// The application's metrics.
    pub metrics: AppMetrics,
    /// The agent's own metrics.
    pub registry: prometheus::Registry,
    /// Ends the agent.
    pub trigger: Trigger,
}

impl Status {
    /// Takes the port and serves until the process ends.
    pub async fn start(self, port: u16, process: &Process) -> Result<u16, BindError> {
        let listener = Listener::bind_text(&format!(":{port}"), "--statusPort").await?;
        let port = listener.port().unwrap_or(port);
        // It goes on answering while connections drain.
        let incoming = listener.plaintext(&proto_component::drain::Drain::never());
        let drain = process.drain.clone();
        let router = self.router();
        task::spawn("status", async move {
            monitoring::serve_http(incoming, router, async move { drain.expired().await }).await;
        });
        Ok(port)
    }

    fn router(self) -> Router {
        Router::new()
            .route("/healthz/ready", get(ready))
            .route("/quitquitquit", any(quit))
            .route("/app-health/{*rest}", get(app_health))
            .route("/stats/prometheus", get(stats))
            .route("/metrics", get(stats))
            .with_state(Arc::new(self))
    }
}

async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    match status.readiness.check(&status.admin).await {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(reason) => {
            tracing::debug!(target: "status", reason, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
        }
    }
}

async fn quit(
    State(status): State<Arc<Status>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    method: Method,
) -> (StatusCode, &'static str) {
    if !peer.is_local() {
        return (StatusCode::FORBIDDEN, "only from this pod\n");
    }
    if method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "only POST\n");
    }
    tracing::info!(target: "status", "asked to quit");
    status.trigger.drain(DEFAULT_GRACE);
    (StatusCode::OK, "OK\n")
}

async fn app_health(
    State(status): State<Arc<Status>>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    let path = format!("/app-health/{rest}");
    status.probers.probe(&path, &headers).await
}

/// The proxy's statistics, then the agent's, then the application's.
async fn stats(State(status): State<Arc<Status>>) -> Response {
    let encoder = prometheus::TextEncoder::new();
    let (proxy, application) = tokio::join!(
        status.admin.get("/stats/prometheus", STATS_DEADLINE),
        status.metrics.scrape(STATS_DEADLINE),
    );
    let mut text = String::new();
    append(&mut text, &proxy.unwrap_or_default());
    let mut own = Vec::new();
    if let Err(error) = encoder.encode(&status.registry.gather(), &mut own) {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    append(&mut text, &String::from_utf8_lossy(&own));
    append(&mut text, &application);
    let content_type = [(header::CONTENT_TYPE, encoder.format_type().to_owned())];
    (content_type, Body::from(text)).into_response()
}

/// Whole lines only.
fn append(text: &mut String, more: &str) {
    text.push_str(more);
    if !more.is_empty() && !more.ends_with('\n') {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests;
