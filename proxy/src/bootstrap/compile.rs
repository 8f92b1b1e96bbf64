//! A bootstrap read by a process of its own.
//!
//! Reading YAML needs the descriptors of every message, some twenty MiB that a proxy would keep for ever and never use again.
//! So the program starts itself once more to read the file (`--mode compile`) and takes the encoded message from it.

use super::read;
use crate::args::{BootstrapSource, Options};
use anyhow::Context as _;
use prost::Message as _;
use proto::envoy::config::bootstrap::v3::Bootstrap as Wire;
use std::{
    io::Write as _,
    process::{Command, Stdio},
};

/// Reads the bootstrap and writes it, encoded, to standard output.
///
/// # Errors
/// When it cannot be read.
pub fn compile(options: &Options) -> anyhow::Result<()> {
    let (wire, _) = read(options)?;
    let mut output = std::io::stdout().lock();
    output
        .write_all(&wire.encode_to_vec())
        .context("write the bootstrap")?;
    output.flush().context("write the bootstrap")
}

/// The same options with the bootstrap already read, by this very program started once more. Where that is not possible, or
/// the file is not good, the options stay as they are and the file is read here, errors included.
#[must_use]
pub fn precompiled(options: Options) -> Options {
    let wire = match &options.bootstrap {
        BootstrapSource::Message(_) => None,
        source => run(source, options.allows_unknown_fields),
    };
    match wire {
        Some(wire) => Options {
            config_path: options.config_path(),
            bootstrap: BootstrapSource::Message(Box::new(wire)),
            ..options
        },
        None => options,
    }
}

fn run(source: &BootstrapSource, allows_unknown_fields: bool) -> Option<Wire> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--mode", "compile"]);
    if allows_unknown_fields {
        command.arg("--allow-unknown-static-fields");
    }
    match source {
        BootstrapSource::Message(_) => return None,
        BootstrapSource::File(file) => command.arg("-c").arg(file),
        BootstrapSource::Text(text) => command.arg("--config-yaml").arg(text),
        BootstrapSource::Merged(file, text) => {
            command.arg("-c").arg(file).arg("--config-yaml").arg(text)
        }
    };
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    Wire::decode(output.stdout.as_slice()).ok()
}
