//! `istio-cni`: the CNI plugin, as the container runtime calls it; and what keeps it on a node (`install`) and finds pods that
//! it has missed (`repair`).

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use injector_capture::cni::installer::{self, InstallArgs};
use injector_capture::cni::plugin;
use injector_capture::cni::repair::{self, RepairArgs};
use injector_capture::cni::request::Environment;
use proto_component::args::LogArgs;
use proto_component::process::{self, Shape};
use proto_component::tls;

/// Has pods' traffic intercepted by the node. Without a command: the plugin, called with CNI's environment.
#[derive(Parser)]
#[command(name = "istio-cni", version)]
struct Arguments {
    #[command(flatten)]
    environment: Environment,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Put the plugin onto this node and keep it there.
    Install(Box<InstallArgs>),
    /// Find pods that started without it.
    Repair(Box<RepairArgs>),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let shape = Shape {
        single_threaded: true,
        ..Shape::default()
    };
    let log = &arguments.log;
    match arguments.command {
        None => {
            tls::install_provider();
            plugin::run(
                &arguments.environment,
                &mut std::io::stdin().lock(),
                &mut std::io::stdout().lock(),
            )
        }
        Some(Command::Install(args)) if args.check => {
            process::exit_code("istio-cni", installer::check(*args))
        }
        Some(Command::Install(args)) => process::run_with("istio-cni", log, shape, |process| {
            installer::run(*args, process)
        }),
        Some(Command::Repair(args)) => process::run_with("istio-cni", log, shape, |process| {
            repair::run(*args, process)
        }),
    }
}
