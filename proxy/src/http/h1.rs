//! HTTP/1 as bytes, for both ends: heads are parsed ([`head`]) and written ([`encode`]), bodies are framed ([`decoder`]), and
//! what goes out is gathered into few writes ([`output`]). No connection is known here: the downstream codec and the
//! upstream pool own those.
//!
//! As strict as Envoy where two readers could disagree (lengths, transfer encodings, host), and stricter in three places:
//! a request with two `host` headers, with a folded header, or with a bare line feed inside a chunked body is refused.

pub(crate) mod decoder;
pub(crate) mod encode;
pub(crate) mod head;
pub(crate) mod output;
mod said;
mod target;
#[cfg(test)]
mod tests;

pub(crate) use decoder::{Decoded, Decoder, Framing};
pub(crate) use head::{HeadLimits, InvalidHead, RequestHead, ResponseHead};
pub(crate) use output::Output;
