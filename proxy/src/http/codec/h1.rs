//! HTTP/1: one task a connection. It reads a head, runs the engine and the upstream exchange in place, writes the response, and
//! goes on with what the client sent meanwhile.

mod body;
mod drain_watch;
mod hand_over;
mod refusal;
mod send;
mod session;

pub(crate) use body::{RequestBody, RequestBodyError};
pub(super) use session::serve;
