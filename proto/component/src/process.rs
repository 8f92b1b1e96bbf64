//! A process from `main` to exit code: runtime, logging, signals, drain; failures as one line, never a backtrace.
//!
//! Exit codes: 0 after a clean end, 1 after a failure at work, 2 when the command cannot work as given
//! (bad flag, port taken, file missing).

use crate::{
    args::LogArgs, drain, listen::BindError, logging, logging::Logging, readiness::Readiness, task,
    tls,
};
use futures::future::LocalBoxFuture;
use std::{future::Future, io::Write as _, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// What the skeleton hands to a component's main future.
#[derive(Clone)]
pub struct Process {
    /// The component's name (`galley`, `pilot-discovery`, …).
    pub name: &'static str,
    /// Signalled on SIGTERM or SIGINT.
    pub drain: drain::Drain,
    /// Starts the drain from inside (an admin's `/quitquitquit`).
    pub trigger: drain::Trigger,
    /// Log levels at run time.
    pub logging: Logging,
    /// All metrics of the process.
    pub registry: prometheus::Registry,
    /// Conditions behind `/ready`.
    pub readiness: Readiness,
}

/// How a process runs.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// One thread for everything: less memory, where there is little to do.
    pub single_threaded: bool,
    /// How long the drain that a signal begins may take.
    pub grace: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            single_threaded: false,
            grace: drain::DEFAULT_GRACE,
        }
    }
}

/// The command cannot work as given: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Process {
    /// A process for tests: nothing installed, never drained by a signal.
    pub fn detached(name: &'static str) -> Self {
        tls::install_provider();
        let (trigger, drain) = drain::channel();
        Self {
            name,
            drain,
            trigger,
            logging: Logging::detached(),
            registry: prometheus::Registry::new(),
            readiness: Readiness::default(),
        }
    }
}

/// From here on the files and folders that this process makes are for its owner only, unless it says otherwise; to be called
/// before anything else runs. For components whose files hold secrets, which libraries make as openly as they may.
pub fn keep_files_private() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
}

/// A component's own part of its life.
type Main<'a> = Box<dyn FnOnce(Process) -> LocalBoxFuture<'a, anyhow::Result<()>> + 'a>;

/// Runs a component: builds the runtime, calls `main`, waits for its end, then for drained tasks.
///
/// `main` returns when it has drained (it watches [`Process::drain`]); an error ends the process at once.
pub fn run<M, F>(name: &'static str, log: &LogArgs, main: M) -> ExitCode
where
    M: FnOnce(Process) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    run_with(name, log, Shape::default(), main)
}

/// As [`run`], for a process that is not of the usual shape.
pub fn run_with<M, F>(name: &'static str, log: &LogArgs, shape: Shape, main: M) -> ExitCode
where
    M: FnOnce(Process) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    // From here on nothing is generic, so that it is compiled once.
    let main: Main<'_> = Box::new(|process| Box::pin(main(process)));
    let work = supervise(name, log, shape.grace, main);
    exit_code(name, in_runtime(shape.single_threaded, Box::pin(work)))
}

/// Runs a one-shot command: no logging, no signals; errors become one line and an exit code.
pub fn run_command<F>(name: &'static str, command: F) -> ExitCode
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    tls::install_provider();
    match in_runtime(false, Box::pin(command)) {
        Ok(code) => code,
        Err(error) => exit_code(name, Err(error)),
    }
}

/// One line for a failure on standard error; the exit code that goes with it.
pub fn exit_code(name: &str, outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    let line = format!("{error:#}").replace('\n', "; ");
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{name}: {line}");
    ExitCode::from(if is_usage(&error) { 2 } else { 1 })
}

fn in_runtime<T>(
    single_threaded: bool,
    work: LocalBoxFuture<'_, anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut builder = if single_threaded {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(work);
    // Blocking work (a file read) must not hold the exit.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

async fn supervise(
    name: &'static str,
    log: &LogArgs,
    grace: Duration,
    main: Main<'_>,
) -> anyhow::Result<()> {
    let logging = logging::init(name, log)?;
    log_panics();
    tls::install_provider();
    let (trigger, drain) = drain::channel();
    watch_signals(&trigger, grace)?;
    let process = Process {
        name,
        drain: drain.clone(),
        trigger,
        logging,
        registry: prometheus::Registry::new(),
        readiness: Readiness::default(),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        "starting"
    );
    let outcome = tokio::select! {
        outcome = main(process.clone()) => outcome,
        message = task::failure() => Err(anyhow::anyhow!(message)),
        () = drain.expired() => {
            tracing::warn!("the drain's deadline has passed; ending with work undone");
            Ok(())
        }
    };
    if outcome.is_ok() {
        let patience = drain.remaining().unwrap_or(drain::DEFAULT_GRACE);
        if !task::finished(patience).await {
            tracing::warn!(running = ?task::running(), "tasks did not end in time");
        }
        tracing::info!("stopped");
    }
    process.logging.flush();
    outcome
}

/// SIGTERM or SIGINT starts the drain, a second one shortens it to nothing.
fn watch_signals(trigger: &drain::Trigger, grace: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let trigger = trigger.clone();
    task::spawn("signals", async move {
        let mut grace = grace;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "draining");
            trigger.drain(grace);
            grace = Duration::ZERO;
        }
    });
    Ok(())
}

/// A panic is one log line with its place.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(|place| format!("{}:{}", place.file(), place.line()));
        let text = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(message = text, place, "panic");
    }));
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause.is::<BindError>()
            || cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_missing_file_and_a_usage_error_are_recognised_through_context() {
        let missing = std::fs::read("/nowhere/at/all")
            .context("read the mesh file")
            .unwrap_err();
        assert!(is_usage(&missing));
        let usage = anyhow::Error::from(Usage("no such flag".into())).context("start");
        assert!(is_usage(&usage));
        assert!(!is_usage(&anyhow::anyhow!("the disk is full")));
    }
}
