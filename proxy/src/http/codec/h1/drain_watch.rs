//! How a connection's task learns that it is to end.

use std::pin::Pin;
use std::task::{Context, Poll};

use proto_component::drain::Drain;

/// Sees the drain begin and end. The task is woken through the signal's future, which is polled but once; whether it has come
/// is then a look at a flag.
pub(super) struct DrainWatch {
    drain: Drain,
    signal: Pin<Box<dyn Future<Output = ()>>>,
    expiry: Option<Pin<Box<dyn Future<Output = ()>>>>,
    is_registered: bool,
}

impl DrainWatch {
    pub(super) fn new(drain: Drain) -> Self {
        let signal = drain.clone();
        DrainWatch {
            signal: Box::pin(async move { signal.signaled().await }),
            expiry: None,
            drain,
            is_registered: false,
        }
    }

    /// What it watches.
    pub(super) fn drain(&self) -> &Drain {
        &self.drain
    }

    pub(super) fn is_draining(&mut self, context: &mut Context<'_>) -> bool {
        if !self.is_registered {
            self.is_registered = true;
            if self.signal.as_mut().poll(context).is_ready() {
                self.signal = Box::pin(std::future::pending());
            }
        }
        self.drain.is_draining()
    }

    /// Ready when the drain is over.
    pub(super) fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_draining(context) {
            return Poll::Pending;
        }
        let drain = &self.drain;
        let expiry = self.expiry.get_or_insert_with(|| {
            let drain = drain.clone();
            Box::pin(async move { drain.expired().await })
        });
        expiry.as_mut().poll(context)
    }
}
