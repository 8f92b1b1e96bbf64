//! HTTP/2 for both ends (RFC 9113), on one thread: nothing is shared beyond it, so nothing is locked.
//!
//! A [`Connection`] is polled by one task. It reads into a buffer that connections share, takes one frame after the other from it
//! ([`receive`]) and gives each to its stream; whoever serves or asks has the stream's halves ([`Receive`], [`Send`]). What those
//! send goes as frames straight behind what waits to go out ([`core`]), heads too, as the order of what is written is the order of
//! the table that compresses them ([`hpack`]); the connection's task writes it all when it next has its turn. There is room for
//! data while the peer's windows are open and little waits: who finds none is woken in the order of the asking. Large data is not
//! copied: a stream keeps the part of the buffer that it came in ([`input`]), which goes out as it is between frames ([`output`]).
//!
//! What a peer may cost is bounded: its streams, the bytes that it may send ahead, a head's size, answers that it does not read, and
//! frames that bring nothing ([`FloodLimits`], as Envoy has them). Resets of streams are counted by the connection manager.

mod connection;
mod core;
mod flood;
mod frame;
mod head;
mod hpack;
mod input;
mod output;
mod reason;
mod receive;
mod stream;
#[cfg(test)]
mod tests;
mod tunnel;

use super::headers::RequestHeaders;

pub(crate) use self::core::Options;
pub(crate) use connection::{Connection, Handle, Requests};
pub(crate) use flood::FloodLimits;
pub(crate) use frame::PREFACE;
pub(crate) use head::HeadLimits;
pub(crate) use reason::{Error, Reason};
pub(crate) use stream::{Receive, Send, Whole};
pub(crate) use tunnel::Tunnel;

/// A stream that a client has opened.
pub(crate) struct Incoming {
    pub(crate) head: RequestHeaders,
    pub(crate) receive: Receive,
    pub(crate) send: Send,
}
