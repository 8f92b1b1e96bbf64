//! A service of the mesh: a host with ports, wherever it was declared.

use std::collections::BTreeMap;

pub use proto_mesh::protocol::Protocol;
use proto_mesh::visibility::Visibility;

use super::Proxy;

/// What tells services apart: the same host may be declared in several namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The host.
    pub host: String,
    /// Where it was declared.
    pub namespace: String,
}

/// How a service's endpoints are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The control plane knows them.
    Static,
    /// The proxy resolves names, each address an endpoint.
    Dns,
    /// The proxy resolves one name and uses one address at a time.
    DnsRoundRobin,
    /// The connection's original destination is the endpoint.
    Passthrough,
    /// The proxy resolves the name that the request is for.
    DynamicDns,
}

/// Where a service was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registry {
    /// A platform's service (Kubernetes), by way of Galley.
    Kubernetes,
    /// A user's ServiceEntry.
    ServiceEntry,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, unique in the service.
    pub name: String,
    /// The number that clients use.
    pub number: u32,
    /// What is spoken; [`Protocol::Unsupported`] means "look at the bytes".
    pub protocol: Protocol,
    /// The workload's port where it is not in the endpoint; 0 if not given.
    pub target_port: u32,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Fully qualified, or a wildcard.
    pub host: String,
    /// Where it was declared.
    pub namespace: String,
    /// The short name.
    pub name: String,
    /// Virtual addresses: IPs or CIDRs. Empty: none.
    pub addresses: Vec<String>,
    /// Sorted by number.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Outside of the mesh: no mutual TLS by itself.
    pub is_external: bool,
    /// Who may see it.
    pub visibility: Visibility,
    /// Seconds since 1970; the oldest wins conflicts.
    pub created: i64,
    /// The declaring object's labels.
    pub labels: BTreeMap<String, String>,
    /// Who declared it.
    pub registry: Registry,
    /// SANs to expect beside those of the endpoints.
    pub subject_alt_names: Vec<String>,
    /// An address that the mesh has given it for clients that resolve its name through their proxy.
    pub auto_address: Option<String>,
}

impl Service {
    /// The service's identity.
    #[must_use]
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            host: self.host.clone(),
            namespace: self.namespace.clone(),
        }
    }

    /// The port with this number.
    #[must_use]
    pub fn port(&self, number: u32) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// A platform's service without a virtual address: clients connect to pods.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.registry == Registry::Kubernetes && self.resolution == Resolution::Passthrough
    }

    /// The addresses under which `proxy` knows the service: its own, or the one that the mesh has given it.
    #[must_use]
    pub fn addresses_for(&self, proxy: &Proxy) -> Vec<&str> {
        if self.addresses.is_empty() && proxy.has_auto_addresses() {
            return self.auto_address.as_deref().into_iter().collect();
        }
        self.addresses.iter().map(String::as_str).collect()
    }

    /// Of the addresses for `proxy` those that are one IP each.
    #[must_use]
    pub fn ips_for(&self, proxy: &Proxy) -> Vec<&str> {
        let addresses = self.addresses_for(proxy).into_iter();
        addresses.filter_map(single_ip).collect()
    }

    /// Virtual addresses that are one IP each.
    pub fn ips(&self) -> impl Iterator<Item = &str> {
        self.addresses
            .iter()
            .filter_map(|address| single_ip(address))
    }
}

/// The IP in `address` if it is one: `/32` and `/128` are taken off, other prefixes are not single addresses.
#[must_use]
pub fn single_ip(address: &str) -> Option<&str> {
    let (ip, is_single) = match address.split_once('/') {
        Some((ip, "32")) => (ip, !ip.contains(':')),
        Some((ip, "128")) => (ip, ip.contains(':')),
        Some(_) => return None,
        None => (address, true),
    };
    (is_single && ip.parse::<std::net::IpAddr>().is_ok()).then_some(ip)
}
