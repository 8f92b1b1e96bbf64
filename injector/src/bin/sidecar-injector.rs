//! `sidecar-injector`: the mutating webhook, and injection into files.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use injector::args::{Arguments, Command, InjectArgs};
use injector::config::Settings;
use injector::{bootstrap, kube_inject};
use proto_component::process::{self, Usage};

fn main() -> ExitCode {
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
