//! Tasks: named, counted, drained; a panic in one ends the process with an error instead of leaving it half dead.
//!
//! The book of running tasks is the one piece of process-wide state: a task may be started from anywhere.
//! Not for the proxy's request path: starting and ending a task each take a lock.

use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use std::{
    any::Any, collections::BTreeMap, future::Future, panic::AssertUnwindSafe, sync::LazyLock,
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::Instrument as _;

/// How a task ends when the process shuts down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    /// Dropped once the component's main future has returned.
    Abandon,
    /// Waited for, within the drain's deadline.
    Await,
}

struct Book {
    running: Mutex<BTreeMap<&'static str, usize>>,
    awaited: watch::Sender<usize>,
    failed: watch::Sender<Option<String>>,
}

static BOOK: LazyLock<Book> = LazyLock::new(|| Book {
    running: Mutex::default(),
    awaited: watch::channel(0).0,
    failed: watch::channel(None).0,
});

/// Starts a background task; it is dropped when the component's main future has returned.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    start(name, Shutdown::Abandon, future)
}

/// Starts a task that must come to its own end: shutdown waits for it, up to the drain's deadline.
/// It has to watch the [`Drain`](crate::drain::Drain) itself.
pub fn spawn_drained<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    start(name, Shutdown::Await, future)
}

/// Names and numbers of the running tasks.
pub fn running() -> BTreeMap<&'static str, usize> {
    BOOK.running.lock().clone()
}

/// Resolves with the message once a task has panicked.
pub(crate) async fn failure() -> String {
    let mut failed = BOOK.failed.subscribe();
    match failed.wait_for(Option::is_some).await {
        Ok(message) => message.clone().unwrap_or_default(),
        Err(_) => std::future::pending().await,
    }
}

/// Waits until every drained task has ended; `false` if some have not after `patience`.
pub(crate) async fn finished(patience: Duration) -> bool {
    let mut awaited = BOOK.awaited.subscribe();
    tokio::time::timeout(patience, awaited.wait_for(|count| *count == 0))
        .await
        .is_ok()
}

fn start<F>(name: &'static str, shutdown: Shutdown, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    // Boxed here: what follows, with the runtime's own part of a task, is the same code for all of them.
    start_boxed(name, shutdown, Box::pin(future))
}

fn start_boxed<T: Send + 'static>(
    name: &'static str,
    shutdown: Shutdown,
    future: BoxFuture<'static, T>,
) -> JoinHandle<T> {
    let entry = Entry::new(name, shutdown);
    let work = async move {
        let outcome = AssertUnwindSafe(future).catch_unwind().await;
        drop(entry);
        match outcome {
            Ok(output) => output,
            Err(panic) => {
                let message = format!("task {name} panicked: {}", describe(panic.as_ref()));
                tracing::error!(task = name, "a task panicked; the process ends");
                BOOK.failed.send_replace(Some(message));
                std::panic::resume_unwind(panic)
            }
        }
    };
    let span = tracing::info_span!(target: "task", parent: None, "task", task = name);
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one place where tasks start"
    )]
    tokio::spawn(work.instrument(span))
}

fn describe(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// A task's line in the book, struck out on drop.
struct Entry {
    name: &'static str,
    shutdown: Shutdown,
}

impl Entry {
    fn new(name: &'static str, shutdown: Shutdown) -> Self {
        *BOOK.running.lock().entry(name).or_insert(0) += 1;
        if shutdown == Shutdown::Await {
            BOOK.awaited.send_modify(|count| *count += 1);
        }
        Self { name, shutdown }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = BOOK.running.lock();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
        drop(running);
        if self.shutdown == Shutdown::Await {
            BOOK.awaited.send_modify(|count| *count -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_is_listed_while_it_runs_and_its_panic_is_reported() {
        let (send, receive) = tokio::sync::oneshot::channel::<()>();
        let handle = spawn("listed", async move { receive.await.is_ok() });
        assert_eq!(running().get("listed"), Some(&1));
        send.send(()).unwrap();
        assert!(handle.await.unwrap());
        assert_eq!(running().get("listed"), None);

        let broken = spawn("broken", async { panic!("on purpose") });
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(failure().await, "task broken panicked: on purpose");
    }
}
