//! Which filter chain serves a connection, in Envoy's precedence: destination port, destination prefix, server name, transport
//! protocol, application protocol, directly connected source, source type, source prefix, source port.
//!
//! At every level the chains with the most specific criterion that fits go on; a level never goes back to a less specific one.

use super::FilterChain;
use crate::{
    invalid::{At as _, Invalid, try_all},
    listener::{ConnectionInfo, TransportProtocol},
    wire::prefix,
};
use ipnet::IpNet;
use proto::envoy::config::listener::v3::{
    FilterChainMatch as Wire, filter_chain_match::ConnectionSourceType,
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// The chains of a listener.
#[derive(Default)]
pub(crate) struct FilterChains {
    chains: Vec<(Criteria, Arc<FilterChain>)>,
    by_port: HashMap<u16, Vec<usize>>,
    any_port: Vec<usize>,
    default: Option<Arc<FilterChain>>,
}

#[derive(Debug, Default)]
struct Criteria {
    port: Option<u16>,
    destinations: Vec<IpNet>,
    server_names: Vec<ServerName>,
    transport: Option<TransportProtocol>,
    alpn: Vec<String>,
    direct_sources: Vec<IpNet>,
    source_type: SourceType,
    sources: Vec<IpNet>,
    source_ports: Vec<u16>,
}

#[derive(Debug)]
enum ServerName {
    Exact(String),
    /// `.example.com` for `*.example.com`.
    Suffix(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SourceType {
    #[default]
    Any,
    Local,
    External,
}

/// How well a criterion fits; `None` for not at all. A chain without the criterion fits least.
type Fit = Option<usize>;

impl TryFrom<&Wire> for Criteria {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        if !wire.address_suffix.is_empty() || wire.suffix_len.is_some() {
            return Err(Invalid::unsupported("address_suffix"));
        }
        let port = |value: u32| {
            u16::try_from(value).map_err(|_| Invalid::new(format!("{value} is not a port")))
        };
        let transport = match wire.transport_protocol.as_str() {
            "" => None,
            "raw_buffer" => Some(TransportProtocol::RawBuffer),
            "tls" => Some(TransportProtocol::Tls),
            other => {
                return Err(
                    Invalid::new(format!("{other:?} is not a transport protocol"))
                        .at("transport_protocol"),
                );
            }
        };
        Ok(Self {
            port: wire
                .destination_port
                .map(port)
                .transpose()
                .at("destination_port")?,
            destinations: try_all("prefix_ranges", &wire.prefix_ranges, prefix)?,
            server_names: try_all("server_names", &wire.server_names, |name| {
                ServerName::new(name)
            })?,
            transport,
            alpn: wire.application_protocols.clone(),
            direct_sources: try_all(
                "direct_source_prefix_ranges",
                &wire.direct_source_prefix_ranges,
                prefix,
            )?,
            source_type: match wire.source_type() {
                ConnectionSourceType::Any => SourceType::Any,
                ConnectionSourceType::SameIpOrLoopback => SourceType::Local,
                ConnectionSourceType::External => SourceType::External,
            },
            sources: try_all("source_prefix_ranges", &wire.source_prefix_ranges, prefix)?,
            source_ports: try_all("source_ports", &wire.source_ports, |value| port(*value))?,
        })
    }
}

impl ServerName {
    fn new(name: &str) -> Result<Self, Invalid> {
        match name.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') && !suffix.contains('*') => {
                Ok(Self::Suffix(suffix.to_ascii_lowercase()))
            }
            None if !name.contains('*') => Ok(Self::Exact(name.to_ascii_lowercase())),
            _ => Err(Invalid::new(format!(
                "partial wildcards are not supported in {name:?}"
            ))),
        }
    }
}

/// The best fit of several alternatives; none at all means that everything fits, least well.
fn best<T>(alternatives: &[T], fit: impl Fn(&T) -> Fit) -> Fit {
    if alternatives.is_empty() {
        Some(0)
    } else {
        alternatives.iter().filter_map(fit).max()
    }
}

fn prefix_fit(prefixes: &[IpNet], ip: IpAddr) -> Fit {
    best(prefixes, |prefix| {
        prefix
            .contains(&ip)
            .then(|| usize::from(prefix.prefix_len()) + 1)
    })
}

impl Criteria {
    fn server_name_fit(&self, name: Option<&str>) -> Fit {
        best(&self.server_names, |wanted| match (wanted, name) {
            (ServerName::Exact(exact), Some(name)) => (exact == name).then_some(usize::MAX),
            (ServerName::Suffix(suffix), Some(name)) => {
                name.ends_with(suffix.as_str()).then_some(suffix.len())
            }
            (_, None) => None,
        })
    }

