//! HPACK (RFC 7541): how heads are written in HTTP/2. Both ends of a connection keep a table of the fields that the sender has
//! named; one that is in it costs a byte.

mod decoder;
mod encoder;
mod field;
mod huffman;
mod literals;

pub(super) use decoder::{Broken, Decoder};
pub(super) use encoder::Encoder;
pub(super) use field::{Name, OVERHEAD};

/// What a table holds unless its reader says otherwise.
pub(super) const TABLE_SIZE: usize = 4096;
