//! `pilot-discovery`: serves discovery to the proxies of the mesh.

use std::process::ExitCode;

use clap::Parser as _;
use pilot::args::{Action, Command};
use pilot::{bootstrap, request};
use proto_component::process;

/// Gives back what a push to many proxies has taken, where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Command::parse().action {
        Action::Discovery(args) => {
            let log = args.log.clone();
            process::run("pilot-discovery", &log, |process| {
                bootstrap::run(*args, process)
            })
        }
        Action::Request(args) => {
            process::run_command("pilot-discovery", async move { request::run(&args).await })
        }
        Action::Version(args) => process::exit_code("pilot-discovery", args.run()),
    }
}
