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

/// What `look` finds, if it finds it in time.
pub(super) async fn in_time<T>(look: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let outcome = tokio::time::timeout(TIMEOUT, look).await;
    outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long")))
}

/// Looks at once and after each change that `changes` tells, until the drain; a look that fails is repeated. How long one may
/// take is for `look` to bound: it may also wait for its turn.
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
            let pause = match look().await {
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
