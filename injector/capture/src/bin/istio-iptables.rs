//! `istio-iptables`: what a pod's init container runs to have its traffic intercepted.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use injector_capture::options::Options;
use injector_capture::program;
use injector_capture::rules::{Family, build};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "istio-iptables: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if options.dry_run {
        let rules = build(options, Family::V4);
        return std::io::stdout()
            .write_all(rules.as_bytes())
            .context("print the rules");
    }
    if options.clean {
        return program::clean().context("remove the rules");
    }
    program::apply(options).context("program the rules")
}
