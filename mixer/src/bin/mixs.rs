//! `mixs`: Mixer, the mesh's policy and telemetry service.

use std::process::ExitCode;

use clap::Parser as _;
use mixer::args::{Action, Command};
use mixer::bootstrap::Server;
use mixer::{client_command, eval_command, probe};
use proto_component::process;

const NAME: &str = "mixs";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
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
            Server::new(&process, &args).await?.run().await
        }),
    }
}
