//! HTTP towards collectors and policy engines: one pooled client a handler, bounded bodies. The caller keeps the deadline.

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// A larger answer is refused.
const MAX_BODY: usize = 16 << 20;

/// A client with a pool of connections.
pub(super) type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// A new one.
pub(super) fn client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Checks a URL that is going to be called: scheme and host.
pub(super) fn check_url(url: &str) -> Result<Uri, String> {
    let uri: Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(uri),
        (Some(scheme), Some(_)) => Err(format!("scheme {scheme} is not supported; use http")),
        _ => Err("scheme and host are needed".into()),
    }
}

/// The body behind a URL.
pub(super) async fn get(client: &HttpClient, uri: Uri) -> Result<Bytes, String> {
    call(client, Method::GET, uri, "", Bytes::new()).await
}

/// Posts JSON; the answer's body.
pub(super) async fn post_json(
    client: &HttpClient,
    uri: Uri,
    body: Vec<u8>,
) -> Result<Bytes, String> {
    call(client, Method::POST, uri, "application/json", body.into()).await
}

/// Puts a text in a place.
pub(super) async fn put_text(client: &HttpClient, uri: Uri, text: String) -> Result<(), String> {
    let put = call(client, Method::PUT, uri, "text/plain", text.into());
    put.await.map(|_| ())
}

async fn call(
    client: &HttpClient,
    method: Method,
    uri: Uri,
    content_type: &'static str,
    body: Bytes,
) -> Result<Bytes, String> {
    let mut request = Request::builder().method(method).uri(uri);
    if !content_type.is_empty() {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    let request = request
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| {
        // The cause says more than "client error".
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        cause.unwrap_or_else(|| error.to_string())
    })?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY);
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let body = body.to_bytes();
    if !status.is_success() {
        let said: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        return Err(format!("status {status}: {said}"));
    }
    Ok(body)
}
