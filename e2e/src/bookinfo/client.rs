//! How one service calls another: plain HTTP, a deadline, and the headers that must travel on.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::header::HOST;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// What a service copies from the request that it serves to the requests that it makes: trace context of every common kind,
/// and who the user is.
pub const PROPAGATED_HEADERS: &[&str] = &[
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "traceparent",
    "tracestate",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "x-datadog-trace-id",
    "end-user",
    "user-agent",
    "authorization",
    "cookie",
];

const LARGEST_ANSWER: usize = 1 << 20;

/// Calls other services.
#[derive(Clone)]
pub struct ServiceClient {
    client: Client<HttpConnector, Empty<Bytes>>,
    forward_proxy: Option<String>,
    deadline: Duration,
}

impl ServiceClient {
    /// A client whose calls end after `deadline`. With `forward_proxy` (`host:port`) every call goes through it in absolute
    /// form, which is how a mesh without interception gets hold of the traffic.
    #[must_use]
    pub fn new(deadline: Duration, forward_proxy: Option<String>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        ServiceClient {
            client,
            forward_proxy,
            deadline,
        }
    }

    /// Gets `url` with the propagated headers of `incoming`, and reads the JSON answer.
    ///
    /// # Errors
    /// No answer in time, a status other than 200, or a body that is not the wanted JSON.
    pub async fn get<T: DeserializeOwned>(
        &self,
        url: &str,
        incoming: &HeaderMap,
    ) -> anyhow::Result<T> {
        let request = build_request(url, incoming)?;
        let exchange = async {
            match &self.forward_proxy {
                None => {
                    read(
                        self.client
                            .request(request)
                            .await
                            .with_context(|| format!("call {url}"))?,
                    )
                    .await
                }
                Some(proxy) => exchange_through(proxy, request).await,
            }
        };
        let (status, body) = tokio::time::timeout(self.deadline, exchange)
            .await
            .with_context(|| format!("{url} did not answer in time"))??;
        if status != StatusCode::OK {
            bail!(
                "{url} answered {status}: {}",
                String::from_utf8_lossy(&body).trim()
            );
        }
        serde_json::from_slice(&body).with_context(|| format!("read the answer of {url}"))
    }
}

fn build_request(url: &str, incoming: &HeaderMap) -> anyhow::Result<Request<Empty<Bytes>>> {
    let uri: Uri = url.parse().with_context(|| format!("parse {url}"))?;
    let authority = uri
        .authority()
        .with_context(|| format!("{url} names no host"))?
        .to_string();
    let mut request = Request::get(uri).header(HOST, authority);
    for name in PROPAGATED_HEADERS {
        for value in incoming.get_all(HeaderName::from_static(name)) {
            request = request.header(*name, value);
        }
    }
    request.body(Empty::new()).context("build request")
}

async fn exchange_through(
    proxy: &str,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(proxy)
        .await
        .with_context(|| format!("connect to the proxy {proxy}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .context("speak HTTP/1.1 to the proxy")?;
    let exchange = async move {
        read(
            sender
                .send_request(request)
                .await
                .context("call through the proxy")?,
        )
        .await
    };
    // The connection makes progress only while it is polled, and ends when the sender is gone.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}

async fn read(response: Response<Incoming>) -> anyhow::Result<(StatusCode, Bytes)> {
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST_ANSWER)
        .collect()
        .await;
    Ok((
        status,
        body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?
            .to_bytes(),
    ))
}
