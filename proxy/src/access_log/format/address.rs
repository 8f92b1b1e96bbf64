//! Addresses: whose, and which part.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use crate::invalid::Invalid;
use crate::stream_info::StreamInfo;
use crate::upstream::HostAddress;

use super::operator::put;
use super::parse::alone;

/// Whose address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Address {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    DownstreamDirectLocal,
    /// The host's, connected or not.
    UpstreamHost,
    UpstreamRemote,
    UpstreamLocal,
}

/// Which part of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum AddressPart {
    /// Address and port.
    Whole,
    /// The address, or the network of so many bits that it is in.
    Ip(Option<u8>),
    Port,
    /// What only addresses inside Envoy have: nothing.
    EndpointId,
}

/// The operator of that name.
pub(super) fn parse(
    name: &str,
    argument: Option<&str>,
) -> Result<Option<(Address, AddressPart)>, Invalid> {
    let known = [
        ("_ADDRESS_WITHOUT_PORT", AddressPart::Ip(None)),
        ("_ADDRESS_ENDPOINT_ID", AddressPart::EndpointId),
        ("_PORT", AddressPart::Port),
        ("_ADDRESS", AddressPart::Whole),
        ("_HOST", AddressPart::Whole),
    ];
    let found = (known.iter()).find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, *part)));
    let Some((side, mut part)) = found else {
        return Ok(None);
    };
    let side = match side {
        "DOWNSTREAM_REMOTE" => Address::DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE" => Address::DownstreamDirectRemote,
        "DOWNSTREAM_LOCAL" => Address::DownstreamLocal,
        "DOWNSTREAM_DIRECT_LOCAL" => Address::DownstreamDirectLocal,
        "UPSTREAM" => Address::UpstreamHost,
        "UPSTREAM_REMOTE" => Address::UpstreamRemote,
        "UPSTREAM_LOCAL" => Address::UpstreamLocal,
        _ => return Ok(None),
    };
    if !matches!(part, AddressPart::Ip(_)) {
        alone(argument)?;
    }
    if let (AddressPart::Ip(bits), Some(length)) = (&mut part, argument) {
        let length = length.parse().ok().filter(|length| *length <= 128);
        let invalid = || Invalid::new("the length of a network is at most 32, of IPv6 128");
        *bits = Some(length.ok_or_else(invalid)?);
    }
    Ok(Some((side, part)))
}

impl Address {
    /// Appends a part of the address; false when there is none.
    pub(super) fn write(self, part: AddressPart, info: &StreamInfo, out: &mut String) -> bool {
        let address: Option<SocketAddr> = match self {
            Address::DownstreamRemote => Some(info.remote_address),
            Address::DownstreamDirectRemote => Some(info.connection.direct_remote_address),
            Address::DownstreamLocal => Some(info.connection.local_address),
            Address::DownstreamDirectLocal => Some(info.connection.direct_local_address),
            Address::UpstreamLocal => info.upstream.local_address(),
            Address::UpstreamRemote if info.upstream.connection.is_none() => None,
            Address::UpstreamHost | Address::UpstreamRemote => {
                match info.upstream.host.as_deref() {
                    None => None,
                    Some(host) => match (&host.address, part) {
                        (_, AddressPart::Whole) => return put(Some(&host.address_text), out),
                        (HostAddress::Socket(address), _) => Some(*address),
                        (HostAddress::Pipe(_), AddressPart::Ip(_)) => {
                            return put(Some(&host.address_text), out);
                        }
                        (HostAddress::Pipe(_), _) => None,
                    },
                }
            }
        };
        let Some(address) = address else {
            return false;
        };
        // Writing to a string cannot fail.
        let _ = match part {
            AddressPart::Whole => write!(out, "{address}"),
            AddressPart::Ip(None) => write!(out, "{}", address.ip()),
            AddressPart::Ip(Some(bits)) => write_network(address.ip(), bits, out),
            AddressPart::Port => write!(out, "{}", address.port()),
            AddressPart::EndpointId => Ok(()),
        };
        true
    }
}

/// QUIRK: a network of IPv4 with more bits than there are has all of them.
fn write_network(ip: IpAddr, bits: u8, out: &mut String) -> fmt::Result {
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let bits = u32::from(bits).min(most);
    let network: IpAddr = match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    };
    write!(out, "{network}/{bits}")
}
