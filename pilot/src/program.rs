//! The program: from the command line to the exit code.

use std::process::ExitCode;

use crate::args::{Action, Command};
use crate::{bootstrap, request};
use clap::Parser as _;
use proto_component::{allocator, process};

/// Reads the command line and does what it says, to the exit code.
#[must_use]
pub fn run() -> ExitCode {
    allocator::save_memory();
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
