//! TLS key logging, for those who must look into the traffic: off unless a context asks for it, and then only for the
//! connections between the addresses it names. Format: the one of `SSLKEYLOGFILE`.

use crate::{
    invalid::{Invalid, try_all},
    wire::prefix,
};
use ipnet::IpNet;
use parking_lot::Mutex;
use proto::envoy::extensions::transport_sockets::tls::v3::TlsKeyLog as Wire;
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    net::IpAddr,
    sync::Arc,
};

/// A checked `TlsKeyLog`.
pub(super) struct KeyLog {
    file: Arc<KeyLogFile>,
    local: Vec<IpNet>,
    remote: Vec<IpNet>,
}

/// The open file.
#[derive(Debug)]
struct KeyLogFile(Mutex<File>);

impl KeyLog {
    /// Checks `wire` and opens the file.
    pub(super) fn new(wire: &Wire) -> Result<Self, Invalid> {
        if wire.path.is_empty() {
            return Err(Invalid::new("it is needed").at("path"));
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&wire.path)
            .map_err(|error| Invalid::new(format!("{}: {error}", wire.path)).at("path"))?;
        Ok(Self {
            file: Arc::new(KeyLogFile(Mutex::new(file))),
            local: try_all("local_address_range", &wire.local_address_range, prefix)?,
            remote: try_all("remote_address_range", &wire.remote_address_range, prefix)?,
        })
    }

    /// Whether the keys of a connection between these addresses are logged.
    pub(super) fn wants(&self, local: Option<IpAddr>, remote: Option<IpAddr>) -> bool {
        let is_in = |ranges: &[IpNet], ip: Option<IpAddr>| {
            ranges.is_empty() || ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)))
        };
        is_in(&self.local, local) && is_in(&self.remote, remote)
    }

    /// What a TLS configuration writes to.
    pub(super) fn sink(&self) -> Arc<dyn rustls::KeyLog> {
        self.file.clone()
    }
}

impl rustls::KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let hex = super::certificate::hex;
        let line = format!("{label} {} {}\n", hex(client_random), hex(secret));
        if let Err(error) = self.0.lock().write_all(line.as_bytes()) {
            tracing::warn!(target: "connection", %error, "cannot write TLS keys");
        }
    }
}
