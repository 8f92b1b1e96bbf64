//! `galley`: serves the mesh's configuration, or checks files. Everything is in the library.

fn main() -> std::process::ExitCode {
    galley::program::run()
}
