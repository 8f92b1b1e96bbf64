//! `biremectl version`: of this program, and of what runs.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::{
    local::{FormatArgs, MeshArgs, commands},
    table::{Format, print_text, print_value},
};

/// `version`.
#[derive(Clone, Debug, Args)]
pub struct VersionArgs {
    /// Only this program.
    #[arg(long)]
    pub client: bool,
    /// Which mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Prints the versions.
pub(crate) async fn run(args: VersionArgs) -> anyhow::Result<ExitCode> {
    let client = env!("CARGO_PKG_VERSION");
    let mesh = if args.client {
        None
    } else {
        mesh_version(&args.mesh).await
    };
    if args.format.output != Format::Table {
        print_value(
            &json!({"clientVersion": client, "meshVersion": mesh}),
            args.format.output,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    print_text(&format!("client version: {client}\n"))?;
    if !args.client {
        let mesh = mesh.unwrap_or_else(|| "none (no mesh runs on this machine)".to_owned());
        print_text(&format!("control plane version: {mesh}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn mesh_version(mesh: &MeshArgs) -> Option<String> {
    let client = commands::client(mesh).ok()?;
    let about: Value = client.get("/v1/about", &Default::default()).await.ok()?;
    about["version"].as_str().map(str::to_owned)
}
