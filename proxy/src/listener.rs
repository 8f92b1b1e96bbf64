//! Listeners: sockets, accepting, listener filters, and the way of a connection to its filter chain.
//!
//! A listener's sockets belong to the workers, one each (`SO_REUSEPORT`); its configuration is an atomic pointer, so that an
//! update changes chains in place and only the connections of chains that are gone are drained.

mod accept;
mod balance;
mod config;
mod connection;
mod manager;
mod options;
mod serve;
mod socket;
#[cfg(test)]
mod tests;

pub(crate) use accept::run_listeners;
pub(crate) use config::{ListenerConfig, ListenerContext};
pub(crate) use connection::{
    CloseType, Connection, ConnectionInfo, Direction, DynamicHost, Fingerprints, PeerCertificate,
    TlsInfo, TransportProtocol, UpstreamSource, next_connection_id,
};
pub(crate) use manager::{Listener, Listeners};
