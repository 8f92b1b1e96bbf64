//! Work that needs the descriptors of all messages (YAML and JSON), done in a short-lived child: the descriptors take some
//! 11 MiB, which a process in every pod should not keep for one file at its start.
//!
//! The child is this program with a hidden command; bytes go in and out as encoded messages. Where no child can be started, the
//! work is done here.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::Context as _;
use prost::Message as _;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::istio::mesh::v1alpha1::MeshConfig;
use proto_component::process::Usage;

use crate::args::{MeshArgs, ProxyArgs};
use crate::{bootstrap, settings};

/// Hidden command: settings in YAML to an encoded `MeshConfig`.
pub const READ_MESH: &str = "read-mesh";
/// Hidden command: an encoded `Bootstrap` to JSON.
pub const WRITE_BOOTSTRAP: &str = "write-bootstrap";

/// The mesh's settings, as files and environment give them.
pub fn mesh(args: &ProxyArgs) -> anyhow::Result<MeshConfig> {
    let mesh = &args.mesh;
    if mesh.mesh_config.is_none() && mesh.proxy_config.trim().is_empty() {
        return Ok(settings::default_mesh());
    }
    let mut arguments = vec![READ_MESH.to_owned()];
    if let Some(path) = &mesh.mesh_config {
        arguments.push(format!("--meshConfig={}", path.display()));
    }
    match child(&arguments, &[]) {
        Ok(answer) => MeshConfig::decode(answer?.as_slice()).context("read the mesh's settings"),
        Err(_) => settings::read_mesh(mesh),
    }
}

/// The bootstrap's JSON text.
pub fn bootstrap_json(bootstrap: &Bootstrap) -> anyhow::Result<String> {
    match child(&[WRITE_BOOTSTRAP.to_owned()], &bootstrap.encode_to_vec()) {
        Ok(answer) => String::from_utf8(answer?).context("encode the bootstrap"),
        Err(_) => bootstrap::to_json(bootstrap),
    }
}

/// What the child does for [`mesh`].
pub fn read_mesh(args: &MeshArgs) -> anyhow::Result<()> {
    let mesh = settings::read_mesh(args)?;
    std::io::stdout().write_all(&mesh.encode_to_vec())?;
    Ok(())
}

/// What the child does for [`bootstrap_json`].
pub fn write_bootstrap() -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes)?;
    let bootstrap = Bootstrap::decode(bytes.as_slice())?;
    std::io::stdout().write_all(bootstrap::to_json(&bootstrap)?.as_bytes())?;
    Ok(())
}

/// Outer failure: no child could be run. Inner failure: the child refused.
fn child(arguments: &[String], input: &[u8]) -> std::io::Result<anyhow::Result<Vec<u8>>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output()?;
    if status.success() {
        return Ok(Ok(stdout));
    }
    let text = String::from_utf8_lossy(&stderr);
    let text = text.trim();
    let text = text
        .strip_prefix("pilot-agent: ")
        .unwrap_or(text)
        .to_owned();
    Ok(Err(Usage(text).into()))
}