    fn alpn_fit(&self, offered: &[Box<str>]) -> Fit {
        // The client's first protocol that any chain names wins.
        best(&self.alpn, |wanted| {
            offered
                .iter()
                .position(|one| **one == **wanted)
                .map(|index| usize::MAX - index)
        })
    }

    fn source_type_fit(&self, is_local: bool) -> Fit {
        match (self.source_type, is_local) {
            (SourceType::Any, _) => Some(0),
            (SourceType::Local, true) | (SourceType::External, false) => Some(1),
            (SourceType::Local, false) | (SourceType::External, true) => None,
        }
    }
}

impl FilterChains {
    /// Chains with their criteria, and the one for everything else.
    pub(crate) fn new(
        chains: Vec<Arc<FilterChain>>,
        default: Option<Arc<FilterChain>>,
    ) -> Result<Self, Invalid> {
        let empty = Wire::default();
        let mut all = Self {
            default,
            ..Self::default()
        };
        for (index, chain) in chains.into_iter().enumerate() {
            let at = format!("filter_chains[{index}].filter_chain_match");
            let wire = chain.wire.filter_chain_match.as_ref().unwrap_or(&empty);
            let same = |(_, other): &&(Criteria, Arc<FilterChain>)| {
                other.wire.filter_chain_match.as_ref().unwrap_or(&empty) == wire
            };
            if let Some((_, other)) = all.chains.iter().find(same) {
                return Err(Invalid::new(format!(
                    "filter chain {:?} has the same matching rules as {:?}",
                    chain.name(),
                    other.name()
                ))
                .at(at));
            }
            let criteria = Criteria::try_from(wire).at(at)?;
            match criteria.port {
                Some(port) => all.by_port.entry(port).or_default().push(index),
                None => all.any_port.push(index),
            }
            all.chains.push((criteria, chain));
        }
        Ok(all)
    }

    /// Every chain, the default one last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains
            .iter()
            .map(|(_, chain)| chain)
            .chain(&self.default)
    }

    /// The chain for a connection.
    pub(crate) fn find(&self, info: &ConnectionInfo) -> Option<&Arc<FilterChain>> {
        if let [(criteria, chain)] = self.chains.as_slice()
            && criteria.is_empty()
        {
            return Some(chain);
        }
        self.find_specific(info).or(self.default.as_ref())
    }

    fn find_specific(&self, info: &ConnectionInfo) -> Option<&Arc<FilterChain>> {
        let local = info.local_address.ip().to_canonical();
        let remote = info.remote_address.ip().to_canonical();
        let direct = info.direct_remote_address.ip().to_canonical();
        let is_local = remote == local || is_loopback(remote);
        let name = info.server_name.as_deref().map(str::to_ascii_lowercase);
        let candidates = self
            .by_port
            .get(&info.local_address.port())
            .unwrap_or(&self.any_port)
            .clone();
        let steps: [&dyn Fn(&Criteria) -> Fit; 8] = [
            &|criteria| prefix_fit(&criteria.destinations, local),
            &|criteria| criteria.server_name_fit(name.as_deref()),
            &|criteria| {
                criteria.transport.map_or(Some(0), |wanted| {
                    (wanted == info.transport_protocol).then_some(1)
                })
            },
            &|criteria| criteria.alpn_fit(&info.application_protocols),
            &|criteria| prefix_fit(&criteria.direct_sources, direct),
            &|criteria| criteria.source_type_fit(is_local),
            &|criteria| prefix_fit(&criteria.sources, remote),
            &|criteria| {
                best(&criteria.source_ports, |port| {
                    (*port == info.remote_address.port()).then_some(1)
                })
            },
        ];
        let left = steps
            .into_iter()
            .fold(candidates, |candidates, step| self.narrow(candidates, step));
        left.first().map(|index| &self.chains[*index].1)
    }

    fn narrow(&self, mut candidates: Vec<usize>, fit: &dyn Fn(&Criteria) -> Fit) -> Vec<usize> {
        let best = candidates
            .iter()
            .filter_map(|index| fit(&self.chains[*index].0))
            .max();
        candidates.retain(|index| best.is_some() && fit(&self.chains[*index].0) == best);
        candidates
    }
}

impl Criteria {
    fn is_empty(&self) -> bool {
        self.port.is_none()
            && self.destinations.is_empty()
            && self.server_names.is_empty()
            && self.transport.is_none()
            && self.alpn.is_empty()
            && self.direct_sources.is_empty()
            && self.source_type == SourceType::Any
            && self.sources.is_empty()
            && self.source_ports.is_empty()
    }
}

/// Envoy's notion: only 127.0.0.1 and ::1, not the whole block.
fn is_loopback(address: IpAddr) -> bool {
    address == IpAddr::V4(Ipv4Addr::LOCALHOST) || address == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

#[cfg(test)]
mod tests;
