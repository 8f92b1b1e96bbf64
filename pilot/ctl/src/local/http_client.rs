//! One HTTP request over a stream that is already there: probes, webhooks, admin pages, the control API.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use proto_component::task;
use tokio::io::{AsyncRead, AsyncWrite};

/// The largest answer that is read: the configuration dump of a proxy in a big mesh.
const LIMIT: usize = 256 * 1024 * 1024;

/// Sends `request` and reads the whole answer.
pub(crate) async fn send<S>(
    stream: S,
    request: http::Request<Full<Bytes>>,
    patience: Duration,
) -> anyhow::Result<http::Response<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .context("speak HTTP")?;
        // The connection's own failure shows in the request's.
        let connection = task::spawn("http-connection", async move {
            let _ = connection.await;
        });
        let response = sender
            .send_request(request)
            .await
            .context("send the request")?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LIMIT)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("read the answer: {error}"))?;
        connection.abort();
        Ok(http::Response::from_parts(head, body.to_bytes()))
    };
    tokio::time::timeout(patience, exchange)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {patience:?}"))?
}

/// A request with a JSON body (or none).
pub(crate) fn request(
    method: http::Method,
    host: &str,
    path: &str,
    body: Option<Vec<u8>>,
) -> anyhow::Result<http::Request<Full<Bytes>>> {
    http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .with_context(|| format!("request for {path}"))
}
