//! `istio_ca`: Citadel, the mesh's certificate authority.

use std::process::ExitCode;

use citadel::args::{Action, Command as CommandLine};
use citadel::bootstrap::Citadel;
use citadel::{command, probe};
use clap::Parser as _;
use proto_component::process;

const NAME: &str = "istio_ca";

fn main() -> ExitCode {
    let line = CommandLine::parse();
    match line.action {
        Some(Action::Version(version)) => process::exit_code(NAME, version.run()),
        Some(Action::Probe(args)) => {
            process::exit_code(NAME, probe::check(&args.path, args.interval))
        }
        Some(Action::Certs(action)) => run(async move { command::certs(&action).await }),
        Some(Action::Revoke(args)) => run(async move { command::revoke(&args).await }),
        Some(Action::Restore(args)) => run(async move { command::restore(&args).await }),
        Some(Action::RotateRoot(args)) => run(async move { command::rotate_root(&args).await }),
        None => process::run(NAME, &line.log, |process| async move {
            let citadel = Citadel::new(&process, &line.serve, &line.features).await?;
            citadel.run().await
        }),
    }
}

fn run(command: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> ExitCode {
    process::run_command(
        NAME,
        async move { command.await.map(|()| ExitCode::SUCCESS) },
    )
}
