//! The program: from the command line to the exit code.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use crate::args::{Arguments, Command, InjectArgs};
use crate::config::Settings;
use crate::{bootstrap, kube_inject};
use anyhow::Context as _;
use clap::Parser as _;
use proto_component::process::{self, Usage};

/// Reads the command line and does what it says, to the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        None => {
            let log = arguments.log;
            process::run("sidecar-injector", &log, |process| {
                bootstrap::run(arguments.serve, process)
            })
        }
        Some(Command::Inject(args)) => process::exit_code("sidecar-injector", inject(&args)),
        Some(Command::Version(args)) => process::exit_code("sidecar-injector", args.run()),
    }
}

fn inject(args: &InjectArgs) -> anyhow::Result<()> {
    let settings = Settings::load(&args.files.files()).map_err(|error| Usage(error.to_string()))?;
    let (name, text) = if args.file == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("read standard input")?;
        ("<stdin>", text)
    } else {
        let text = std::fs::read_to_string(&args.file)
            .map_err(|error| Usage(format!("read {}: {error}", args.file)))?;
        (args.file.as_str(), text)
    };
    let injected = kube_inject::inject_text(&settings, name, &text)?;
    std::io::stdout()
        .write_all(injected.as_bytes())
        .context("print the manifests")
}
