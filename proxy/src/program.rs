//! The program: from the command line to the exit code.

use crate::{Args, Mode, Options, compile, precompiled};
use clap::Parser as _;
use proto_component::{
    allocator,
    process::{self, Usage},
};
use std::process::ExitCode;

/// Reads the command line and does what it says, to the exit code.
#[must_use]
pub fn run() -> ExitCode {
    allocator::save_memory();
    let args = Args::parse();
    let (log, mode) = (args.log(), args.mode);
    let options = match args.options() {
        Ok(options) => options,
        Err(error) => return process::exit_code("bireme-proxy", Err(Usage(error).into())),
    };
    if mode == Mode::Compile {
        return process::exit_code("bireme-proxy", compile(&options));
    }
    let options = precompiled(options);
    process::run("bireme-proxy", &log, |process| async move {
        let options = Options {
            logging: Some(process.logging.clone()),
            ..options
        };
        crate::run(options, process.drain.clone()).await
    })
}
