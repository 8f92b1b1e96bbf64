//! The monitoring port (15014): metrics, health, readiness, version, log levels, and the component's debug pages.

use crate::{
    args::Address,
    drain::Drain,
    listen::{BindError, Incoming, Listener, Peer},
    logging::Logging,
    process::Process,
    readiness::Readiness,
    task,
    version::version,
};
use axum::{
    Json, Router,
    extract::{ConnectInfo, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Response},
    routing::{MethodRouter, get},
};
use futures::future::BoxFuture;
use prometheus::Encoder as _;
use std::{collections::BTreeMap, sync::Arc};

mod process_metrics;

/// How the list of pages looks.
const STYLE: &str = "body { max-width: 56rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #1f2933 } \
    a { color: #7c3a2d } p a { margin-right: 1rem } table { border-collapse: collapse } \
    td { padding: .35rem 1.5rem .35rem 0; border-top: 1px solid #e4e0da } td a { font-family: ui-monospace, monospace } small { color: #6b7280 }";

/// The pages of a component's monitoring port, put together before it is bound.
pub struct Monitoring {
    router: Router,
    debug: BTreeMap<String, String>,
    shared: Arc<Shared>,
}

/// A monitoring port that is bound but not yet served.
pub struct Bound {
    listener: Listener,
    router: Router,
}

struct Shared {
    name: &'static str,
    registry: prometheus::Registry,
    readiness: Readiness,
    logging: Logging,
    drain: Drain,
}

#[derive(serde::Deserialize)]
struct LevelQuery {
    level: Option<String>,
    scope: Option<String>,
}

impl Monitoring {
    /// The pages every component has. Registers the process's own metrics.
    pub fn new(process: &Process) -> Self {
        // Registered already if a process has two monitoring ports.
        let _ = process
            .registry
            .register(Box::new(process_metrics::ProcessMetrics::new()));
        let shared = Arc::new(Shared {
            name: process.name,
            registry: process.registry.clone(),
            readiness: process.readiness.clone(),
            logging: process.logging.clone(),
            drain: process.drain.clone(),
        });
        let pages = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .route("/ready", get(ready))
            .route("/version", get(show_version))
            .route("/logging", get(levels).put(change_level).post(change_level))
            .with_state(shared.clone());
        Self {
            router: pages,
            debug: BTreeMap::new(),
            shared,
        }
        .debug("/debug/tasks", "running tasks", get(tasks))
    }

    /// Adds a page (its handlers carry their own state).
    #[must_use]
    pub fn route(mut self, path: &str, page: MethodRouter) -> Self {
        self.router = self.router.route(path, page);
        self
    }

    /// Adds a debug page, listed with its description at `/debug/`.
    #[must_use]
    pub fn debug(mut self, path: &str, what: &str, page: MethodRouter) -> Self {
        self.debug.insert(path.to_owned(), what.to_owned());
        self.route(path, page)
    }

    /// Adds a debug page that shows configuration, and with it perhaps what is not meant for everybody: only whoever is in the
    /// same pod may read it (`kubectl port-forward` and `exec` are).
    #[must_use]
    pub fn private_debug(self, path: &str, what: &str, page: MethodRouter) -> Self {
        let what = format!("{what} <small>from this pod only</small>");
        self.debug(path, &what, page.layer(from_fn(only_from_this_pod)))
    }

    /// Merges routes of the component.
    #[must_use]
    pub fn merge(mut self, routes: Router) -> Self {
        self.router = self.router.merge(routes);
        self
    }

    /// All pages as a router (pilot serves them on 8080 as well).
    pub fn router(self) -> Router {
        let name = self.shared.name;
        let rows: String = self
            .debug
            .iter()
            .map(|(path, what)| {
                format!("<tr><td><a href=\"{path}\">{path}</a></td><td>{what}</td></tr>\n")
            })
            .collect();
        let listing = format!(
            "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style></head>\n\
             <body><h1>{name}</h1>\n\
             <p><a href=\"/metrics\">metrics</a> <a href=\"/ready\">ready</a> <a href=\"/version\">version</a> \
             <a href=\"/logging\">logging</a></p>\n<table>\n{rows}</table></body></html>\n"
        );
        let page = get(move || {
            let listing = listing.clone();
            async move { Html(listing) }
        });
        self.router
            .route("/debug", page.clone())
            .route("/debug/", page)
    }

    /// Takes the socket; `flag` is named if it cannot.
    pub async fn bind(self, address: &str, flag: &str) -> Result<Bound, BindError> {
        let listener = Listener::bind_text(address, flag).await?;
        Ok(Bound {
            listener,
            router: self.router(),
        })
    }
}

impl Bound {
    /// The address taken.
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Serves until the process ends: it goes on answering while the component drains.
    pub fn start(self, process: &Process) {
        tracing::info!(address = %self.listener.address(), "monitoring");
        let incoming = self.listener.plaintext(&Drain::never());
        let drain = process.drain.clone();
        task::spawn("monitoring", async move {
            serve_http(incoming, self.router, async move { drain.expired().await }).await;
        });
    }
}

/// Serves HTTP/1.1 on a listener until `end`, then lets requests in flight finish.
pub fn serve_http(
    incoming: Incoming,
    router: Router,
    end: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, ()> {
    serve_until(incoming, router, Box::pin(end))
}

/// Not generic and boxed, so that HTTP is compiled here once and not in every component.
fn serve_until(
    incoming: Incoming,
    router: Router,
    end: BoxFuture<'static, ()>,
) -> BoxFuture<'static, ()> {
    let service = router.into_make_service_with_connect_info::<Peer>();
    // Serving has no errors of its own: the listener retries, connections fail one by one.
    let serving = axum::serve(incoming, service).with_graceful_shutdown(end);
    Box::pin(async move {
        let _ = serving.await;
    })
}

async fn only_from_this_pod(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.is_local() {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "only from this pod\n").into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let mut body = Vec::new();
    let encoder = prometheus::TextEncoder::new();
    match encoder.encode(&shared.registry.gather(), &mut body) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            body,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let mut missing = shared.readiness.missing();
    if shared.drain.is_draining() {
        missing.push("draining".to_owned());
    }
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        let text = format!("not ready: {}\n", missing.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

async fn show_version(headers: HeaderMap) -> Response {
    let wants_json = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("json"));
    if wants_json {
        Json(version()).into_response()
    } else {
        version().to_string().into_response()
    }
}

async fn levels(State(shared): State<Arc<Shared>>) -> Json<BTreeMap<String, String>> {
    Json(shared.logging.scopes())
}

/// `?level=debug`, `?scope=ads&level=debug`, `?level=ads:debug,default:info`, or `?scope=ads:debug`. Only for whoever is in the
/// same pod: the port is everybody's.
async fn change_level(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(query): Query<LevelQuery>,
) -> Response {
    if !peer.is_local() {
        return (StatusCode::FORBIDDEN, "only from this pod\n").into_response();
    }
    let levels = match (query.scope, query.level) {
        (Some(scope), Some(level)) => format!("{scope}:{level}"),
        (Some(levels), None) | (None, Some(levels)) => levels,
        (None, None) => {
            let hint = "give ?level=LEVEL or ?scope=SCOPE&level=LEVEL\n";
            return (StatusCode::BAD_REQUEST, hint).into_response();
        }
    };
    match shared.logging.set(&levels) {
        Ok(()) => Json(shared.logging.scopes()).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, error + "\n").into_response(),
    }
}

async fn tasks() -> Json<BTreeMap<&'static str, usize>> {
    Json(task::running())
}

#[cfg(test)]
mod tests;
