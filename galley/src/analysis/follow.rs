//! When a running Galley analyzes: after each change, not more often than now and then.

use proto_component::{backoff::Backoff, drain::Drain, task};
use std::time::Duration;
use tokio::sync::watch;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// The longest time after a look that failed.
const CAP: Duration = Duration::from_secs(60);
/// How long one look may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Looks at once and after each change that `changes` tells, until the drain; a look that fails is repeated.
pub(super) fn follow<T, L>(
    name: &'static str,
    mut changes: watch::Receiver<T>,
    drain: Drain,
    look: impl Fn() -> L + Send + 'static,
) where
    T: Send + Sync + 'static,
    L: Future<Output = anyhow::Result<()>> + Send,
{
    task::spawn(name, async move {
        let mut backoff = Backoff::new(INTERVAL, CAP);
        loop {
            changes.mark_unchanged();
            let outcome = tokio::time::timeout(TIMEOUT, look()).await;
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long")));
            let pause = match outcome {
                Ok(()) => {
                    backoff.reset();
                    INTERVAL
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(target: "analysis", task = name, error, "cannot analyze; trying again");
                    changes.mark_changed();
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = drain.signaled() => return,
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = drain.signaled() => return,
            }
        }
    });
}
