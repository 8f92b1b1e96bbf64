//! `mixs`.
fn main() -> anyhow::Result<()> {
    mixer::eval_command::run(std::io::stdin().lock(), std::io::stdout().lock())
}
