//! Bytes of a stream as they went over a connection, one end of it each: what access logs say of the wire. Counted as Envoy
//! counts them.

use std::cell::Cell;
use std::rc::Rc;

/// What one end of a stream has received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteCounts {
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

/// Bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// All of them.
    pub(crate) wire: u64,
    /// Of heads and trailers: with HTTP/2 as they are compressed, with their frames; with HTTP/1 the lines of their fields.
    pub(crate) heads: u64,
    /// The same before their compression.
    pub(crate) plain: u64,
}

/// Who counts the bytes of one end of a stream.
pub(crate) trait ByteMeter {
    /// So far.
    fn counts(&self) -> ByteCounts;
    /// Others are to be counted in.
    fn add(&self, other: ByteCounts);
    /// Bytes came and went that the codec does not see any more.
    fn tunnelled(&self, received: u64, sent: u64);
    /// Whether it was the peer that broke the stream off, and not its connection.
    fn is_reset_by_peer(&self) -> bool {
        false
    }
}

/// The bytes of HTTP/1, or of TCP.
#[derive(Debug, Default)]
pub(crate) struct PlainMeter(Cell<ByteCounts>);

impl Traffic {
    pub(crate) fn add(&mut self, other: Traffic) {
        self.wire += other.wire;
        self.heads += other.heads;
        self.plain += other.plain;
    }
}

impl ByteCounts {
    pub(crate) fn add(&mut self, other: ByteCounts) {
        self.received.add(other.received);
        self.sent.add(other.sent);
    }
}

impl PlainMeter {
    /// Another message begins: the meter as new, or a new one where the old one is still looked at.
    pub(crate) fn renew(this: &mut Rc<Self>) {
        match Rc::get_mut(this) {
            Some(meter) => *meter = Self::default(),
            None => *this = Rc::default(),
        }
    }

    /// Bytes were read.
    pub(crate) fn read(&self, count: usize) {
        self.update(|counts| counts.received.wire += count as u64);
    }

    /// A head was among them, with fields of so many bytes.
    ///
    /// QUIRK: as in Envoy all heads so far count with each as what was compressed: interim ones, those of earlier attempts.
    pub(crate) fn read_head(&self, fields: usize) {
        self.update(|counts| {
            counts.received.heads += fields as u64;
            counts.received.plain += counts.received.heads;
        });
    }

    /// Trailers were among them. QUIRK: as what was compressed they do not count.
    pub(crate) fn read_trailers(&self, fields: usize) {
        self.update(|counts| counts.received.heads += fields as u64);
    }

    /// Bytes were put where they are written from.
    pub(crate) fn wrote(&self, count: usize) {
        self.update(|counts| counts.sent.wire += count as u64);
    }

    /// Fields of a head, or trailers, were among them.
    pub(crate) fn wrote_fields(&self, fields: usize) {
        self.update(|counts| {
            counts.sent.heads += fields as u64;
            counts.sent.plain += fields as u64;
        });
    }

    fn update(&self, work: impl FnOnce(&mut ByteCounts)) {
        let mut counts = self.0.get();
        work(&mut counts);
        self.0.set(counts);
    }
}

impl ByteMeter for PlainMeter {
    fn counts(&self) -> ByteCounts {
        self.0.get()
    }

    fn add(&self, other: ByteCounts) {
        self.update(|counts| counts.add(other));
    }

    fn tunnelled(&self, received: u64, sent: u64) {
        self.update(|counts| {
            counts.received.wire += received;
            counts.sent.wire += sent;
        });
    }
}
