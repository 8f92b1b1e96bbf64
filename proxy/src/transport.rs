//! Transport sockets: plain or TLS, downstream and upstream.
//!
//! The streams are enums, not trait objects: a read costs one branch. TLS contexts follow SDS secrets: a new secret gives new
//! handshakes a new context and leaves living connections alone.

mod certificate;
mod downstream;
mod resolver;
mod secret;
mod tls_context;
mod upstream;
mod verify;

pub(crate) use certificate::CertificateDetails;
pub(crate) use downstream::{DownstreamStream, DownstreamTransport, Meter, RawStream};
pub(crate) use secret::{Secret, SecretSlot, SecretSlots};
pub(crate) use tls_context::AlpnFallback;
pub(crate) use upstream::{UpstreamSocket, UpstreamStream, UpstreamTransport};
