//! Every case, against Envoy or its recorded answers. The last line is in the form of the test harness, with a case as a test.

use parity::{
    peer, report,
    suite::{Report, Suite},
};
use std::{io::Write as _, path::PathBuf, process::ExitCode};

#[allow(
    clippy::disallowed_methods,
    reason = "a test takes no flags of its own"
)]
fn main() -> ExitCode {
    // What `cargo test NAME` and its like pass on is for other harnesses; `--list` must list and end.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    proto_component::tls::install_provider();
    let envoy = std::env::var("ENVOY").ok().map(PathBuf::from);
    let run = || -> anyhow::Result<_> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let suite = Suite {
            oracle: peer::envoy(envoy),
            ours: peer::ours(None)?,
            jobs: 4,
            patterns: Vec::new(),
        };
        Ok((runtime.block_on(suite.run())?, suite.oracle.to_string()))
    };
    let mut out = std::io::stdout();
    let (passed, failed) = match run() {
        Ok((groups, oracle)) => {
            let _ = write!(out, "{}\nagainst {oracle}\n", report::table(&groups, false));
            let all = groups.iter().flat_map(|group| &group.cases);
            let passed = all.clone().filter(|report| Report::is_good(report)).count();
            (passed, all.count() - passed)
        }
        Err(error) => {
            let _ = writeln!(out, "{error:#}");
            (0, 1)
        }
    };
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let _ = writeln!(
        out,
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored"
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
