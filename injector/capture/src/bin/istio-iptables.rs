//! `istio-iptables`: what a pod's init container runs to have its traffic intercepted.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use injector_capture::options::Options;
use injector_capture::{program, validation};

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = program_rules(&options);
    let (outcome, code) = match outcome {
        Ok(()) if options.run_validation => {
            let tried = validation::run(&options).context("try the rules");
            (tried, ExitCode::from(validation::FAILED))
        }
        other => (other, ExitCode::FAILURE),
    };
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    let _ = writeln!(std::io::stderr(), "istio-iptables: {error:#}");
    code
}

fn program_rules(options: &Options) -> anyhow::Result<()> {
    if options.dry_run {
        return std::io::stdout()
            .write_all(program::print(options).as_bytes())
            .context("print the rules");
    }
    if options.clean {
        return program::clean().context("remove the rules");
    }
    if options.skip_rule_apply {
        return Ok(());
    }
    program::apply(options).context("program the rules")
}
