//! Address ranges.

use std::net::IpAddr;

use ipnet::IpNet;
use proto::envoy::config::core::v3::CidrRange;

use crate::invalid::Invalid;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr(IpNet);

impl TryFrom<&CidrRange> for Cidr {
    type Error = Invalid;

    fn try_from(range: &CidrRange) -> Result<Self, Invalid> {
        let address: IpAddr = range.address_prefix.parse().map_err(|_| {
            Invalid::new(format!("'{}' is not an IP address", range.address_prefix))
        })?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        // QUIRK: an absent length means 0, the whole family; a too long one is cut.
        let length = range.prefix_len.unwrap_or(0).min(widest);
        IpNet::new(address, u8::try_from(length).unwrap_or(u8::MAX))
            .map(|net| Cidr(net.trunc()))
            .map_err(|error| Invalid::new(error.to_string()))
    }
}

impl Cidr {
    /// True when `address` is in the range. An IPv4 address in IPv6 clothes counts as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4() {
        let cidr = Cidr::try_from(&CidrRange {
            address_prefix: "10.1.2.3".into(),
            prefix_len: Some(8),
        })
        .unwrap();
        assert!(cidr.contains("10.200.0.1".parse().unwrap()));
        assert!(cidr.contains("::ffff:10.0.0.1".parse().unwrap()));
        assert!(!cidr.contains("11.0.0.1".parse().unwrap()));
        assert!(!cidr.contains("::1".parse().unwrap()));
    }
}
