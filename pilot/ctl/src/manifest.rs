//! `biremectl manifest`: an installation as an `IstioOperator` or as Helm values describe it, rendered by Helm.
//!
//! [`operator`] (files and settings → values and overlays) → [`charts`] (values → objects, by Helm) → [`overlay`] (changes that
//! no value expresses) → printed, compared, or brought into the [`cluster`].

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto_component::kubernetes::KubeArgs;
use proto_component::process::Usage;
use serde_json::Value;
use similar::TextDiff;

use crate::table::print_text;

pub(crate) mod charts;
pub(crate) mod cluster;
pub(crate) mod operator;
pub(crate) mod overlay;

use charts::{ChartArgs, Charts};
use operator::Plan;

/// What a render is made of.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// An IstioOperator, or Helm values; may be repeated, later ones win.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// One setting (profile=demo, components.pilot.enabled=false, or any Helm value); may be repeated.
    #[arg(short = 's', long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// The charts.
    #[command(flatten)]
    pub charts: ChartArgs,
}

/// `manifest`.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ManifestCommand,
}

/// The commands of `manifest`.
#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Print every object of an installation
    Generate(PlanArgs),
    /// Install, or change what is installed
    Apply(ApplyArgs),
    /// Compare two manifests
    Diff(DiffArgs),
    /// Print the versions that this program installs
    Versions(ChartArgs),
}

/// `manifest apply` and `upgrade`.
#[derive(Clone, Debug, Args)]
pub struct ApplyArgs {
    /// What to install.
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Where.
    #[command(flatten)]
    pub cluster: KubeArgs,
    /// Wait until everything runs.
    #[arg(short = 'w', long)]
    pub wait: bool,
    /// How long to wait.
    #[arg(long = "readiness-timeout", default_value = "300s", value_parser = proto_component::args::parse_duration)]
    pub readiness_timeout: std::time::Duration,
    /// Have the API server check everything, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// `manifest diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// A file of objects.
    pub old: PathBuf,
    /// Another.
    pub new: PathBuf,
}

/// Does what the command says.
pub(crate) async fn run(args: ManifestArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        ManifestCommand::Generate(plan) => {
            let (_, objects) = objects(&plan).await?;
            print_text(&to_text(&objects)?)?;
            Ok(ExitCode::SUCCESS)
        }
        ManifestCommand::Apply(apply) => self::apply(&apply).await,
        ManifestCommand::Diff(diff) => compare(&diff),
        ManifestCommand::Versions(charts) => {
            let charts = Charts::find(&charts)?;
            print_text(&format!("{}\n", charts.version()?))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Everything that an installation consists of: definitions first, as overlays leave it.
pub(crate) async fn objects(args: &PlanArgs) -> anyhow::Result<(Plan, Vec<Value>)> {
    let charts = Charts::find(&args.charts)?;
    let plan = operator::plan(&args.files, &args.settings, &charts)?;
    let mut objects = Vec::new();
    if plan.has_definitions {
        objects = charts
            .render("bireme-init", "istio-init", &plan.namespace, &Value::Null)
            .await?;
    }
    let rendered = charts.render("bireme", "istio", &plan.namespace, &plan.values);
    objects.extend(rendered.await?);
    for overlay in &plan.overlays {
        overlay::apply(&mut objects, overlay)?;
    }
    Ok((plan, objects))
}

/// Renders, and brings it into the cluster.
pub(crate) async fn apply(args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    let (plan, objects) = objects(&args.plan).await?;
    let cluster = cluster::Cluster::new(args.cluster.client().await?, args.dry_run);
    cluster.apply(&plan.namespace, objects.clone()).await?;
    if args.wait && !args.dry_run {
        cluster.wait(&objects, args.readiness_timeout).await?;
    }
    print_text(&format!(
        "{} objects {} in namespace {}\n",
        objects.len(),
        if args.dry_run { "checked" } else { "applied" },
        plan.namespace
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The objects as a file.
pub(crate) fn to_text(objects: &[Value]) -> anyhow::Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&proto::yaml::to_string(object)?);
    }
    Ok(text)
}

fn compare(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let (old, new) = (read_objects(&args.old)?, read_objects(&args.new)?);
    print_difference(&old, &new, "Manifests are identical")
}

/// Prints how two texts differ; the exit code is 1 if they do.
pub(crate) fn print_difference(old: &str, new: &str, same: &str) -> anyhow::Result<ExitCode> {
    if old == new {
        print_text(&format!("{same}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let difference = TextDiff::from_lines(old, new);
    print_text(&difference.unified_diff().to_string())?;
    Ok(ExitCode::from(1))
}

/// A file's objects in an order of their own, so that only what they say counts.
fn read_objects(path: &PathBuf) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Usage(format!("{}: {error}", path.display())))?;
    let mut objects = Vec::new();
    for document in proto::yaml::parse_documents(&text) {
        let document = document.with_context(|| path.display().to_string())?;
        objects.push(document.value);
    }
    objects.sort_by_key(cluster::name_of);
    to_text(&objects)
}
