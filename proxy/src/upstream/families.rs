//! Happy eyeballs: in which order the addresses of a host are tried.

use crate::invalid::Invalid;
use proto::envoy::config::cluster::v3::{
    Cluster as Wire, upstream_connection_options::FirstAddressFamilyVersion,
};
use std::net::SocketAddr;

/// The address families in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families {
    /// The family that comes first; the first address's, if none is named.
    is_ipv4_first: Option<bool>,
    /// So many of it come before one of the other.
    count: usize,
}

impl Families {
    /// What a cluster says.
    pub(super) fn of(wire: &Wire) -> Result<Self, Invalid> {
        let options = wire.upstream_connection_options.as_ref();
        let Some(config) = options.and_then(|options| options.happy_eyeballs_config.as_ref())
        else {
            return Ok(Self {
                is_ipv4_first: None,
                count: 1,
            });
        };
        let count = config.first_address_family_count.unwrap_or(1);
        if count == 0 {
            return Err(Invalid::new("it must be at least 1")
                .at("happy_eyeballs_config.first_address_family_count"));
        }
        Ok(Self {
            is_ipv4_first: match config.first_address_family_version() {
                FirstAddressFamilyVersion::Default
                | FirstAddressFamilyVersion::Pipe
                | FirstAddressFamilyVersion::Internal => None,
                FirstAddressFamilyVersion::V4 => Some(true),
                FirstAddressFamilyVersion::V6 => Some(false),
            },
            count: count as usize,
        })
    }

    /// The addresses in the order in which they are tried.
    pub(super) fn interleave(self, first: SocketAddr, more: &[SocketAddr]) -> Vec<SocketAddr> {
        let is_ipv4_first = self.is_ipv4_first.unwrap_or(first.is_ipv4());
        let all = std::iter::once(first).chain(more.iter().copied());
        let (own, other): (Vec<_>, Vec<_>) =
            all.partition(|address| address.is_ipv4() == is_ipv4_first);
        let mut order = Vec::with_capacity(own.len() + other.len());
        let (mut own, mut other) = (own.into_iter(), other.into_iter());
        loop {
            let before = order.len();
            order.extend(own.by_ref().take(self.count));
            order.extend(other.next());
            if order.len() == before {
                return order;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families(config: &str) -> Result<Families, Invalid> {
        let text = format!("upstream_connection_options: {{{config}}}");
        Families::of(&proto::yaml::from_str(&text).unwrap())
    }

    #[test]
    fn families_take_turns() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (a, b, c) = (
            address("10.0.0.1:1"),
            address("10.0.0.2:1"),
            address("[::1]:1"),
        );
        let usual = families("").unwrap();
        assert_eq!(usual.interleave(a, &[b, c]), [a, c, b]);
        assert_eq!(usual.interleave(c, &[a, b]), [c, a, b]);
        let config = "happy_eyeballs_config: {first_address_family_version: V4, first_address_family_count: 2}";
        let preferred = families(config).unwrap();
        assert_eq!(preferred.interleave(c, &[a, b]), [a, b, c]);
        assert_eq!(preferred.interleave(c, &[]), [c]);
        let config = "happy_eyeballs_config: {first_address_family_version: V6}";
        let preferred = families(config).unwrap();
        assert_eq!(preferred.interleave(a, &[b, c]), [c, a, b]);
        assert!(families("happy_eyeballs_config: {first_address_family_count: 0}").is_err());
    }
}
