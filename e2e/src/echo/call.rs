//! The client: makes calls, all at once, each over a connection of its own and within a deadline.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Call, Outcome, Protocol, Tls};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// An answer is a few headers.
const MAX_ANSWER: u64 = 64 * 1024;

/// What a stream to the server can do.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Makes all calls; the outcomes are in their order.
pub async fn all(calls: &[Call]) -> Vec<Outcome> {
    join_all(calls.iter().map(one)).await
}

/// Makes one call.
pub async fn one(call: &Call) -> Outcome {
    let start = Instant::now();
    let failed = |text: String| Outcome {
        text,
        ..Outcome::default()
    };
    let mut outcome = match tokio::time::timeout(DEADLINE, make(call)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => failed(format!("failed: {error:#}")),
        Err(_) => failed("failed: no answer in time".to_owned()),
    };
    outcome.millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    outcome
}

/// A line to and fro over the same connection, again and again: `opened` is told of the first, and it goes on until the other side
/// ends it.
///
/// # Errors
/// When there is no connection in the first place, or no answer.
pub async fn hold(call: &Call, opened: impl FnOnce()) -> anyhow::Result<()> {
    let mut stream = connect(call).await?;
    round(&mut stream).await?;
    opened();
    while round(&mut stream).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn round(stream: &mut dyn Stream) -> anyhow::Result<()> {
    stream.write_all(b"hold\n").await?;
    let count = stream.read(&mut [0; 1024]).await?;
    anyhow::ensure!(count > 0, "closed without an answer");
    Ok(())
}

async fn make(call: &Call) -> anyhow::Result<Outcome> {
    let mut stream = connect(call).await?;
    match call.protocol {
        Protocol::Http1 => http1(call, stream).await,
        Protocol::Http2 | Protocol::Grpc => http2(call, stream).await,
        Protocol::Raw => {
            let (method, target) = (&call.method, &call.target);
            let mut request = format!("{method} {target} HTTP/1.1\r\nhost: {}\r\n", host(call));
            for (name, value) in &call.headers {
                request.push_str(&format!("{name}: {value}\r\n"));
            }
            request.push_str("connection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
            anyhow::ensure!(status.is_some(), "no HTTP: {text:?}");
            Ok(Outcome {
                status,
                text,
                ..Outcome::default()
            })
        }
        Protocol::Tcp => {
            stream.write_all(b"hello\n").await?;
            let mut answer = vec![0; 1024];
            let count = stream.read(&mut answer).await?;
            anyhow::ensure!(count > 0, "closed without an answer");
            Ok(Outcome {
                status: None,
                text: String::from_utf8_lossy(&answer[..count]).into_owned(),
                ..Outcome::default()
            })
        }
    }
}

async fn connect(call: &Call) -> anyhow::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(&call.address)
        .await
        .with_context(|| format!("connect {}", call.address))?;
    let Some(tls) = &call.tls else {
        return Ok(Box::new(stream));
    };
    let client = client_tls(tls)?;
    let name = client.server_name(&tls.server_name)?;
    let stream = client.connector().connect(name, stream).await;
    Ok(Box::new(stream.context("TLS handshake")?))
}

fn client_tls(tls: &Tls) -> anyhow::Result<ClientTls> {
    let pem = Pem {
        chain: tls.chain.clone().into_bytes(),
        key: tls.key.clone().into_bytes(),
        roots: tls.roots.clone().into_bytes(),
        ..Pem::default()
    };
    let alpn: Vec<&str> = tls.alpn.iter().map(String::as_str).collect();
    Ok(ClientTls::from_pem(&pem, ServerIdentity::Trusted, &alpn)?)
}

fn host(call: &Call) -> &str {
    if call.host.is_empty() {
        &call.address
    } else {
        &call.host
    }
}

async fn http1(call: &Call, stream: Box<dyn Stream>) -> anyhow::Result<Outcome> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::builder()
        .method(call.method.as_str())
        .uri(call.target.as_str())
        .header(header::HOST, host(call));
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::new()))?;
    let exchange = async { read(sender.send_request(request).await?).await };
    tokio::select! {
        outcome = exchange => outcome,
        Err(error) = connection => Err(error.into()),
    }
}

async fn http2(call: &Call, stream: Box<dyn Stream>) -> anyhow::Result<Outcome> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let is_grpc = call.protocol == Protocol::Grpc;
    let uri = format!("http://{}{}", host(call), call.target);
    let mut request = Request::builder().method(call.method.as_str()).uri(uri);
    let mut body = Bytes::new();
    if is_grpc {
        request = request
            .method("POST")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        // One empty message.
        body = Bytes::from_static(&[0; 5]);
    }
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let refused = response
            .headers()
            .get("grpc-status")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let mut outcome = read(response).await?;
        if let (true, Some(code)) = (is_grpc, refused) {
            // A refusal is 200 in gRPC: what counts is its code.
            outcome.status = Some(403).filter(|_| code == "7").or(Some(503));
            outcome.text = format!("grpc-status {code}");
        }
        Ok(outcome)
    };
    tokio::select! {
        outcome = exchange => outcome,
        Err(error) = connection => Err(error.into()),
    }
}

async fn read(response: http::Response<Incoming>) -> anyhow::Result<Outcome> {
    let status = Some(response.status().as_u16());
    let headers = format!("{:?}", response.headers());
    let body = response.into_body().collect().await?.to_bytes();
    let text = format!("{}\n{headers}", String::from_utf8_lossy(&body));
    Ok(Outcome {
        status,
        text,
        ..Outcome::default()
    })
}
