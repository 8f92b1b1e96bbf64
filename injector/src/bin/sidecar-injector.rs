//! `sidecar-injector`: the mutating webhook, and injection into files. Everything is in the library.

fn main() -> std::process::ExitCode {
    injector::program::run()
}
