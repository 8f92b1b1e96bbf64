//! `biremectl local`: the mesh on one machine, a small platform with Kubernetes' vocabulary.
//!
//! Flow: `up` (values, control plane, application) → `apply` (manifests → `admission` → `store`) → `platform`
//! (the loop) → `workloads` → `pod` (processes in namespaces), `services` → `network`, `mirror` → Galley,
//! `credentials` → gateways.
//! Beside it `api` and `client` (the control socket), `commands` (everything but `up`), `state` (what must be found
//! again), `identity` (tokens, serving certificates), `component_certificates` (those of the control plane's own channels), `mixer` (its own configuration), `isolation` (what keeps pods apart here).

use std::path::PathBuf;

use clap::{Args, Subcommand};

mod admission;
mod api;
mod apply;
pub(crate) mod client;
pub(crate) mod commands;
mod component_certificates;
mod control_plane;
mod credentials;
mod http_client;
mod identity;
pub(crate) mod isolation;
mod kinds;
mod mirror;
mod mixer;
mod network;
mod platform;
pub(crate) mod pod;
mod programs;
mod progress;
mod services;
pub(crate) mod state;
mod store;
mod summary;
mod up;
pub(crate) mod values;
mod workloads;

pub(crate) use api::PodRequest;
pub(crate) use control_plane::NAMESPACE;
pub use state::Places;
pub use up::{Interception, UpArgs};

use crate::table::Format;

/// Where `local up` logs to: nothing but the table goes to the terminal.
pub(crate) fn log_file(state: &state::StateDir) -> String {
    state.path("biremectl.log").to_string_lossy().into_owned()
}

/// Runs `local up`.
pub(crate) async fn run_up(
    process: proto_component::Process,
    args: UpArgs,
    isolation: isolation::Isolation,
    state: state::StateDir,
) -> anyhow::Result<()> {
    up::run(process, args, isolation, state).await
}

/// Removes what a run left: nothing, usually. A refused start leaves what an earlier run left to `local down`.
pub(crate) async fn clear_up(
    state: state::StateDir,
    lock: state::Lock,
) -> anyhow::Result<std::process::ExitCode> {
    let own = state.daemon().is_none_or(|daemon| daemon.is_this_process());
    if own {
        state.sweep().await?;
    }
    drop(lock);
    Ok(std::process::ExitCode::SUCCESS)
}

/// Which mesh of this machine.
#[derive(Clone, Debug, Args)]
pub struct MeshArgs {
    /// Name of the mesh on this machine.
    #[arg(
        id = "mesh_name",
        long = "mesh",
        value_name = "NAME",
        default_value = "default"
    )]
    pub name: String,
    /// Where state lies when not run as root.
    #[command(flatten)]
    pub places: Places,
}

/// `biremectl local …`.
#[derive(Clone, Debug, Args)]
pub struct LocalArgs {
    /// Name of the mesh on this machine.
    #[arg(
        id = "mesh_name",
        long = "name",
        visible_alias = "mesh",
        value_name = "NAME",
        default_value = "default",
        global = true
    )]
    pub name: String,
    /// Where state lies when not run as root.
    #[command(flatten)]
    pub places: Places,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl LocalArgs {
    /// Which mesh.
    #[must_use]
    pub fn mesh(&self) -> MeshArgs {
        MeshArgs {
            name: self.name.clone(),
            places: self.places.clone(),
        }
    }
}

/// What to do with the mesh on this machine.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start a mesh and stay with it until Ctrl-C
    Up(Box<UpArgs>),
    /// End a mesh, whatever is left of it
    Down,
    /// Create or change the objects of a manifest
    Apply(ManifestArgs),
    /// Delete the objects of a manifest, or one object
    Delete(DeleteArgs),
    /// Show objects
    Get(GetArgs),
    /// Show a container's output
    Logs(LogsArgs),
    /// Run a command in a container
    Exec(ExecArgs),
    /// Set the number of a deployment's pods
    Scale(ScaleArgs),
    /// Start a deployment's pods anew, or delete a pod
    Restart(TargetArgs),
    /// Kill the process of a component or pod (SIGKILL), to see what happens
    Kill(TargetArgs),
    /// Show the components: readiness, restarts, processes, memory, ports
    Status(FormatArgs),
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub struct FormatArgs {
    /// How to print.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// A manifest.
#[derive(Clone, Debug, Args)]
pub struct ManifestArgs {
    /// A file, a folder, or `-` for standard input; may be repeated.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
}

/// What to delete.
#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// A file, a folder, or `-` for standard input; may be repeated.
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with = "object"
    )]
    pub files: Vec<PathBuf>,
    /// KIND NAME…, or KIND/NAME….
    #[arg(required_unless_present = "files")]
    pub object: Vec<String>,
    /// Namespace.
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
}

/// What to show.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Kind (`pods`, `vs`, `deployments`, …) or KIND/NAME; pods if not given.
    #[arg(default_value = "pods")]
    pub kind: String,
    /// Name.
    pub name: Option<String>,
    /// Namespace.
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
    /// All namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// A pod, a deployment (`deploy/NAME` or just its name), or a component of the control plane.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Pod or deployment; NAME.NAMESPACE works too.
    pub target: String,
    /// Container.
    #[arg(short = 'c', long)]
    pub container: Option<String>,
    /// Namespace.
    #[arg(short = 'n', long)]
    pub namespace: Option<String>,
}

/// Whose output.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The container.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Go on as it grows.
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
}

/// What to run where.
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// The container.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Command and arguments, after `--`.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// How many of what.
#[derive(Clone, Debug, Args)]
pub struct ScaleArgs {
    /// Deployment.
    pub deployment: String,
    /// Number of pods.
    #[arg(long)]
    pub replicas: u64,
    /// Namespace.
    #[arg(short = 'n', long)]
    pub namespace: Option<String>,
}
