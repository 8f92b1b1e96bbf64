//! Original source: upstream connections come from the client's own address, on a port that the system chooses: as in Envoy
//! `bind_port` changes nothing.

use crate::listener::{ConnectionInfo, UpstreamSource};
use proto::envoy::extensions::filters::listener::original_src::v3::OriginalSrc as Wire;
use std::net::SocketAddr;

/// A checked configuration.
pub(super) struct Options {
    mark: u32,
}

impl From<&Wire> for Options {
    fn from(wire: &Wire) -> Self {
        Self { mark: wire.mark }
    }
}

/// Notes the client's address for whoever connects.
pub(super) fn note(options: &Options, info: &mut ConnectionInfo) {
    info.upstream_source = Some(UpstreamSource {
        address: SocketAddr::new(info.remote_address.ip(), 0),
        mark: options.mark,
    });
}
