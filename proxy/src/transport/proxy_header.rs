//! The PROXY protocol towards a host: who the client is, told before anything else goes over the connection.

use crate::invalid::Invalid;
use proto::envoy::config::core::v3::{ProxyProtocolConfig, proxy_protocol_config::Version};
use std::net::{IpAddr, SocketAddr};

/// What every header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A client, and where it connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientAddresses {
    /// The client.
    pub(crate) remote: SocketAddr,
    /// Where it connected to.
    pub(crate) local: SocketAddr,
}

/// Which header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyHeader {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl TryFrom<&ProxyProtocolConfig> for ProxyHeader {
    type Error = Invalid;

    fn try_from(wire: &ProxyProtocolConfig) -> Result<Self, Invalid> {
        if wire.pass_through_tlvs.is_some() {
            return Err(Invalid::unsupported("it").at("pass_through_tlvs"));
        }
        if !wire.added_tlvs.is_empty() {
            return Err(Invalid::unsupported("it").at("added_tlvs"));
        }
        Ok(match wire.version() {
            Version::V1 => Self::V1,
            Version::V2 => Self::V2,
        })
    }
}

impl ProxyHeader {
    /// The header for a client; without one the connection is our own.
    pub(super) fn bytes(self, client: Option<ClientAddresses>) -> Vec<u8> {
        match self {
            Self::V1 => v1(client).into_bytes(),
            Self::V2 => v2(client),
        }
    }
}

fn v1(client: Option<ClientAddresses>) -> String {
    let Some(ClientAddresses { remote, local }) = client else {
        return "PROXY UNKNOWN\r\n".to_owned();
    };
    let family = match (remote, local) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => "TCP4",
        (SocketAddr::V6(_), SocketAddr::V6(_)) => "TCP6",
        _ => return "PROXY UNKNOWN\r\n".to_owned(),
    };
    let (from, to) = (remote.ip(), local.ip());
    format!(
        "PROXY {family} {from} {to} {} {}\r\n",
        remote.port(),
        local.port()
    )
}

fn v2(client: Option<ClientAddresses>) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    let addresses = client.map(|client| (client.remote, client.local));
    let ports = |remote: SocketAddr, local: SocketAddr| {
        [remote.port().to_be_bytes(), local.port().to_be_bytes()].concat()
    };
    match addresses.map(|(remote, local)| (remote.ip(), local.ip(), ports(remote, local))) {
        Some((IpAddr::V4(from), IpAddr::V4(to), ports)) => {
            out.extend([0x21, 0x11, 0, 12]);
            out.extend(from.octets());
            out.extend(to.octets());
            out.extend(ports);
        }
        Some((IpAddr::V6(from), IpAddr::V6(to), ports)) => {
            out.extend([0x21, 0x21, 0, 36]);
            out.extend(from.octets());
            out.extend(to.octets());
            out.extend(ports);
        }
        // LOCAL: the connection is the proxy's own.
        _ => out.extend([0x20, 0, 0, 0]),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_who_the_client_is() {
        let client = |remote: &str, local: &str| {
            Some(ClientAddresses {
                remote: remote.parse().unwrap(),
                local: local.parse().unwrap(),
            })
        };
        let four = client("1.2.3.4:5", "6.7.8.9:10");
        let mixed = client("[::1]:5", "6.7.8.9:10");
        for (client, text, binary) in [
            (
                four,
                "PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n",
                &b"\x21\x11\0\x0c\x01\x02\x03\x04\x06\x07\x08\x09\0\x05\0\x0a"[..],
            ),
            (mixed, "PROXY UNKNOWN\r\n", b"\x20\0\0\0"),
            (None, "PROXY UNKNOWN\r\n", b"\x20\0\0\0"),
        ] {
            assert_eq!(ProxyHeader::V1.bytes(client), text.as_bytes());
            assert_eq!(ProxyHeader::V2.bytes(client), [SIGNATURE, binary].concat());
        }
        let six = ProxyHeader::V2.bytes(client("[::1]:5", "[::2]:10"));
        assert_eq!(six.len(), 16 + 36);
    }
}
