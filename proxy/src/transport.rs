//! Transport sockets: plain or TLS, downstream and upstream.
//!
//! The streams are enums, not trait objects: a read costs one branch. TLS contexts follow SDS secrets: a new secret gives new
//! handshakes a new context and leaves living connections alone, but for those whose peer it declares revoked.

mod certificate;
mod downstream;
mod key_log;
mod resolver;
mod revocation;
mod secret;
mod secret_files;
mod stats;
mod stream;
mod ticket;
mod tls_context;
mod upstream;
mod verify;

pub(crate) use certificate::{CertificateDetails, url_encoded_pem};
pub(crate) use downstream::{DownstreamStream, DownstreamTransport, Meter, Tap};
pub(crate) use secret::{Secret, SecretSlot, SecretSlots};
pub(crate) use stats::TlsStats;
pub(crate) use stream::RawStream;
pub(crate) use tls_context::AlpnFallback;
pub(crate) use upstream::{TlsPeer, UpstreamStream, UpstreamTransport};
