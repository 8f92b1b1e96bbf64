//! The command line, and the way from it to the commands.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use proto_component::{args::LogArgs, process};

use crate::{
    analyze::AnalyzeArgs,
    kube_inject::KubeInjectArgs,
    local::{self, FormatArgs, LocalArgs, MeshArgs, pod::sandbox},
    manifest::{ApplyArgs, ManifestArgs},
    profile::ProfileArgs,
    proxy_config::command::ProxyConfigArgs,
    uninstall::UninstallArgs,
    verify_install::VerifyInstallArgs,
    version::VersionArgs,
};

/// Bireme, a service mesh: run it on this machine, look into it, check its configuration
#[derive(Debug, Parser)]
#[command(
    name = "biremectl",
    version,
    propagate_version = false,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The mesh on this machine
    Local(LocalArgs),
    /// How far each proxy's configuration is in step with Pilot
    #[command(visible_alias = "ps")]
    ProxyStatus(ProxyStatusArgs),
    /// What a proxy is configured with
    #[command(visible_alias = "pc")]
    ProxyConfig(ProxyConfigArgs),
    /// Find mistakes in configuration: of the mesh on this machine, or of files
    Analyze(AnalyzeArgs),
    /// Add the proxy to the pods of a manifest
    KubeInject(KubeInjectArgs),
    /// An installation in a Kubernetes cluster: render, apply, compare
    Manifest(ManifestArgs),
    /// Ready-made sets of values
    Profile(ProfileArgs),
    /// Whether everything of an installation is there and runs
    VerifyInstall(VerifyInstallArgs),
    /// Put another version or other settings in the place of an installation
    Upgrade(ApplyArgs),
    /// Take the mesh out of a cluster
    Uninstall(UninstallArgs),
    /// Versions of this program and of the mesh
    Version(VersionArgs),
    /// Print a shell's completion script
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Becomes a container's program (started by the platform)
    #[command(hide = true)]
    PodExec {
        /// What the container looks like.
        spec: PathBuf,
    },
    /// Tries what pods need (started by `local up`)
    #[command(hide = true)]
    PodAttempt {
        /// An empty directory.
        directory: PathBuf,
    },
    /// Removes what pods left (started by `local down`)
    #[command(hide = true)]
    PodRemove {
        /// The directory.
        directory: PathBuf,
    },
    /// Joins a container (started by `local exec`)
    #[command(hide = true)]
    PodEnter(PodEnterArgs),
}

/// `proxy-status`.
#[derive(Debug, clap::Args)]
pub struct ProxyStatusArgs {
    /// Pod or `deploy/NAME`: what Pilot sends it beside what its proxy has; all proxies in a table if not given.
    pub pod: Option<String>,
    /// Namespace of the pod.
    #[arg(short = 'n', long)]
    pub namespace: Option<String>,
    /// Which mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// `pod-enter`.
#[derive(Debug, clap::Args)]
pub struct PodEnterArgs {
    /// A process of the container.
    pub pid: i32,
    /// User to become.
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group to become.
    #[arg(long)]
    pub gid: Option<u32>,
    /// Command and arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Reads the command line and does what it says.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        // Namespaces are entered by thread: no runtime may have been started.
        Command::PodExec { spec } => process::exit_code("biremectl", Err(sandbox::exec(&spec))),
        Command::PodAttempt { directory } => {
            process::exit_code("biremectl", local::isolation::try_everything(&directory))
        }
        Command::PodRemove { directory } => {
            process::exit_code("biremectl", local::state::remove_all(&directory))
        }
        Command::PodEnter(args) => {
            process::exit_code("biremectl", Err(sandbox::enter_container(&args)))
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "biremectl", &mut script);
            let written = std::io::stdout().write_all(&script);
            process::exit_code("biremectl", written.map_err(anyhow::Error::from))
        }
        Command::Local(args) => run_local(args),
        Command::ProxyStatus(args) => {
            process::run_command("biremectl", crate::proxy_status::run(args))
        }
        Command::ProxyConfig(args) => {
            process::run_command("biremectl", crate::proxy_config::command::run(args))
        }
        Command::Analyze(args) => process::run_command("biremectl", crate::analyze::run(args)),
        Command::KubeInject(args) => {
            process::run_command("biremectl", crate::kube_inject::run(args))
        }
        Command::Manifest(args) => process::run_command("biremectl", crate::manifest::run(args)),
        Command::Profile(args) => {
            process::run_command("biremectl", async move { crate::profile::run(&args) })
        }
        Command::VerifyInstall(args) => {
            process::run_command("biremectl", crate::verify_install::run(args))
        }
        Command::Upgrade(args) => process::run_command("biremectl", crate::upgrade::run(args)),
        Command::Uninstall(args) => process::run_command("biremectl", crate::uninstall::run(args)),
        Command::Version(args) => process::run_command("biremectl", crate::version::run(args)),
    }
}

fn run_local(args: LocalArgs) -> ExitCode {
    let mesh = args.mesh();
    let local::Command::Up(up) = args.command else {
        return process::run_command("biremectl", local::commands::run(args));
    };
    // The name is taken before anything is written below it, the log included.
    let taken = local::commands::state_dir(&mesh).and_then(|state| Ok((state.lock()?, state)));
    let (lock, state) = match taken {
        Ok(taken) => taken,
        Err(error) => return process::exit_code("biremectl", Err(error)),
    };
    // A user namespace is entered while there is one thread.
    let isolation = match local::isolation::settle(up.interception, &state) {
        Ok(isolation) => isolation,
        Err(error) => {
            let code = process::exit_code("biremectl", Err(error));
            process::run_command("biremectl", local::clear_up(state, lock));
            return code;
        }
    };
    let log = local::log_file(&state);
    let log = LogArgs {
        target: vec![log],
        ..LogArgs::default()
    };
    let code = process::run("biremectl", &log, |process| {
        local::run_up(process, *up, isolation, state.clone())
    });
    // A second Ctrl-C ends the wait for pods, not the clearing up.
    let swept = process::run_command("biremectl", local::clear_up(state, lock));
    if code == ExitCode::SUCCESS {
        swept
    } else {
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_mesh_is_named_alike_everywhere() {
        for line in [
            "biremectl local status --name x",
            "biremectl local get vs a --name x",
            "biremectl pc route p --name r --mesh x",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from(["biremectl", "local", "exec", "pod"]).is_err());
    }
}
