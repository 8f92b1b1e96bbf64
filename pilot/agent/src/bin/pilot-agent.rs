//! `pilot-agent`: runs the proxy in a pod and what it needs beside it. Everything is in the library.

fn main() -> std::process::ExitCode {
    pilot_agent::program::run()
}
