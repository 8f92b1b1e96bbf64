//! `pilot-discovery`: serves discovery to the proxies of the mesh.

use std::process::ExitCode;

use clap::Parser as _;
use pilot::args::{Action, Command};
use pilot::{bootstrap, request};
use proto_component::process;

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
