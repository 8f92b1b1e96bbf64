//! `istio_ca`: Citadel, the mesh's certificate authority. Everything is in the library.

fn main() -> std::process::ExitCode {
    citadel::program::run()
}
