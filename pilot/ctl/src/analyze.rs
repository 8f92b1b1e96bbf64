//! `biremectl analyze`: what `galley analyze` does, over the mesh on this machine where no file or cluster is named.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use crate::local::{MeshArgs, commands};

/// `analyze`.
#[derive(Clone, Debug, Args)]
// The flattened arguments have a group of the same name.
#[group(skip)]
pub struct AnalyzeArgs {
    /// What to look at, and how to say what was found.
    #[command(flatten)]
    pub analyze: galley::analysis::command::AnalyzeArgs,
    /// Look at the mesh on this machine too, with the files over it (it is looked at alone where nothing is named).
    #[arg(long)]
    pub use_mesh: bool,
    /// Which mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
}

/// Reads, looks, and prints; exit code 1 when something is as bad as `--failure-threshold`.
pub(crate) async fn run(args: AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let analyze = &args.analyze;
    let names_something = analyze.paths().next().is_some() || analyze.use_kube == Some(true);
    if analyze.list_analyzers || (names_something && !args.use_mesh) {
        return analyze.run().await;
    }
    let mut input = analyze.input();
    if analyze.use_kube == Some(true) {
        analyze.read_cluster(&mut input).await?;
    }
    let client = commands::client(&args.mesh)?;
    for kind in commands::kind_names() {
        let found: Vec<Value> = client
            .get("/v1/objects", &commands::all_of_kind(kind))
            .await
            .context("read the mesh's objects")?;
        input.add_values(&found);
    }
    analyze.finish(input)
}
