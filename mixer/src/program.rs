//! The program: from the command line to the exit code.

use std::process::ExitCode;

use crate::args::{Action, Command};
use crate::bootstrap::Server;
use crate::{client_command, eval_command, probe};
use clap::Parser as _;
use proto_component::process;

const NAME: &str = "mixs";

/// Reads the command line and does what it says, to the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let command = Command::parse();
    match command.action {
        Action::Version(version) => process::exit_code(NAME, version.run()),
        Action::Probe(args) => process::exit_code(NAME, probe::check(&args.path, args.interval)),
        Action::Eval(args) => {
            let output = std::io::stdout().lock();
            let outcome = if args.jsonl {
                eval_command::run(std::io::stdin().lock(), output)
            } else {
                eval_command::evaluate(&args, output)
            };
            process::exit_code(NAME, outcome)
        }
        Action::Check(args) => process::run_command(NAME, async move {
            let is_ok = client_command::check(&args, std::io::stdout()).await?;
            // The answer is no failure; scripts still want to tell them apart.
            Ok(if is_ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(3)
            })
        }),
        Action::Report(args) => process::run_command(NAME, async move {
            client_command::report(&args, std::io::stdout()).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Action::Server(args) => process::run(NAME, &command.log, |process| async move {
            Server::new(&process, &args).await?.run().await;
            Ok(())
        }),
    }
}
