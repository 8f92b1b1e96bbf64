//! `bireme-proxy`: flags → options → [`proxy::run`].

use clap::Parser as _;
use proto_component::process::{self, Usage};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages; an idle proxy would keep eight MiB of them for a few hundred KiB. An old kernel says no.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let args = proxy::Args::parse();
    let (log, mode) = (args.log(), args.mode);
    let options = match args.options() {
        Ok(options) => options,
        Err(error) => return process::exit_code("bireme-proxy", Err(Usage(error).into())),
    };
    if mode == proxy::Mode::Compile {
        return process::exit_code("bireme-proxy", proxy::compile(&options));
    }
    let options = proxy::precompiled(options);
    process::run("bireme-proxy", &log, |process| async move {
        let options = proxy::Options {
            logging: Some(process.logging.clone()),
            ..options
        };
        proxy::run(options, process.drain.clone()).await
    })
}
