//! Telemetry on its way out (spans, access logs): gathered per worker, sent in batches by a task of the worker. Streams never
//! wait for it; what does not fit into the queue is dropped and counted.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak as RcWeak};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::sync::Notify;

use crate::worker::Worker;

/// What is left at the end is sent this soon.
const LAST_TIME: Duration = Duration::from_millis(50);

/// When a batch goes out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRules {
    /// This long after the first item.
    pub(crate) interval: Duration,
    /// Or with so many items.
    pub(crate) items: usize,
    /// Or with so many bytes.
    pub(crate) bytes: usize,
    /// No more items than this wait.
    pub(crate) limit: usize,
}

thread_local! {
    /// This thread's worker.
    static WORKER: RefCell<RcWeak<Worker>> = const { RefCell::new(RcWeak::new()) };
}

/// The worker of this thread begins: telemetry of its streams goes out through it, and settings are read from its runtime.
pub(crate) fn enter_worker(worker: &Rc<Worker>) {
    WORKER.with_borrow_mut(|current| *current = Rc::downgrade(worker));
    worker.server.runtime.enter();
}

/// The worker of this thread, if it has one.
pub(crate) fn current_worker() -> Option<Rc<Worker>> {
    WORKER.with_borrow(RcWeak::upgrade)
}

/// Who holds it keeps the worker's batches for it alive; usually a configuration.
#[derive(Debug, Default)]
pub(crate) struct Lease;

/// Items that wait on one worker.
pub(crate) struct Batch<T> {
    rules: BatchRules,
    items: RefCell<Vec<T>>,
    bytes: Cell<usize>,
    begun: Notify,
    full: Notify,
    dropped: Cell<u64>,
}

/// Sends a batch; must have a deadline of its own.
pub(crate) type Send<T> = Box<dyn Fn(Rc<Worker>, Vec<T>) -> LocalBoxFuture<'static, ()>>;

/// A batch of any kind, with what keeps it alive.
type Kept = (Weak<Lease>, Rc<dyn Any>);

thread_local! {
    /// The batches of this thread's worker.
    static BATCHES: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

impl<T: 'static> Batch<T> {
    /// The worker's batch for a lease; made, with its task, when there is none.
    pub(crate) fn of(
        lease: &Arc<Lease>,
        worker: &Rc<Worker>,
        rules: BatchRules,
        send: impl FnOnce() -> Send<T>,
    ) -> Rc<Self> {
        BATCHES.with_borrow_mut(|batches| {
            let known = batches
                .iter()
                .filter(|(of, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(lease)))
                .find_map(|(_, batch)| batch.clone().downcast::<Self>().ok());
            if let Some(batch) = known {
                return batch;
            }
            let batch = Rc::new(Batch {
                rules,
                items: RefCell::default(),
                bytes: Cell::new(0),
                begun: Notify::new(),
                full: Notify::new(),
                dropped: Cell::new(0),
            });
            batches.retain(|(lease, _)| lease.strong_count() > 0);
            batches.push((Arc::downgrade(lease), batch.clone()));
            let worker = Rc::downgrade(worker);
            let lease = Arc::downgrade(lease);
            tokio::task::spawn_local(batch.clone().run(lease, worker, send()));
            batch
        })
    }

    /// Adds an item of about `bytes` bytes; false when there is no room.
    pub(crate) fn push(&self, item: T, bytes: usize) -> bool {
        let mut items = self.items.borrow_mut();
        if items.len() >= self.rules.limit {
            self.dropped.set(self.dropped.get() + 1);
            return false;
        }
        items.push(item);
        let bytes = self.bytes.get() + bytes;
        self.bytes.set(bytes);
        if items.len() == 1 {
            self.begun.notify_one();
        }
        if items.len() >= self.rules.items || bytes >= self.rules.bytes {
            self.full.notify_one();
        }
        true
    }

    /// Sends batches until the lease is given back and nothing is left.
    async fn run(self: Rc<Self>, lease: Weak<Lease>, worker: RcWeak<Worker>, send: Send<T>) {
        loop {
            if self.items.borrow().is_empty() {
                // A lease that is given back wakes nobody: look from time to time.
                let idle = tokio::time::timeout(self.rules.interval.max(LAST_TIME), async {
                    tokio::select! {
                        () = self.begun.notified() => {}
                        () = self.full.notified() => {}
                    }
                });
                if idle.await.is_err() {
                    if lease.strong_count() == 0 {
                        return;
                    }
                    continue;
                }
            }
            let Some(worker) = worker.upgrade() else {
                return;
            };
            self.wait(&worker, &lease).await;
            let batch = std::mem::take(&mut *self.items.borrow_mut());
            self.bytes.set(0);
            if batch.is_empty() {
                continue;
            }
            let dropped = self.dropped.take();
            if dropped > 0 {
                tracing::warn!(target: "telemetry", dropped, "a collector is too slow, items dropped");
            }
            send(worker, batch).await;
        }
    }

    /// Until the batch is full or old enough.
    async fn wait(&self, worker: &Rc<Worker>, lease: &Weak<Lease>) {
        let drain = &worker.server.drain;
        let is_full =
            self.items.borrow().len() >= self.rules.items || self.bytes.get() >= self.rules.bytes;
        if is_full {
            return;
        }
        let patience = if drain.is_draining() || lease.strong_count() == 0 {
            LAST_TIME
        } else {
            self.rules.interval
        };
        tokio::select! {
            () = tokio::time::sleep(patience) => {}
            () = self.full.notified() => {}
            () = drain.signaled(), if !drain.is_draining() => {}
        }
    }
}
