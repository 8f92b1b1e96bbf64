//! `istio_ca certs|revoke|restore|rotate-root`: the operator's commands, carried out by the server behind the socket in its data
//! folder ([`crate::admin`]).

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::UnixStream;

use crate::admin::{Entry, socket};
use crate::args::{AdminArgs, CertsAction, ListArgs, RestoreArgs, RevokeArgs, ShowArgs};
use crate::revocation::{Revoked, Target};

const DEADLINE: Duration = Duration::from_secs(30);
const MAX_SIZE: usize = 256 << 20;

/// Looks into the ledger.
pub async fn certs(action: &CertsAction) -> anyhow::Result<()> {
    match action {
        CertsAction::List(args) => list(args).await,
        CertsAction::Show(args) => show(args).await,
        CertsAction::Verify(args) => {
            let count: usize = ask(&args.data_dir, "/verify", None::<&()>).await?;
            say(&format!("{count} entries, each as it was written"))
        }
    }
}

/// Revokes.
pub async fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let target = match (&args.serial, &args.identity) {
        (Some(serial), _) => Target::Serial(serial.clone()),
        (None, Some(identity)) => Target::Identity(identity.clone()),
        (None, None) => anyhow::bail!("give --serial or --identity"),
    };
    let revoked: Vec<Revoked> = ask(&args.admin.data_dir, "/revoke", Some(&target)).await?;
    for entry in &revoked {
        say(&format!("revoked {} of {}", entry.serial, entry.identity))?;
    }
    if let Target::Identity(identity) = &target {
        say(&format!(
            "{identity} gets no certificates until it is restored ({} were revoked)",
            revoked.len()
        ))?;
    }
    Ok(())
}

/// Lets an identity have certificates again.
pub async fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let was_barred: bool = ask(&args.admin.data_dir, "/restore", Some(&args.identity)).await?;
    let outcome = if was_barred {
        "may have certificates again"
    } else {
        "was not revoked"
    };
    say(&format!("{} {outcome}", args.identity))
}

/// Begins a rotation of the root.
pub async fn rotate_root(args: &AdminArgs) -> anyhow::Result<()> {
    let () = ask(&args.data_dir, "/rotate-root", Some(&())).await?;
    say("the next root is made known; it signs once everybody knows it")
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut path = format!("/certs?limit={}", args.limit);
    if let Some(identity) = &args.identity {
        path.push_str("&identity=");
        path.push_str(&escape(identity));
    }
    let entries: Vec<Entry> = ask(&args.admin.data_dir, &path, None::<&()>).await?;
    if args.output.is_some() {
        return say(&serde_json::to_string_pretty(&entries)?);
    }
    let row = |serial: &str, issued: &str, expires: &str, state: &str, identity: &str| {
        format!("{serial:<34} {issued:<22} {expires:<22} {state:<8} {identity}")
    };
    say(&row("SERIAL", "ISSUED", "EXPIRES", "STATE", "IDENTITY"))?;
    for entry in entries {
        let issued = &entry.issued;
        let (from, to) = (time(issued.issued_at), time(issued.not_after));
        say(&row(
            &issued.serial,
            &from,
            &to,
            state(&entry),
            &issued.identity,
        ))?;
    }
    Ok(())
}

async fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let path = format!("/certs?serial={}", escape(&args.serial));
    let entries: Vec<Entry> = ask(&args.admin.data_dir, &path, None::<&()>).await?;
    let entry = entries
        .first()
        .with_context(|| format!("no certificate {} was issued here", args.serial))?;
    if args.output.is_some() {
        return say(&serde_json::to_string_pretty(entry)?);
    }
    let issued = &entry.issued;
    for (name, value) in [
        ("Serial", issued.serial.as_str()),
        ("Identity", &issued.identity),
        ("State", state(entry)),
        ("Issued", &time(issued.issued_at)),
        ("Not before", &time(issued.not_before)),
        ("Not after", &time(issued.not_after)),
        ("Asked by", issued.peer.as_deref().unwrap_or("-")),
        ("Recognised by", &issued.authenticator),
        ("Key SHA-256", &issued.key_fingerprint),
    ] {
        say(&format!("{name:<14} {value}"))?;
    }
    Ok(())
}

fn state(entry: &Entry) -> &'static str {
    if entry.revoked {
        "revoked"
    } else if entry.issued.not_after <= OffsetDateTime::now_utc() {
        "expired"
    } else {
        "good"
    }
}

fn time(moment: OffsetDateTime) -> String {
    let whole = moment.replace_nanosecond(0).unwrap_or(moment);
    whole.format(&Rfc3339).unwrap_or_default()
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to standard output")
}

/// A query's value: everything but letters and digits as `%XX`.
fn escape(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(byte).collect()
}

/// Asks the server: a GET, or a POST with a body.
async fn ask<T: DeserializeOwned>(
    data_dir: &Path,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<T> {
    let socket = socket(data_dir);
    let answer = tokio::time::timeout(DEADLINE, exchange(&socket, path, body))
        .await
        .context("the server does not answer")?
        .with_context(|| format!("ask the server at {}", socket.display()))?;
    let (status, text) = answer;
    anyhow::ensure!(
        status == http::StatusCode::OK,
        "{}",
        String::from_utf8_lossy(&text)
    );
    serde_json::from_slice(&text).context("read the server's answer")
}

async fn exchange(
    socket: &Path,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<(http::StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = http::Request::get(path).header(http::header::HOST, "citadel");
    let mut content = Vec::new();
    if let Some(body) = body {
        content = serde_json::to_vec(body)?;
        request = request
            .method(http::Method::POST)
            .header(http::header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(Bytes::from(content)))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_SIZE).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    tokio::select! {
        outcome = exchange => outcome,
        Err(error) = connection => Err(error.into()),
    }
}
