//! Probe files: the server touches them, `mixs probe` looks how old they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use proto_component::drain::Drain;
use proto_component::readiness::Readiness;
use proto_component::task;

use crate::args::ProbeFileArgs;

/// Touches the files that are wanted until the drain, then removes them.
pub(crate) fn start(args: &ProbeFileArgs, readiness: &Readiness, drain: &Drain) {
    if let Some(path) = args.liveness_path.clone() {
        task::spawn_drained(
            "liveness-file",
            touch(path, args.liveness_interval, None, drain.clone()),
        );
    }
    if let Some(path) = args.readiness_path.clone() {
        let readiness = Some(readiness.clone());
        task::spawn_drained(
            "readiness-file",
            touch(path, args.readiness_interval, readiness, drain.clone()),
        );
    }
}

async fn touch(path: PathBuf, interval: Duration, readiness: Option<Readiness>, drain: Drain) {
    while !drain.is_draining() {
        let is_due = readiness.as_ref().is_none_or(Readiness::is_ready);
        let outcome = if is_due {
            tokio::fs::write(&path, b"").await
        } else {
            remove(&path).await
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, path = %path.display(), "cannot touch a probe file");
        }
        tokio::select! {
            () = tokio::time::sleep(interval.max(Duration::from_millis(100))) => {}
            () = drain.signaled() => {}
        }
    }
    // Whether it is gone or never was makes no difference now.
    let _ = remove(&path).await;
}

async fn remove(path: &Path) -> std::io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Fails when the file is older than `interval`.
///
/// # Errors
/// When it is too old or cannot be looked at.
pub fn check(path: &Path, interval: Duration) -> anyhow::Result<()> {
    let modified = std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("look at {}", path.display()))?;
    let age = modified.elapsed().unwrap_or_default();
    if age > interval {
        bail!("{} is {}s old", path.display(), age.as_secs());
    }
    Ok(())
}
