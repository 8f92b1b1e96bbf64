//! `mixs`: Mixer, the mesh's policy and telemetry service. Everything is in the library.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    mixer::program::run()
}
