//! The program: from the command line to the exit code.

use std::process::ExitCode;

use crate::agent::Agent;
use crate::args::{self, Action};
use crate::{offload, request, wait};
use proto_component::process::{self, Shape};

const NAME: &str = "pilot-agent";

/// Reads the command line and does what it says, to the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let (command, unknown) = args::parse(std::env::args_os());
    match command.action {
        Action::Version(version) => process::exit_code(NAME, version.run()),
        Action::Request(args) => process::run_command(NAME, async move {
            request::run(&args).await.map(|()| ExitCode::SUCCESS)
        }),
        Action::Wait(args) => process::run_command(NAME, async move {
            wait::run(&args).await.map(|()| ExitCode::SUCCESS)
        }),
        Action::ReadMesh(args) => process::exit_code(NAME, offload::read_mesh(&args)),
        Action::WriteBootstrap => process::exit_code(NAME, offload::write_bootstrap()),
        Action::Proxy(args) => {
            let agent = match Agent::new(*args, unknown) {
                Ok(agent) => agent,
                Err(error) => return process::exit_code(NAME, Err(error)),
            };
            // Where huge pages are given unasked, the proxy inside would keep MiBs for a few KiB. Another proxy program decides
            // for itself (it would inherit this); an old kernel says no.
            if agent.has_own_proxy() {
                let _ = nix::sys::prctl::set_thp_disable(true);
            }
            // One thread for the agent itself: the proxy brings its own workers.
            let shape = Shape {
                single_threaded: true,
                grace: agent.grace(),
            };
            process::run_with(NAME, &command.log, shape, |process| agent.run(process))
        }
    }
}
