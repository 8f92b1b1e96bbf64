//! Runs another proxy program (an Envoy) as a child: started again with back-off when it ends by itself, told to end with
//! SIGTERM, killed when it does not.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::settings::Settings;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(10);
/// A program that has run this long was not failing to start.
const STABLE: Duration = Duration::from_secs(30);
/// Time between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// A program and its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<String>,
}

impl Program {
    /// An Envoy that is started with `bootstrap`.
    pub fn envoy(
        path: &Path,
        bootstrap: &Path,
        settings: &Settings,
        log_level: &str,
        component_log_level: &str,
    ) -> Self {
        let node = &settings.node;
        let mut arguments = vec![
            "-c".to_owned(),
            bootstrap.to_string_lossy().into_owned(),
            "--restart-epoch".to_owned(),
            "0".to_owned(),
            "--drain-time-s".to_owned(),
            settings.drain_duration.as_secs().to_string(),
            "--parent-shutdown-time-s".to_owned(),
            settings.parent_shutdown_duration.as_secs().to_string(),
            "--service-cluster".to_owned(),
            node.cluster.clone(),
            "--service-node".to_owned(),
            node.id.to_string(),
            "--local-address-ip-version".to_owned(),
            if node.id.address.is_ipv6() {
                "v6"
            } else {
                "v4"
            }
            .to_owned(),
            "--allow-unknown-static-fields".to_owned(),
            "--use-dynamic-base-id".to_owned(),
            "-l".to_owned(),
            log_level.to_owned(),
        ];
        if !component_log_level.is_empty() {
            arguments.extend([
                "--component-log-level".to_owned(),
                component_log_level.to_owned(),
            ]);
        }
        if settings.concurrency > 0 {
            arguments.extend(["--concurrency".to_owned(), settings.concurrency.to_string()]);
        }
        Self {
            path: path.to_owned(),
            arguments,
        }
    }

    /// A program with a command line of its own.
    pub fn new(path: &Path, arguments: &[&str]) -> Self {
        Self {
            path: path.to_owned(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    /// Keeps the program running until the drain, then ends it.
    pub async fn run(&self, drain: &Drain) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
        while !drain.is_draining() {
            let started = Instant::now();
            let mut child = self.start()?;
            tracing::info!(target: "envoy", program = %self.path.display(), pid = child.id(), "started the proxy");
            let ended = tokio::select! {
                ended = child.wait() => ended.context("wait for the proxy")?,
                () = drain.signaled() => return end(child).await,
            };
            if started.elapsed() >= STABLE {
                backoff.reset();
            }
            tracing::error!(target: "envoy", status = %ended, "the proxy has ended, starting it again");
            if !backoff.wait(drain).await {
                break;
            }
        }
        Ok(())
    }

    fn start(&self) -> anyhow::Result<Child> {
        Command::new(&self.path)
            .args(&self.arguments)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start --binaryPath {}", self.path.display()))
    }
}

/// SIGTERM, then SIGKILL.
async fn end(mut child: Child) -> anyhow::Result<()> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let status: ExitStatus = match tokio::time::timeout(PATIENCE, child.wait()).await {
        Ok(status) => status?,
        Err(_) => {
            tracing::warn!(target: "envoy", "the proxy does not end, killing it");
            child.kill().await?;
            child.wait().await?
        }
    };
    tracing::info!(target: "envoy", %status, "the proxy has ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_component::drain;

    #[tokio::test]
    async fn a_program_is_started_again_and_ended_with_the_drain() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("starts");
        // Ends by itself the first time, then stays until SIGTERM.
        let script = format!(
            "echo x >> {0}; [ $(wc -l < {0}) -lt 2 ] && exit 3; trap 'echo term >> {0}; exit 0' TERM; while :; do sleep 0.02; done",
            log.display()
        );
        let program = Program::new(Path::new("/bin/sh"), &["-c", &script]);
        let (trigger, drain) = drain::channel();
        let running = {
            let drain = drain.clone();
            proto_component::task::spawn("program", async move { program.run(&drain).await })
        };
        let starts = || std::fs::read_to_string(&log).unwrap_or_default();
        tokio::time::timeout(Duration::from_secs(60), async {
            while starts().lines().count() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        trigger.drain(Duration::from_secs(10));
        running.await.unwrap().unwrap();
        assert!(
            starts().ends_with("x\nterm\n") || starts() == "x\nx\n",
            "{}",
            starts()
        );
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let program = Program::new(Path::new("/no/envoy"), &[]);
        let error = program.run(&Drain::never()).await.unwrap_err();
        assert!(format!("{error:#}").starts_with("start --binaryPath /no/envoy"));
    }
}
