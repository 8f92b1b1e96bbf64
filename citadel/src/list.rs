//! `istio_ca ledger`: what a local server has issued, from its monitoring port, as a table.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::args::LedgerArgs;
use crate::ledger::Issued;

const DEADLINE: Duration = Duration::from_secs(10);
const MAX_SIZE: usize = 64 << 20;

/// Asks the server and prints the table.
pub async fn run(args: &LedgerArgs) -> anyhow::Result<()> {
    let body = tokio::time::timeout(DEADLINE, get(args))
        .await
        .context("the server does not answer")?
        .with_context(|| format!("ask the server at {}", args.address))?;
    let issued: Vec<Issued> = serde_json::from_slice(&body).context("read the server's answer")?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<34} {:<22} {:<22} IDENTITY",
        "SERIAL", "ISSUED", "EXPIRES"
    )?;
    for entry in issued {
        let time = |moment: time::OffsetDateTime| {
            let whole = moment.replace_nanosecond(0).unwrap_or(moment);
            whole
                .format(&time::format_description::well_known::Rfc3339)
                .unwrap_or_default()
        };
        writeln!(
            out,
            "{:<34} {:<22} {:<22} {}",
            entry.serial,
            time(entry.issued_at),
            time(entry.not_after),
            entry.identity
        )?;
    }
    Ok(())
}

async fn get(args: &LedgerArgs) -> anyhow::Result<Vec<u8>> {
    let stream = TcpStream::connect(&args.address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    proto_component::task::spawn("ledger-client", async move {
        // A failure shows in the request as well.
        let _ = connection.await;
    });
    let identity = args
        .identity
        .as_ref()
        .map(|identity| format!("&identity={identity}"))
        .unwrap_or_default();
    let request = http::Request::get(format!("/debug/issued?limit={}{identity}", args.limit))
        .header(http::header::HOST, &args.address)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(
        response.status() == http::StatusCode::OK,
        "it answered {}",
        response.status()
    );
    let body = Limited::new(response.into_body(), MAX_SIZE).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(body.to_bytes().to_vec())
}
