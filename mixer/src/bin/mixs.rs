//! `mixs`: Mixer, the mesh's policy and telemetry service.

use std::process::ExitCode;

use clap::Parser as _;
use mixer::args::{Action, Command};
use mixer::bootstrap::Server;
use mixer::{eval_command, probe};
use proto_component::process;

const NAME: &str = "mixs";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = Command::parse();
    match command.action {
        Action::Version(version) => process::exit_code(NAME, version.run()),
        Action::Probe(args) => process::exit_code(NAME, probe::check(&args.path, args.interval)),
        Action::Eval(_) => {
            let outcome = eval_command::run(std::io::stdin().lock(), std::io::stdout().lock());
            process::exit_code(NAME, outcome)
        }
        Action::Server(args) => process::run(NAME, &command.log, |process| async move {
            Server::new(&process, &args).await?.run().await
        }),
    }
}
