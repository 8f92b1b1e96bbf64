//! The names that Istio gives to clusters and that other tools parse: `outbound|9080|v1|reviews.default.svc.cluster.local`
//! and its SNI form `outbound_.9080_.v1_.reviews.default.svc.cluster.local`.

use std::fmt;

/// Cluster without endpoints: connections end there.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Cluster that connects to the original destination.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// As [`PASSTHROUGH`], towards the application, from a source address that interception leaves alone.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughClusterIpv4";
/// Listener that takes all captured outbound connections.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// Listener that takes all captured inbound connections.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// Listener and route configuration of the explicit HTTP proxy port.
pub const HTTP_PROXY: &str = "http_proxy";

/// Which way the traffic of a cluster or listener goes, as seen from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the workload beside the proxy.
    Inbound,
    /// Away from it.
    Outbound,
}

impl Direction {
    /// As it stands in names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// A cluster's name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName {
    /// First part.
    pub direction: Direction,
    /// The service port.
    pub port: u32,
    /// The subset (outbound) or the port's name (inbound); may be empty.
    pub subset: String,
    /// The service's host.
    pub host: String,
}

impl ClusterName {
    /// The name of an outbound cluster.
    #[must_use]
    pub fn outbound(port: u32, subset: &str, host: &str) -> Self {
        ClusterName {
            direction: Direction::Outbound,
            port,
            subset: subset.to_owned(),
            host: host.to_owned(),
        }
    }

    /// The name of an inbound cluster.
    #[must_use]
    pub fn inbound(port: u32, port_name: &str, host: &str) -> Self {
        ClusterName {
            direction: Direction::Inbound,
            port,
            subset: port_name.to_owned(),
            host: host.to_owned(),
        }
    }

    /// Reads `direction|port|subset|host`, or the SNI form with `_.` between the parts.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let separator = if name.contains('|') { "|" } else { "_." };
        let mut parts = name.splitn(4, separator);
        let direction = match parts.next()? {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return None,
        };
        let port = parts.next()?.parse().ok()?;
        let subset = parts.next()?.to_owned();
        let host = parts.next()?.to_owned();
        Some(ClusterName {
            direction,
            port,
            subset,
            host,
        })
    }

    /// The host in a cluster's name, without taking the rest apart.
    #[must_use]
    pub fn host_of(name: &str) -> Option<&str> {
        let separator = if name.contains('|') { "|" } else { "_." };
        name.splitn(4, separator).nth(3)
    }

    /// The server name that clients of this cluster ask for.
    #[must_use]
    pub fn sni(&self) -> String {
        format!(
            "{}_.{}_.{}_.{}",
            self.direction.as_str(),
            self.port,
            self.subset,
            self.host
        )
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}|{}|{}|{}",
            self.direction.as_str(),
            self.port,
            self.subset,
            self.host
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_round_trip_in_both_forms() {
        let name = ClusterName::outbound(9080, "v1", "reviews.default.svc.cluster.local");
        assert_eq!(
            name.to_string(),
            "outbound|9080|v1|reviews.default.svc.cluster.local"
        );
        assert_eq!(
            name.sni(),
            "outbound_.9080_.v1_.reviews.default.svc.cluster.local"
        );
        assert_eq!(ClusterName::parse(&name.to_string()), Some(name.clone()));
        assert_eq!(ClusterName::parse(&name.sni()), Some(name));
        assert_eq!(
            ClusterName::outbound(80, "", "a.b").sni(),
            "outbound_.80_._.a.b"
        );
        assert_eq!(
            ClusterName::host_of("outbound_.80_._.a.b"),
            ClusterName::host_of("outbound|80||a.b")
        );
        assert_eq!(ClusterName::host_of("BlackHoleCluster"), None);
        assert_eq!(ClusterName::parse("BlackHoleCluster"), None);
    }
}
