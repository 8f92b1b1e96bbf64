//! Original source: upstream connections come from the client's own address.

use crate::listener::{ConnectionInfo, UpstreamSource};
use proto::envoy::extensions::filters::listener::original_src::v3::OriginalSrc as Wire;

/// A checked configuration.
pub(super) struct Options {
    keeps_port: bool,
    mark: u32,
}

impl From<&Wire> for Options {
    fn from(wire: &Wire) -> Self {
        Self {
            keeps_port: wire.bind_port,
            mark: wire.mark,
        }
    }
}

/// Notes the client's address for whoever connects.
pub(super) fn note(options: &Options, info: &mut ConnectionInfo) {
    let mut address = info.remote_address;
    if !options.keeps_port {
        address.set_port(0);
    }
    info.upstream_source = Some(UpstreamSource {
        address,
        mark: options.mark,
    });
}
