//! The admin interface's HTTP server and the table of its paths.

use super::{certs, clusters, config_dump, control, listeners, stats};
use crate::{
    args::Options,
    bootstrap::{AdminAddress, Bootstrap},
    config::ConfigStore,
};
use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto_component::{logging::Logging, task};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

/// Connections at once.
const MOST_CONNECTIONS: usize = 64;
/// Patience for a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the handlers look at.
pub(crate) struct Admin {
    /// Configuration and listeners.
    pub(super) store: Arc<ConfigStore>,
    /// As read.
    pub(super) bootstrap: Arc<Bootstrap>,
    /// Log levels.
    pub(super) logging: Option<Logging>,
    /// For `/server_info`.
    pub(super) config_path: Option<PathBuf>,
}

/// A request's query.
pub(super) struct Query(BTreeMap<String, String>);

/// An answer.
pub(super) enum Answer {
    /// Plain text.
    Text(String),
    /// JSON.
    Json(Value),
    /// Text of another type.
    Typed(&'static str, String),
    /// An error or a state.
    Status(StatusCode, String),
}

type Handler = fn(&Admin, &Query) -> Answer;

/// Path, whether it changes something (POST only), what it does, handler.
const PATHS: &[(&str, bool, &str, Handler)] = &[
    ("/certs", false, "print certs on machine", certs::certs),
    (
        "/clusters",
        false,
        "upstream cluster status",
        clusters::clusters,
    ),
    (
        "/config_dump",
        false,
        "dump current configs (experimental)",
        config_dump::config_dump,
    ),
    (
        "/contention",
        false,
        "dump current Envoy mutex contention stats (if enabled)",
        control::contention,
    ),
    (
        "/drain_listeners",
        true,
        "drain listeners",
        control::drain_listeners,
    ),
    (
        "/healthcheck/fail",
        true,
        "cause the server to fail health checks",
        control::health_check_fail,
    ),
    (
        "/healthcheck/ok",
        true,
        "cause the server to pass health checks",
        control::health_check_ok,
    ),
    ("/help", false, "print out list of admin commands", help),
    (
        "/init_dump",
        false,
        "dump current Envoy init manager information (experimental)",
        control::init_dump,
    ),
    (
        "/listeners",
        false,
        "print listener info",
        listeners::listeners,
    ),
    (
        "/logging",
        true,
        "query/change logging levels",
        control::logging,
    ),
    (
        "/memory",
        false,
        "print current allocation/heap usage",
        control::memory,
    ),
    ("/quitquitquit", true, "exit the server", control::quit),
    (
        "/ready",
        false,
        "print server state, return 200 if LIVE, otherwise return 503",
        control::ready,
    ),
    (
        "/reopen_logs",
        true,
        "reopen access logs",
        control::reopen_logs,
    ),
    (
        "/reset_counters",
        true,
        "reset all counters to zero",
        control::reset_counters,
    ),
    ("/runtime", false, "print runtime values", control::runtime),
    (
        "/runtime_modify",
        true,
        "modify runtime values",
        control::runtime_modify,
    ),
    (
        "/server_info",
        false,
        "print server version/status information",
        control::server_info,
    ),
    ("/stats", false, "print server stats", stats::stats),
    (
        "/stats/prometheus",
        false,
        "print server stats in prometheus format",
        stats::prometheus,
    ),
    (
        "/stats/recentlookups",
        false,
        "Show recent stat-name lookups",
        stats::recent_lookups,
    ),
    (
        "/stats/recentlookups/clear",
        true,
        "clear list of stat-name lookups and counter",
        stats::recent_lookups_done,
    ),
    (
        "/stats/recentlookups/disable",
        true,
        "disable recording of reset stat-name lookup names",
        stats::recent_lookups_done,
    ),
    (
        "/stats/recentlookups/enable",
        true,
        "enable recording of reset stat-name lookup names",
        stats::recent_lookups_done,
    ),
];

impl Admin {
    /// The handlers' view of the process.
    pub(crate) fn new(
        store: Arc<ConfigStore>,
        bootstrap: Arc<Bootstrap>,
        options: &Options,
    ) -> Self {
        Self {
            store,
            bootstrap,
            logging: options.logging.clone(),
            config_path: options.config_path(),
        }
    }

