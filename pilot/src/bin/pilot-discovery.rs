//! `pilot-discovery`: serves discovery to the proxies of the mesh. Everything is in the library.

/// Gives back what a push to many proxies has taken, where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    pilot::program::run()
}
