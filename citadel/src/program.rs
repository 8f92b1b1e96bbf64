//! The program: from the command line to the exit code.

use std::process::ExitCode;

use crate::args::{Action, Command as CommandLine};
use crate::bootstrap::Citadel;
use crate::{command, probe};
use clap::Parser as _;
use proto_component::process;

const NAME: &str = "istio_ca";

/// Reads the command line and does what it says, to the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let line = CommandLine::parse();
    match line.action {
        Some(Action::Version(version)) => process::exit_code(NAME, version.run()),
        Some(Action::Probe(args)) => {
            process::exit_code(NAME, probe::check(&args.path, args.interval))
        }
        Some(Action::Certs(action)) => once(async move { command::certs(&action).await }),
        Some(Action::Revoke(args)) => once(async move { command::revoke(&args).await }),
        Some(Action::Restore(args)) => once(async move { command::restore(&args).await }),
        Some(Action::RotateRoot(args)) => once(async move { command::rotate_root(&args).await }),
        None => serve(line),
    }
}

/// The root's key is among the files.
fn serve(line: CommandLine) -> ExitCode {
    process::keep_files_private();
    process::run(NAME, &line.log, |process| async move {
        let citadel = Citadel::new(&process, &line.serve, &line.features).await?;
        citadel.run().await
    })
}

fn once(command: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> ExitCode {
    process::run_command(
        NAME,
        async move { command.await.map(|()| ExitCode::SUCCESS) },
    )
}
