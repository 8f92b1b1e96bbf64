//! What names mean for one pod: the table that Pilot sends, with the short forms that its platform's services are known by.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proto::istio::networking::nds::v1::NameTable;

/// Declared by the platform: known by short names, too.
const PLATFORM: &str = "Kubernetes";

/// Names and addresses.
#[derive(Debug, Default)]
pub struct Table {
    /// Lower case, without the dot at the end.
    hosts: BTreeMap<String, Addresses>,
    /// By what follows `*.`.
    wildcards: BTreeMap<String, Addresses>,
    /// What a resolver appends first to a name that it takes for a short one.
    search: String,
}

/// A name's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For `A`.
    pub v4: Vec<Ipv4Addr>,
    /// For `AAAA`.
    pub v6: Vec<Ipv6Addr>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The name that has the addresses where it is another one: that of the question without the search domain.
    pub canonical: Option<&'a str>,
    /// Its addresses.
    pub addresses: &'a Addresses,
}

impl Table {
    /// The table for a pod of `namespace`; `domain` is that of its short names (`default.svc.cluster.local`), `search` what its
    /// resolver appends first.
    #[must_use]
    pub fn new(table: NameTable, namespace: &str, domain: &str, search: &str) -> Self {
        let mut built = Self {
            search: search.trim_matches('.').to_lowercase(),
            ..Self::default()
        };
        // `svc` of `default.svc.cluster.local`.
        let service_part = domain.split('.').nth(1).unwrap_or_default();
        let mut short = Vec::new();
        for (host, info) in table.table {
            let host = host.trim_end_matches('.').to_lowercase();
            let addresses = Addresses::parse(&info.ips);
            if let Some(suffix) = host.strip_prefix("*.") {
                built.wildcards.insert(suffix.to_owned(), addresses);
                continue;
            }
            if info.registry == PLATFORM && !info.shortname.is_empty() {
                let (name, owner) = (info.shortname.to_lowercase(), &info.namespace);
                short.push((format!("{name}.{owner}"), addresses.clone()));
                short.push((format!("{name}.{owner}.{service_part}"), addresses.clone()));
                if owner == namespace {
                    short.push((name, addresses.clone()));
                }
            }
            built.hosts.insert(host, addresses);
        }
        // Nobody's short form is in the way of a host that is called so.
        for (name, addresses) in short {
            built.hosts.entry(name).or_insert(addresses);
        }
        built
    }

    /// What is known of `name`, in lower case and without the dot at its end: the name itself, the name without the search
    /// domain (so that the resolver need not try all of them), the longest wildcard.
    #[must_use]
    pub fn find<'a>(&'a self, name: &'a str) -> Option<Found<'a>> {
        let found = |canonical, addresses| Found {
            canonical,
            addresses,
        };
        if let Some(addresses) = self.hosts.get(name) {
            return Some(found(None, addresses));
        }
        let stem = name
            .strip_suffix(&self.search)
            .filter(|_| !self.search.is_empty())
            .and_then(|stem| stem.strip_suffix('.'));
        if let Some(stem) = stem {
            let addresses = self.hosts.get(stem).or_else(|| self.wildcard(stem));
            if let Some(addresses) = addresses {
                return Some(found(Some(stem), addresses));
            }
        }
        self.wildcard(name).map(|addresses| found(None, addresses))
    }

    fn wildcard(&self, name: &str) -> Option<&Addresses> {
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(addresses) = self.wildcards.get(suffix) {
                return Some(addresses);
            }
            rest = suffix;
        }
        None
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.len() + self.wildcards.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Addresses {
    fn parse(texts: &[String]) -> Self {
        let mut addresses = Self::default();
        for text in texts {
            match text.parse() {
                Ok(IpAddr::V4(address)) => addresses.v4.push(address),
                Ok(IpAddr::V6(address)) => addresses.v6.push(address),
                Err(_) => tracing::debug!(target: "dns", text, "it is no address"),
            }
        }
        addresses
    }
}

#[cfg(test)]
mod tests {
    use proto::istio::networking::nds::v1::name_table::NameInfo;

    use super::*;

    fn table() -> Table {
        let info = |ip: &str, service: Option<(&str, &str)>| NameInfo {
            ips: vec![ip.to_owned(), "fd00::1".to_owned()],
            registry: service.map_or("External", |_| PLATFORM).to_owned(),
            shortname: service.map_or("", |(name, _)| name).to_owned(),
            namespace: service.map_or("", |(_, namespace)| namespace).to_owned(),
        };
        let entries = [
            (
                "reviews.default.svc.cluster.local",
                info("10.0.0.1", Some(("reviews", "default"))),
            ),
            (
                "web.other.svc.cluster.local",
                info("10.0.0.2", Some(("web", "other"))),
            ),
            ("api.example.com", info("240.240.0.1", None)),
            ("*.example.com", info("240.240.0.2", None)),
            ("*.deep.example.com", info("240.240.0.3", None)),
            // A host that is called like a service's short form.
            ("web.other", info("240.240.0.4", None)),
        ];
        let table = entries.map(|(host, info)| (host.to_owned(), info)).into();
        let domain = "default.svc.cluster.local";
        Table::new(NameTable { table }, "default", domain, domain)
    }

    #[test]
    fn names_of_the_mesh_are_found_in_each_of_their_forms() {
        let table = table();
        for (name, address, canonical) in [
            ("reviews.default.svc.cluster.local", "10.0.0.1", None),
            ("reviews.default.svc", "10.0.0.1", None),
            ("reviews.default", "10.0.0.1", None),
            ("reviews", "10.0.0.1", None),
            (
                "reviews.default.default.svc.cluster.local",
                "10.0.0.1",
                Some("reviews.default"),
            ),
            ("web.other.svc", "10.0.0.2", None),
            ("web.other", "240.240.0.4", None),
            ("api.example.com", "240.240.0.1", None),
            (
                "api.example.com.default.svc.cluster.local",
                "240.240.0.1",
                Some("api.example.com"),
            ),
            ("www.example.com", "240.240.0.2", None),
            ("a.b.example.com", "240.240.0.2", None),
            ("a.deep.example.com", "240.240.0.3", None),
            (
                "www.example.com.default.svc.cluster.local",
                "240.240.0.2",
                Some("www.example.com"),
            ),
        ] {
            let found = table.find(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(found.addresses.v4[0].to_string(), address, "{name}");
            assert_eq!(found.addresses.v6[0].to_string(), "fd00::1", "{name}");
            assert_eq!(found.canonical, canonical, "{name}");
        }
        for name in [
            "web",
            "example.com",
            "com",
            "",
            "default.svc.cluster.local",
            "nobody.default",
        ] {
            assert_eq!(table.find(name), None, "{name}");
        }
    }
}
