//! HTTP: codec → connection manager → filters → router filter → upstream.
//!
//! A downstream connection is served by a [`codec`] (HTTP/1 or HTTP/2) that hands every request to [`stream::open`], the
//! engine that both share: it cleans the request's head ([`conn_manager`]), selects a route, runs the filters
//! ([`filter`]) and the router filter, and gives back a response whose body streams. State of a stream lives in one
//! allocation ([`stream::StreamCell`]); when it is dropped the access log is written, whatever happened.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod codec;
mod codec_stats;
pub(crate) mod config;
pub(crate) mod conn_manager;
pub(crate) mod export;
pub(crate) mod filter;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod headers;
pub(crate) mod local_reply;
pub(crate) mod otlp;
pub(crate) mod stats;
pub(crate) mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod timer;
pub(crate) mod upgrade;

pub(crate) use codec_stats::{CodecStats, Http2Stats};
