//! `istio_ca`: Citadel, the mesh's certificate authority.

use std::process::ExitCode;

use citadel::args::{Action, Command};
use citadel::bootstrap::Citadel;
use citadel::{list, probe};
use clap::Parser as _;
use proto_component::process;

const NAME: &str = "istio_ca";

fn main() -> ExitCode {
    let command = Command::parse();
    match command.action {
        Some(Action::Version(version)) => process::exit_code(NAME, version.run()),
        Some(Action::Probe(args)) => {
            process::exit_code(NAME, probe::check(&args.path, args.interval))
        }
        Some(Action::Ledger(args)) => process::run_command(NAME, async move {
            list::run(&args).await.map(|()| ExitCode::SUCCESS)
        }),
        None => process::run(NAME, &command.log, |process| async move {
            let citadel = Citadel::new(&process, &command.serve, &command.features).await?;
            citadel.run().await
        }),
    }
}
