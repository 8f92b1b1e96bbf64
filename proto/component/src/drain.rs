//! Shutdown: one signal that everybody can wait for, and the deadline by which they must be gone.

use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How long a process may take to finish what it has begun, unless told otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// The receiving end: cheap to clone, one for each task.
#[derive(Clone, Debug)]
pub struct Drain {
    deadline: watch::Receiver<Option<Instant>>,
    // A drain that can never be triggered keeps its own sender, so that waiting stays pending.
    _keep: Option<Arc<watch::Sender<Option<Instant>>>>,
}

/// The sending end; dropping it does not drain.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<watch::Sender<Option<Instant>>>);

/// A connected pair.
pub fn channel() -> (Trigger, Drain) {
    let (sender, receiver) = watch::channel(None);
    let sender = Arc::new(sender);
    let drain = Drain {
        deadline: receiver,
        _keep: Some(sender.clone()),
    };
    (Trigger(sender), drain)
}

impl Trigger {
    /// Starts the drain; everything must be done within `grace`. A second call only shortens the deadline.
    pub fn drain(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.0.send_modify(|current| {
            *current = Some(current.map_or(deadline, |earlier| earlier.min(deadline)));
        });
    }
}

impl Drain {
    /// A drain that never begins (tests, one-shot commands).
    pub fn never() -> Self {
        channel().1
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.deadline.borrow().is_some()
    }

    /// Resolves when the drain begins (at once if it already has).
    pub async fn signaled(&self) {
        let mut receiver = self.deadline.clone();
        // The sender cannot be gone: each drain holds one.
        let _ = receiver.wait_for(Option::is_some).await;
    }

    /// Resolves when the drain's deadline has passed.
    pub async fn expired(&self) {
        self.signaled().await;
        let mut receiver = self.deadline.clone();
        loop {
            let Some(deadline) = *receiver.borrow_and_update() else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return,
                _ = receiver.changed() => {}
            }
        }
    }

    /// Time left until the deadline; `None` before the drain begins.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline
            .borrow()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_is_seen_by_every_clone_and_expires() {
        let (trigger, drain) = channel();
        let other = drain.clone();
        assert!(!drain.is_draining());
        trigger.drain(Duration::from_secs(3));
        other.signaled().await;
        assert_eq!(drain.remaining(), Some(Duration::from_secs(3)));
        trigger.drain(Duration::from_secs(1));
        trigger.drain(Duration::from_secs(9));
        let before = Instant::now();
        other.expired().await;
        assert_eq!(before.elapsed(), Duration::from_secs(1));
    }
}
