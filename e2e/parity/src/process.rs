//! A proxy as a process: started with a group's bootstrap, asked over its admin interface, ended with the group.

use crate::{client::tcp, connection::Connection, group::Place, http1};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, Command},
    time::sleep,
};

/// How long a proxy may take to serve.
const START: Duration = Duration::from_secs(120);

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The oracle.
    Envoy,
    /// Ours.
    Ours,
}

/// A running proxy.
pub struct Process {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
}

/// The arguments that both proxies take.
fn command(binary: &Path, config: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        .arg("-c")
        .arg(config)
        .args([
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "--file-flush-interval-msec",
            "10",
        ])
        .args(["--drain-time-s", "1", "--log-level", "warning"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

impl Process {
    /// Starts a proxy and waits until it serves.
    ///
    /// # Errors
    /// When it refuses its configuration or does not serve in time.
    pub async fn start(binary: &Path, config: &Path, place: &Place) -> anyhow::Result<Self> {
        let log = config.with_extension("log");
        let output = File::create(&log).context("make the proxy's log")?;
        let child = command(binary, config)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let mut process = Self {
            child,
            admin: place.admin(),
            log,
        };
        let start = Instant::now();
        loop {
            if let Some(status) = process.child.try_wait()? {
                bail!(
                    "{} ended with {status}: {}",
                    binary.display(),
                    process.last_lines()
                );
            }
            if let Ok((200, _)) = ask(process.admin, "GET", "/ready").await {
                return Ok(process);
            }
            if start.elapsed() > START {
                bail!(
                    "{} does not serve: {}",
                    binary.display(),
                    process.last_lines()
                );
            }
            sleep(Duration::from_millis(15)).await;
        }
    }

    /// Whether a configuration is accepted; else the last line of what the proxy said.
    ///
    /// # Errors
    /// When the proxy can't be started.
    pub async fn validate(binary: &Path, config: &Path) -> anyhow::Result<Result<(), String>> {
        let output = command(binary, config)
            .args(["--mode", "validate"])
            .output();
        let output = tokio::time::timeout(START, output).await??;
        if output.status.success() {
            return Ok(Ok(()));
        }
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Err(text.lines().last().unwrap_or_default().to_owned()))
    }

    /// All counters and gauges.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn stats(&self) -> anyhow::Result<std::collections::BTreeMap<String, i64>> {
        let (_, text) = ask(self.admin, "GET", "/stats?format=json").await?;
        let value: Value = serde_json::from_str(&text).context("read /stats")?;
        let stats = value["stats"].as_array().into_iter().flatten();
        Ok(stats
            .filter_map(|stat| Some((stat["name"].as_str()?.to_owned(), stat["value"].as_i64()?)))
            .collect())
    }

    /// Ends the process; what is wrong with how it lived, if anything is.
    pub async fn stop(mut self) -> Option<String> {
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill().await;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        if let Some(panic) = text.lines().find(|line| line.contains("panicked at")) {
            return Some(panic.to_owned());
        }
        ended.map(|status| format!("ended by itself with {status}: {}", self.last_lines()))
    }

    fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

/// Asks the admin interface: status and body.
///
/// # Errors
/// When it does not answer.
pub async fn ask(admin: SocketAddr, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let stream = tcp(admin, None)
        .await?
        .context("the admin interface is not there")?;
    let mut connection = Connection::new(Box::new(stream));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    connection.send(request.as_bytes()).await;
    let head = http1::head(&mut connection)
        .await?
        .context("no answer of the admin interface")?;
    let status = head
        .line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("no status")?;
    let body = whole_body(&mut connection, &head).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn whole_body(connection: &mut Connection, head: &http1::Head) -> anyhow::Result<Vec<u8>> {
    // Bodies of the admin interface are long: they must not be shortened as those of cases are.
    let is_chunked = head
        .field("transfer-encoding")
        .is_some_and(|coding| coding == "chunked");
    let length = head
        .field("content-length")
        .and_then(|length| length.parse().ok());
    if is_chunked {
        let (body, _, is_whole) = http1::chunks(connection).await?;
        anyhow::ensure!(is_whole, "the admin interface's answer is not whole");
        Ok(body)
    } else if let Some(length) = length {
        connection.read_count(length).await
    } else {
        connection.read_all().await
    }
}

/// What a refused configuration looks like in an outcome.
#[must_use]
pub fn verdict(verdict: &Result<(), String>) -> Value {
    json!({"configuration": if verdict.is_ok() { "accepted" } else { "refused" }})
}
