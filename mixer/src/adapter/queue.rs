//! Telemetry on its way out: a bounded queue and a task that sends what is in it, in batches. What does not fit, or cannot be
//! sent after a few tries, is dropped and counted; no request ever waits. When the handler goes, the rest is still sent.

use std::time::Duration;

use futures::future::BoxFuture;
use proto_component::backoff::Backoff;
use proto_component::task;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::BuildContext;

/// Tries of one batch.
const TRIES: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// When what has come is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// How many may wait.
    pub(super) capacity: usize,
    /// How many are sent at once at most.
    pub(super) batch: usize,
    /// How long the first of a batch waits for others.
    pub(super) interval: Duration,
    /// How long one try may take.
    pub(super) deadline: Duration,
}

/// The way into the queue.
#[derive(Debug)]
pub(super) struct Queue<T> {
    sender: mpsc::Sender<T>,
    full: prometheus::IntCounter,
}

/// Sends a batch.
pub(super) type Send<T> =
    Box<dyn FnMut(Vec<T>) -> BoxFuture<'static, Result<(), String>> + std::marker::Send>;

impl<T: Clone + std::marker::Send + 'static> Queue<T> {
    /// Starts the task that sends.
    pub(super) fn start(
        name: &'static str,
        context: &BuildContext,
        rules: Rules,
        send: Send<T>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(rules.capacity.max(1));
        let counter = |reason: &str| {
            context
                .dropped
                .with_label_values(&[context.handler.as_str(), reason])
        };
        let worker = Worker {
            rules,
            send,
            handler: context.handler.clone(),
            failed: counter("send failed"),
        };
        task::spawn(name, worker.run(receiver));
        Self {
            sender,
            full: counter("queue full"),
        }
    }

    /// Puts one in, or counts it as dropped.
    pub(super) fn push(&self, item: T) {
        if self.sender.try_send(item).is_err() {
            self.full.inc();
        }
    }
}

struct Worker<T> {
    rules: Rules,
    send: Send<T>,
    handler: String,
    failed: prometheus::IntCounter,
}

impl<T: Clone + std::marker::Send> Worker<T> {
    async fn run(mut self, mut receiver: mpsc::Receiver<T>) {
        let batch = self.rules.batch.max(1);
        while let Some(first) = receiver.recv().await {
            let mut items = vec![first];
            let until = Instant::now() + self.rules.interval;
            while items.len() < batch {
                match timeout_at(until, receiver.recv()).await {
                    Ok(Some(item)) => items.push(item),
                    // Time is up, or the handler has gone: the next turn ends.
                    Ok(None) | Err(_) => break,
                }
            }
            self.deliver(items).await;
        }
    }

    async fn deliver(&mut self, items: Vec<T>) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let count = items.len();
        for attempt in 1..=TRIES {
            let sent = timeout(self.rules.deadline, (self.send)(items.clone())).await;
            let error = match sent {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => "no answer in time".to_owned(),
            };
            if attempt == TRIES {
                tracing::warn!(target: "adapters", error, handler = self.handler, count, "telemetry is dropped");
                break;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
        self.failed.inc_by(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use parking_lot::Mutex;

    fn rules(capacity: usize) -> Rules {
        Rules {
            capacity,
            batch: 2,
            interval: Duration::from_secs(1),
            deadline: Duration::from_secs(1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_sent_and_the_rest_at_the_end() {
        let sent: Arc<Mutex<Vec<Vec<u32>>>> = Arc::default();
        let seen = sent.clone();
        let send: Send<u32> = Box::new(move |items| {
            seen.lock().push(items);
            Box::pin(async { Ok(()) })
        });
        let queue = Queue::start("test", &BuildContext::default(), rules(10), send);
        for item in 0..5 {
            queue.push(item);
        }
        drop(queue);
        while sent.lock().iter().flatten().count() < 5 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*sent.lock(), [vec![0, 1], vec![2, 3], vec![4]]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_or_cannot_be_sent_is_counted() {
        let context = BuildContext {
            handler: "h".into(),
            ..BuildContext::default()
        };
        let send: Send<u32> = Box::new(|_| Box::pin(async { Err("no".to_owned()) }));
        let queue = Queue::start("test", &context, rules(3), send);
        for item in 0..5 {
            queue.push(item);
        }
        let count = |reason: &str| context.dropped.with_label_values(&["h", reason]).get();
        assert_eq!(count("queue full"), 2);
        drop(queue);
        while count("send failed") < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
