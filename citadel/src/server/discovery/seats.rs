//! Who listens: so many streams altogether, and so many of one identity, so that nobody can take the others' places.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use proto_mesh::spiffe::SpiffeId;
use tonic::Status;

/// Streams that may be open.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// Of all identities together.
    pub total: usize,
    /// Of one identity: all pods of a service account have the same.
    pub of_one: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            total: 20_000,
            of_one: 5000,
        }
    }
}

/// The places; cheap to clone.
#[derive(Clone)]
pub(super) struct Seats {
    limits: StreamLimits,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    of_each: HashMap<SpiffeId, usize>,
}

/// One place, free again when dropped.
pub(super) struct Seat {
    identity: SpiffeId,
    seats: Seats,
}

impl Seats {
    pub(super) fn new(limits: StreamLimits) -> Self {
        Self {
            limits,
            taken: Arc::default(),
        }
    }

    /// A place for a stream of `identity`.
    pub(super) fn take(&self, identity: SpiffeId) -> Result<Seat, Status> {
        let mut taken = self.taken.lock();
        let own = taken.of_each.get(&identity).copied().unwrap_or_default();
        if own >= self.limits.of_one {
            tracing::warn!(target: "ca", %identity, streams = own, "too many streams of one identity");
            let text = format!("{identity} has {own} streams already");
            return Err(Status::resource_exhausted(text));
        }
        if taken.total >= self.limits.total {
            tracing::warn!(target: "ca", streams = taken.total, "too many streams");
            return Err(Status::resource_exhausted("too many streams"));
        }
        taken.total += 1;
        taken.of_each.insert(identity.clone(), own + 1);
        drop(taken);
        Ok(Seat {
            identity,
            seats: self.clone(),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        taken.total -= 1;
        if let Some(own) = taken.of_each.get_mut(&self.identity) {
            *own -= 1;
            if *own == 0 {
                taken.of_each.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_others_places() {
        let seats = Seats::new(StreamLimits {
            total: 3,
            of_one: 2,
        });
        let identity = |name| SpiffeId::new("td", "ns", name).unwrap();
        let first = seats.take(identity("a")).unwrap();
        let second = seats.take(identity("a")).unwrap();
        assert!(seats.take(identity("a")).is_err());
        let third = seats.take(identity("b")).unwrap();
        assert!(seats.take(identity("c")).is_err());
        drop(first);
        assert!(seats.take(identity("c")).is_ok());
        drop((second, third));
        assert!(seats.taken.lock().of_each.is_empty());
        assert_eq!(seats.taken.lock().total, 0);
    }
}
