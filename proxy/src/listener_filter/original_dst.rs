//! Original destination: where a redirected connection (`iptables REDIRECT`) was going.

use crate::listener::ConnectionInfo;
use nix::sys::socket::{
    getsockopt,
    sockopt::{Ip6tOriginalDst, OriginalDst},
};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::TcpStream;

/// Restores the destination; a connection that was not redirected keeps the address it came to.
pub(super) fn restore(stream: &TcpStream, info: &mut ConnectionInfo) {
    let original = if info.local_address.is_ipv4() || is_mapped(info.local_address) {
        getsockopt(stream, OriginalDst).ok().map(|address| {
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            SocketAddr::from((ip, u16::from_be(address.sin_port)))
        })
    } else {
        getsockopt(stream, Ip6tOriginalDst).ok().map(|address| {
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            SocketAddr::from((ip, u16::from_be(address.sin6_port)))
        })
    };
    // Without connection tracking the system answers with an error: the local address is the destination then (TPROXY).
    if let Some(original) = original
        && original != info.local_address
    {
        info.local_address = original;
        info.is_local_restored = true;
    }
}

fn is_mapped(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(address) if address.ip().to_ipv4_mapped().is_some())
}