    fn answer(&self, method: &Method, path: &str, query: &Query) -> Answer {
        if path == "/" {
            return index();
        }
        let path = if path.len() > 1 {
            path.trim_end_matches('/')
        } else {
            path
        };
        match PATHS.iter().find(|(known, ..)| *known == path) {
            None => Answer::Status(
                StatusCode::NOT_FOUND,
                format!("invalid path. {}", help_text()),
            ),
            Some((_, true, ..)) if method != Method::POST => Answer::Status(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("Method {method} not allowed, POST required."),
            ),
            Some((.., handler)) => handler(self, query),
        }
    }
}

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(name), unescape(value))
        });
        Self(pairs.collect())
    }

    /// The value of `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether `name` is there, with or without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether there are no parameters.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All parameters.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first parameter.
    pub(super) fn first(&self) -> Option<(&str, &str)> {
        self.0
            .iter()
            .next()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn unescape(text: &str) -> String {
    let spaced = text.replace('+', " ");
    String::from_utf8_lossy(&crate::wire::percent_decode(spaced.as_bytes())).into_owned()
}

fn help_text() -> String {
    let lines: Vec<String> = PATHS
        .iter()
        .map(|(path, is_post, what, _)| {
            format!("  {path}{}: {what}", if *is_post { " (POST)" } else { "" })
        })
        .collect();
    format!(
        "admin commands are:\n  /: Admin home page\n{}\n",
        lines.join("\n")
    )
}

fn help(_: &Admin, _: &Query) -> Answer {
    Answer::Text(help_text())
}

fn index() -> Answer {
    let rows: String = PATHS
        .iter()
        .map(|(path, is_post, what, _)| {
            let link = if *is_post {
                format!("<form action=\"{path}\" method=\"post\"><button>{path}</button></form>")
            } else {
                format!("<a href=\"{path}\">{path}</a>")
            };
            format!("<tr><td>{link}</td><td>{what}</td></tr>\n")
        })
        .collect();
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>bireme-proxy admin</title>\
         <style>body{{font:15px/1.5 system-ui;margin:2rem auto;max-width:52rem}}td{{padding:.2rem .8rem;border-bottom:1px solid #ddd}}\
         form{{margin:0}}</style></head><body><h1>bireme-proxy</h1><table>\n{rows}</table></body></html>\n"
    );
    Answer::Typed("text/html; charset=UTF-8", page)
}

impl Answer {
    fn into_response(self) -> Response<Full<Bytes>> {
        let (status, kind, body) = match self {
            Self::Text(text) => (StatusCode::OK, "text/plain; charset=UTF-8", text),
            Self::Json(value) => {
                // A value that was just made from strings and numbers can be written.
                (
                    StatusCode::OK,
                    "application/json",
                    serde_json::to_string_pretty(&value).unwrap_or_default(),
                )
            }
            Self::Typed(kind, text) => (StatusCode::OK, kind, text),
            Self::Status(status, text) => (status, "text/plain; charset=UTF-8", text),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, max-age=0"),
        );
        headers.insert(
            "x-content-type-options",
            HeaderValue::from_static("nosniff"),
        );
        headers.insert(header::SERVER, HeaderValue::from_static("envoy"));
        response
    }
}

/// Takes the admin interface's socket and serves it; the address goes to `path` if one is given.
pub(crate) async fn start(
    admin: Arc<Admin>,
    address: &AdminAddress,
    path: Option<&Path>,
) -> anyhow::Result<()> {
    match address {
        AdminAddress::Socket(address) => {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot bind '{address}'"))?;
            let local = listener.local_addr()?;
            tracing::info!(target: "admin", address = %local, "admin interface");
            if let Some(path) = path {
                std::fs::write(path, local.to_string())
                    .with_context(|| format!("write {}", path.display()))?;
            }
            task::spawn("admin", async move {
                let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    serve_accepted(&admin, &room, accepted).await;
                }
            });
        }
        AdminAddress::Pipe(file) => {
            if std::os::unix::net::UnixStream::connect(file).is_err() {
                // A socket file outlives its process; there may be none.
                let _ = std::fs::remove_file(file);
            }
            let listener = UnixListener::bind(file)
                .with_context(|| format!("cannot bind '{}'", file.display()))?;
            task::spawn("admin", async move {
                let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    serve_accepted(&admin, &room, accepted).await;
                }
            });
        }
    }
    Ok(())
}

async fn serve_accepted<S>(admin: &Arc<Admin>, room: &Arc<Semaphore>, accepted: std::io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (Ok(stream), Ok(permit)) = (accepted, room.clone().acquire_owned().await) else {
        tokio::time::sleep(Duration::from_millis(20)).await;
        return;
    };
    let admin = admin.clone();
    task::spawn("admin-connection", async move {
        let _permit = permit;
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let query = Query::parse(request.uri().query().unwrap_or_default());
            let answer = admin.answer(request.method(), request.uri().path(), &query);
            async move { Ok::<_, Infallible>(answer.into_response()) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        if let Err(error) = builder
            .serve_connection(TokioIo::new(stream), service)
            .await
        {
            tracing::debug!(target: "admin", %error, "connection ended");
        }
    });
}
