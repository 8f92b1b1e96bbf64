//! A client of the proxy's admin port: one small HTTP/1.1 request at a time, each on its own connection, with a deadline.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Configuration dumps of big meshes are big.
const MAX_ANSWER: usize = 512 << 20;

/// The admin port of one proxy.
#[derive(Debug, Clone, Copy)]
pub struct AdminClient {
    address: SocketAddr,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens.
    #[error("connect to the proxy's admin port {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    /// The request cannot be written.
    #[error("the request: {0}")]
    Request(#[from] http::Error),
    /// The exchange failed.
    #[error("ask the proxy: {0}")]
    Exchange(#[from] hyper::Error),
    /// The answer did not arrive whole.
    #[error("read the proxy's answer: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("the proxy does not answer")]
    Deadline,
}

impl AdminClient {
    /// The proxy whose admin interface is this one.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Makes one request.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: String,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), AdminError> {
        tokio::time::timeout(deadline, self.exchange(method, path, body))
            .await
            .unwrap_or(Err(AdminError::Deadline))
    }

    /// The body of a successful GET.
    pub async fn get(&self, path: &str, deadline: Duration) -> Option<String> {
        let (status, body) = self
            .request(Method::GET, path, String::new(), deadline)
            .await
            .ok()?;
        (status == StatusCode::OK).then(|| String::from_utf8_lossy(&body).into_owned())
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), AdminError> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| AdminError::Connect(self.address, error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, self.address.to_string())
            .body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
            let body = body.await.map_err(AdminError::Answer)?;
            Ok((status, body.to_bytes()))
        };
        // Driven here, beside the exchange, so that no task outlives the deadline.
        let drive = async {
            // A failure shows in the exchange as well.
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = exchange => outcome,
            () = drive => Err(AdminError::Deadline),
        }
    }
}
