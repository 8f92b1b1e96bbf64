//! Fetching a list: at the start, then at every interval. A list that could not be fetched for its time to live is dropped.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::Uri;
use proto_component::fetch::{self, Roots};
use proto_component::task;
use tokio::time::Instant;

use super::ListChecker;
use super::entries::Entries;
use crate::adapter::http::{self, HttpClient};

const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a list is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    File(PathBuf),
    Web(Uri),
    /// The server has to have a certificate of an authority that the system trusts.
    SecureWeb(Uri),
}

/// Where a URL points to: `http://…`, `https://…` or `file:///PATH`.
pub(super) fn place(url: &str) -> Result<Place, String> {
    match url.strip_prefix("file://") {
        Some(path) if path.starts_with('/') => Ok(Place::File(path.into())),
        Some(_) => Err("a file's URL is file:///PATH".into()),
        None => match url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("https") => Ok(Place::SecureWeb(uri)),
            _ => http::check_url(url).map(Place::Web),
        },
    }
}

/// Keeps the list fresh for as long as the handler lives.
pub(super) fn start(checker: &Arc<ListChecker>, place: Place) {
    let checker = Arc::downgrade(checker);
    task::spawn("list-refresh", refresh(checker, place));
}

async fn refresh(checker: Weak<ListChecker>, place: Place) {
    let client = http::client();
    let mut last_body = None;
    let mut fetched = Instant::now();
    loop {
        let Some(strong) = checker.upgrade() else {
            return;
        };
        let url = strong.params.provider_url.clone();
        let interval = strong.params.refresh_interval;
        drop(strong);
        let body = match tokio::time::timeout(FETCH_TIMEOUT, fetch(&client, &place)).await {
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

async fn fetch(client: &HttpClient, place: &Place) -> Result<String, String> {
    let body = match place {
        Place::File(path) => tokio::fs::read(path)
            .await
            .map_err(|error| error.to_string())?,
        Place::Web(uri) => http::get(client, uri.clone()).await?.to_vec(),
        Place::SecureWeb(uri) => fetch::get(uri, Roots::SystemAnd(&[]), FETCH_TIMEOUT)
            .await
            .map_err(|error| error.to_string())?,
    };
    String::from_utf8(body).map_err(|_| "the body is not UTF-8".to_owned())
}
