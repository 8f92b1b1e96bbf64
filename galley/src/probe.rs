//! Probes through files, as Istio's galley has them: the server touches a file, `galley probe` looks at its age.

use crate::args::ProbeArgs;
use proto_component::{drain::Drain, process::Usage, readiness::Readiness, task};
use std::{fs, io, path::PathBuf, process::ExitCode, time::Duration};

/// Touches `path` while `readiness` holds (always, if there is none).
pub fn keep_alive(path: PathBuf, interval: Duration, readiness: Option<Readiness>, drain: Drain) {
    task::spawn("probe-file", async move {
        let mut failed = false;
        loop {
            if readiness.as_ref().is_none_or(Readiness::is_ready) {
                if let Err(error) = touch(&path)
                    && !failed
                {
                    failed = true;
                    tracing::warn!(target: "probe", path = %path.display(), %error, "cannot write the probe's file");
                }
            } else {
                // Not there yet is as good as removed.
                let _ = fs::remove_file(&path);
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = drain.signaled() => {
                    let _ = fs::remove_file(&path);
                    return;
                }
            }
        }
    });
}

fn touch(path: &PathBuf) -> io::Result<()> {
    let file = fs::File::create(path)?;
    file.set_modified(std::time::SystemTime::now())
}

/// `galley probe`: whether the file was touched within the interval.
pub fn run(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let Some(path) = &args.probe_path else {
        return Err(Usage("--probe-path is needed".to_owned()).into());
    };
    let age = fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .map(|modified| modified.elapsed().unwrap_or_default());
    match age {
        // The server touches it every half interval.
        Ok(age) if age <= args.interval => Ok(ExitCode::SUCCESS),
        Ok(age) => anyhow::bail!("{} is {}s old", path.display(), age.as_secs()),
        Err(error) => anyhow::bail!("{}: {error}", path.display()),
    }
}
