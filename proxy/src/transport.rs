//! Transport sockets: plain or TLS, downstream and upstream.
//!
//! The streams are enums, not trait objects: a read costs one branch. TLS contexts follow SDS secrets: a new secret gives new
//! handshakes a new context and leaves living connections alone, but for those whose peer it declares revoked.

mod certificate;
mod client_hello;
mod downstream;
mod failure;
mod fingerprint;
mod key_log;
mod loopback;
mod proxy_header;
mod read_ahead;
mod resolver;
mod secret;
mod secret_files;
pub(crate) mod spare;
mod stats;
mod stream;
mod ticket;
mod tls_context;
mod upstream;
mod verify;

use crate::invalid::Invalid;
use proto::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
use proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;

pub(crate) use certificate::{
    CertificateDetails, details as certificate_details, hex, url_encoded_pem,
};
pub(crate) use client_hello::{ClientHello, HelloReader, Seen};
pub(crate) use downstream::{
    ByteTotals, DownstreamStream, DownstreamTransport, HandshakeNotes, Meter, Tap,
};
pub(crate) use failure::{Failure, Reason};
pub(crate) use fingerprint::{ja3, ja4};
pub(crate) use loopback::unpace;
pub(crate) use proxy_header::ClientAddresses;
pub(crate) use read_ahead::ReadAhead;
pub(crate) use secret::{Secret, SecretSlot, SecretSlots, Validation};
pub(crate) use stats::TlsStats;
pub(crate) use stream::{Count, RawStream};
pub(crate) use tls_context::AlpnFallback;
pub(crate) use upstream::{TlsPeer, UpstreamStream, UpstreamTransport};

/// The configuration of a transport socket; `None` when it is raw.
fn typed_config(wire: Option<&TransportSocket>) -> Result<Option<&prost_types::Any>, Invalid> {
    let Some(wire) = wire else {
        return Ok(None);
    };
    match &wire.config_type {
        Some(ConfigType::TypedConfig(any)) if proto::any::is::<RawBuffer>(any) => Ok(None),
        Some(ConfigType::TypedConfig(any)) => Ok(Some(any)),
        None if wire.name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(Invalid::new("a typed_config is needed").at("typed_config")),
    }
}
