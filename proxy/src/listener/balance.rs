//! Connection balance: with `exact_balance` a connection goes to the worker that has the fewest of its listener's.

use parking_lot::Mutex;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::sync::mpsc;

/// Connections on their way to another worker, at most.
const QUEUE: usize = 1024;

/// An accepted connection on its way.
pub(super) type Handed = (std::net::TcpStream, SocketAddr, Seat);

/// What the workers of a listener share.
pub(crate) struct Balancer(Vec<Desk>);

struct Desk {
    connections: Arc<AtomicUsize>,
    sender: mpsc::Sender<Handed>,
    receiver: Mutex<Option<mpsc::Receiver<Handed>>>,
}

/// A connection's place on a worker, until it is dropped.
pub(super) struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Balancer {
    /// For so many workers.
    pub(super) fn new(workers: usize) -> Self {
        let desk = |_| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            Desk {
                connections: Arc::default(),
                sender,
                receiver: Mutex::new(Some(receiver)),
            }
        };
        Self((0..workers).map(desk).collect())
    }

    /// What is handed to worker `index`; taken once.
    pub(super) fn take_receiver(&self, index: usize) -> Option<mpsc::Receiver<Handed>> {
        self.0.get(index)?.receiver.lock().take()
    }

    /// Finds the worker for a new connection that `own` has accepted, and takes a seat there.
    pub(super) fn choose(&self, own: usize) -> (usize, Seat) {
        let least = self
            .0
            .iter()
            .enumerate()
            // Where all are equal, it stays.
            .min_by_key(|(index, desk)| (desk.connections.load(Relaxed), *index != own))
            .map_or(own, |(index, _)| index);
        (least, self.seat(least))
    }

    /// A seat at worker `index`.
    pub(super) fn seat(&self, index: usize) -> Seat {
        let connections = self.0[index].connections.clone();
        connections.fetch_add(1, Relaxed);
        Seat(connections)
    }

    /// Hands a connection over; it comes back when the worker does not keep up.
    pub(super) fn hand(&self, index: usize, handed: Handed) -> Result<(), Handed> {
        self.0[index]
            .sender
            .try_send(handed)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(handed)
                | mpsc::error::TrySendError::Closed(handed) => handed,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_with_the_fewest_connections_is_chosen() {
        let balancer = Balancer::new(3);
        let (first, _a) = balancer.choose(1);
        let (second, b) = balancer.choose(1);
        let (third, _c) = balancer.choose(1);
        assert_eq!((first, second, third), (1, 0, 2));
        drop(b);
        assert_eq!(balancer.choose(1).0, 0);
    }
}
