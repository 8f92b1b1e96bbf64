//! What was read of a connection: a buffer that connections share, unless large data of it goes on as it is.

use crate::transport::spare;
use bytes::Bytes;

/// What was read and is not done with.
#[derive(Default)]
pub(super) struct Input {
    /// Without memory when nothing waits.
    own: Vec<u8>,
    /// Used instead once a part of it was given to somebody.
    shared: Bytes,
    taken: usize,
}

/// A frame's payload, and the memory that it is a part of, if that may be kept.
#[derive(Clone, Copy)]
pub(super) struct Payload<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) memory: Option<&'a Bytes>,
}

impl Input {
    /// What is not done with.
    pub(super) fn rest(&self) -> &[u8] {
        if self.shared.is_empty() {
            &self.own[self.taken..]
        } else {
            &self.shared[self.taken..]
        }
    }

    /// `count` bytes of it are done with.
    pub(super) fn take(&mut self, count: usize) {
        self.taken += count;
    }

    /// The payload that begins after `start` bytes of the rest. One that is to be shared may be kept without a copy, and keeps all
    /// that was read with it.
    pub(super) fn payload(&mut self, start: usize, length: usize, is_shared: bool) -> Payload<'_> {
        if is_shared && self.shared.is_empty() {
            self.shared = Bytes::from(std::mem::take(&mut self.own));
        }
        let bytes = &self.rest()[start..start + length];
        let memory = Some(&self.shared).filter(|_| is_shared);
        Payload { bytes, memory }
    }

    /// A buffer with the rest, to read more into.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        let taken = std::mem::take(&mut self.taken);
        if !self.shared.is_empty() {
            let shared = std::mem::take(&mut self.shared);
            spare::take(&mut self.own);
            self.own.extend_from_slice(&shared[taken..]);
        } else if taken > 0 {
            self.own.drain(..taken);
        }
        spare::take(&mut self.own);
        &mut self.own
    }

    /// Lets go of the buffer if nothing is in it.
    pub(super) fn give_if_empty(&mut self) {
        if self.own.is_empty() {
            spare::give(&mut self.own);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        spare::give(&mut self.own);
    }
}
