//! `pilot-discovery request`: asks a running Pilot on this machine and prints what it says.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::args::Request;

/// Where Pilot answers.
const ADDRESS: &str = "127.0.0.1:15014";
/// As in Istio.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Sends the request and prints the body. The exit code is 1 for statuses other than 2xx.
///
/// # Errors
/// When nobody answers, or what comes is not HTTP.
pub async fn run(request: &Request) -> anyhow::Result<ExitCode> {
    let answer = tokio::time::timeout(TIMEOUT, ask(request))
        .await
        .context("no answer in time")??;
    let text = String::from_utf8_lossy(&answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("{ADDRESS} does not speak HTTP")
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    std::io::stdout().write_all(body.as_bytes())?;
    Ok(if status.starts_with('2') {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn ask(request: &Request) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(ADDRESS)
        .await
        .with_context(|| format!("connect to {ADDRESS}"))?;
    let body = request.body.as_deref().unwrap_or_default();
    // HTTP/1.0, so that the answer ends with the connection and is not chunked.
    let text = format!(
        "{} {} HTTP/1.0\r\nHost: {ADDRESS}\r\nContent-Length: {}\r\n\r\n{body}",
        request.method.to_uppercase(),
        request.path,
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}
