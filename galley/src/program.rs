//! The program: from the command line to the exit code.

use crate::{
    args::{CONFIG_FILE, Command, Galley},
    bootstrap, crds, probe,
};
use proto_component::{args::parse_over_config_file, process};
use std::process::ExitCode;

/// Reads the command line and does what it says, to the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let args: Galley = match parse_over_config_file(std::env::args_os(), CONFIG_FILE) {
        Ok(args) => args,
        Err(error) => return process::exit_code("galley", Err(error)),
    };
    match args.command {
        Command::Server(server) => {
            // Configuration may hold secrets, and is kept on disk.
            process::keep_files_private();
            process::run("galley", &args.log, |process| {
                bootstrap::run(*server, process)
            })
        }
        Command::Validate(validate) => {
            process::run_command("galley", async move { validate.run() })
        }
        Command::Analyze(analyze) => {
            process::run_command("galley", async move { analyze.run().await })
        }
        Command::Crds => process::exit_code("galley", crds::run()),
        Command::Probe(probe) => process::run_command("galley", async move { probe::run(&probe) }),
        Command::Version(version) => process::exit_code("galley", version.run()),
    }
}
