//! Fetching a list: at the start, then at every interval. A list that could not be fetched for its time to live is dropped.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use proto_component::task;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::ListChecker;
use super::entries::Entries;

const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// A larger body is refused.
const MAX_BODY: usize = 16 << 20;

/// Checks that a URL can be fetched from: scheme and host.
pub(super) fn check_url(url: &str) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(()),
        (Some(scheme), Some(_)) => Err(format!("scheme {scheme} is not supported; use http")),
        _ => Err("scheme and host are needed".into()),
    }
}

/// Keeps the list fresh for as long as the handler lives.
pub(super) fn start(checker: &Arc<ListChecker>) {
    let checker = Arc::downgrade(checker);
    task::spawn("list-refresh", refresh(checker));
}

async fn refresh(checker: Weak<ListChecker>) {
    let mut last_body = None;
    let mut fetched = Instant::now();
    loop {
        let Some(strong) = checker.upgrade() else {
            return;
        };
        let url = strong.params.provider_url.clone();
        let interval = strong.params.refresh_interval;
        drop(strong);
        let body = match tokio::time::timeout(FETCH_TIMEOUT, fetch(&url)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("no answer in time".to_owned()),
        };
        let Some(strong) = checker.upgrade() else {
            return;
        };
        match body.and_then(|body| install(&strong, body, &mut last_body)) {
            Ok(()) => fetched = Instant::now(),
            Err(error) => {
                tracing::warn!(target: "adapters", url, error, "cannot refresh a list");
                if fetched.elapsed() >= strong.params.ttl && strong.list.load().is_some() {
                    tracing::error!(target: "adapters", url, "a list is too old and dropped");
                    strong.list.store(None);
                    last_body = None;
                }
            }
        }
        drop(strong);
        tokio::time::sleep(interval).await;
    }
}

/// Puts a body in force, unless it is the one that is.
fn install(
    checker: &ListChecker,
    body: String,
    last_body: &mut Option<String>,
) -> Result<(), String> {
    if last_body.as_ref() == Some(&body) {
        return Ok(());
    }
    let params = &checker.params;
    let entries = Entries::parse_body(params.entry_type, &body, &params.overrides)?;
    checker.list.store(Some(Arc::new(entries)));
    *last_body = Some(body);
    Ok(())
}

async fn fetch(url: &str) -> Result<String, String> {
    let uri: Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
    let host = uri.host().ok_or("no host")?.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| text(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| text(&error))?;
    let driver = task::spawn("list-fetch", async move {
        // Its error is the request's.
        let _ = connection.await;
    });
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let request = Request::get(path)
        .header(hyper::header::HOST, authority)
        .body(Empty::<Bytes>::new())
        .map_err(|error| text(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| text(&error))?;
    if response.status() != StatusCode::OK {
        return Err(format!("status {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    driver.abort();
    String::from_utf8(body.to_bytes().to_vec()).map_err(|_| "the body is not UTF-8".to_owned())
}
