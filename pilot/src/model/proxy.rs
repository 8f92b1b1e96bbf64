//! The proxy that is configured: what its node says about it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use prost_types::{Struct, Value, value::Kind};
use proto::envoy::config::core::v3::Node;

/// Name under which a proxy announces that it has the Mixer filter.
const MIXER_EXTENSION: &str = "mixer";
/// Metadata key: where the workload listens for its proxy, if not on 127.0.0.1.
const APPLICATION_ADDRESS: &str = "APPLICATION_ADDRESS";
/// Every address.
pub const ANY_IPV4: &str = "0.0.0.0";
/// Every address, of IPv6.
pub const ANY_IPV6: &str = "::";

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyKind {
    /// Beside one workload.
    Sidecar,
    /// A gateway.
    Router,
}

/// How traffic gets to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterceptionMode {
    /// iptables REDIRECT.
    Redirect,
    /// iptables TPROXY.
    Tproxy,
    /// Not at all: the application speaks to the proxy by itself.
    None,
}

/// A node that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum InvalidNode {
    /// The first request carried none.
    #[error("the first request of a stream must carry the node")]
    Missing,
    /// Not four parts.
    #[error("node id {0:?} is not of the form type~ip~pod.namespace~dns-domain")]
    Id(String),
    /// Neither sidecar nor router.
    #[error("node type {0:?} is neither sidecar nor router")]
    Kind(String),
    /// No usable address.
    #[error("node {0:?} has no valid IP address")]
    Address(String),
}

/// One proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// The whole node id.
    pub node_id: String,
    /// `pod.namespace`.
    pub id: String,
    /// Sidecar or gateway.
    pub kind: ProxyKind,
    /// Addresses of the workload, at least one.
    pub ips: Vec<IpAddr>,
    /// The workload's namespace.
    pub namespace: String,
    /// `default.svc.cluster.local`.
    pub dns_domain: String,
    /// The workload's labels.
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`.
    pub locality: String,
    /// It has proved that it is of its namespace.
    pub is_authenticated: bool,
    /// It is a gateway that may read the Secrets of its namespace.
    pub may_read_secrets: bool,
    /// How it gets its traffic.
    pub interception: InterceptionMode,
    /// It has the Mixer filter.
    pub has_mixer: bool,
    /// Names of its extensions that Istio's proxies may lack or have: `mixer`, `istio.stats`, …
    pub extensions: Vec<String>,
    /// Everything the node said.
    pub metadata: Struct,
    /// `--serviceCluster`.
    pub cluster: String,
    /// Envoy's or Bireme's version, as announced.
    pub version: String,
}

impl Proxy {
    /// Text in the node's metadata.
    #[must_use]
    pub fn metadata_text(&self, key: &str) -> Option<&str> {
        text(&self.metadata, key)
    }

    /// The first address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ips[0]
    }

    /// False when the node says that it gets no certificate: listeners that wait for one would wait in vain.
    #[must_use]
    pub fn has_certificates(&self) -> bool {
        !matches!(self.metadata_text("SDS"), Some("0" | "false"))
    }

    /// Where the workload listens for its proxy: the loopback address unless the node says otherwise, as it does where pods share one
    /// network and have a loopback address each.
    #[must_use]
    pub fn application_address(&self) -> &str {
        self.metadata_text(APPLICATION_ADDRESS)
            .unwrap_or_else(|| self.loopback())
    }

    /// True when the workload's inbound ports can be bound without taking them from the workload itself.
    #[must_use]
    pub fn has_application_address(&self) -> bool {
        self.metadata_text(APPLICATION_ADDRESS).is_some()
    }

    /// What a listener for everybody binds: all addresses, but only the own one where pods share one network.
    #[must_use]
    pub fn any_address(&self) -> String {
        let ip = self.ip();
        if ip.is_loopback() && ip != IpAddr::V4(Ipv4Addr::LOCALHOST) {
            ip.to_string()
        } else {
            ANY_IPV4.to_owned()
        }
    }

    /// Which families the workload has addresses of: IPv4, IPv6.
    #[must_use]
    pub fn families(&self) -> (bool, bool) {
        let has_ipv4 = self.ips.iter().any(IpAddr::is_ipv4);
        (has_ipv4, self.ips.iter().any(IpAddr::is_ipv6))
    }

    /// True when the proxy listens on both families. Not every proxy can, so the node says it.
    #[must_use]
    pub fn is_dual_stack(&self) -> bool {
        self.families() == (true, true) && self.metadata_text("DUAL_STACK") == Some("true")
    }

    /// True when an endpoint there is of a family that the workload has; names are of any.
    #[must_use]
    pub fn can_reach(&self, address: &str) -> bool {
        let (has_ipv4, has_ipv6) = self.families();
        match address.parse() {
            Ok(IpAddr::V4(_)) => has_ipv4,
            Ok(IpAddr::V6(_)) => has_ipv6,
            Err(_) => true,
        }
    }

    /// The loopback address that the workload has for sure.
    #[must_use]
    pub fn loopback(&self) -> &'static str {
        if self.families().0 {
            "127.0.0.1"
        } else {
            "::1"
        }
    }

    /// True for gateways.
    #[must_use]
    pub fn is_router(&self) -> bool {
        self.kind == ProxyKind::Router
    }

    /// A label of the workload.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// The name under which the workload tells of itself: its label, its application, its workload.
    #[must_use]
    pub fn canonical_service(&self) -> String {
        self.label("service.istio.io/canonical-name")
            .or_else(|| self.label("app.kubernetes.io/name"))
            .or_else(|| self.label("app"))
            .or_else(|| self.metadata_text("WORKLOAD_NAME"))
            .unwrap_or_else(|| {
                self.id
                    .split_once('.')
                    .map_or(self.id.as_str(), |(name, _)| name)
            })
            .to_owned()
    }

    /// True when the proxy's agent answers DNS, and knows the addresses that the mesh has given to services without one.
    #[must_use]
    pub fn has_auto_addresses(&self) -> bool {
        let is_on = |key| self.metadata_text(key) == Some("true");
        is_on("DNS_CAPTURE") && self.metadata_text("DNS_AUTO_ALLOCATE") != Some("false")
    }

    /// A gRPC client that configures itself: it has no listeners but those it asks for.
    #[must_use]
    pub fn is_proxyless(&self) -> bool {
        self.metadata_text("GENERATOR") == Some("grpc")
    }

    /// True when the proxy announces the extension `name`.
    #[must_use]
    pub fn has_extension(&self, name: &str) -> bool {
        self.extensions.iter().any(|known| known == name)
    }

    /// `kubernetes://pod.namespace`.
    #[must_use]
    pub fn uid(&self) -> String {
        format!("kubernetes://{}", self.id)
    }

    /// True when `selector` chooses this workload, as an empty one does.
    #[must_use]
    pub fn is_selected_by(&self, selector: &BTreeMap<String, String>) -> bool {
        selector
            .iter()
            .all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

impl TryFrom<&Node> for Proxy {
    type Error = InvalidNode;

    fn try_from(node: &Node) -> Result<Self, InvalidNode> {
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, ip, id, dns_domain] = parts[..] else {
            return Err(InvalidNode::Id(node.id.clone()));
        };
        let kind = match kind {
            "sidecar" => ProxyKind::Sidecar,
            "router" | "ingress" => ProxyKind::Router,
            other => return Err(InvalidNode::Kind(other.to_owned())),
        };
        let metadata = node.metadata.clone().unwrap_or_default();
        let mut ips: Vec<IpAddr> = text(&metadata, "INSTANCE_IPS")
            .unwrap_or_default()
            .split(',')
            .filter_map(|ip| ip.trim().parse().ok())
            .collect();
        if ips.is_empty() {
            ips.extend(ip.parse::<IpAddr>().ok());
        }
        if ips.is_empty() {
            return Err(InvalidNode::Address(node.id.clone()));
        }
        let namespace = text(&metadata, "NAMESPACE")
            .or_else(|| text(&metadata, "CONFIG_NAMESPACE"))
            .or_else(|| id.split_once('.').map(|(_, namespace)| namespace))
            .or_else(|| dns_domain.split('.').next())
            .unwrap_or_default()
            .to_owned();
        let interception = match text(&metadata, "INTERCEPTION_MODE") {
            Some("NONE") => InterceptionMode::None,
            Some("TPROXY") => InterceptionMode::Tproxy,
            _ => InterceptionMode::Redirect,
        };
        Ok(Proxy {
            is_authenticated: false,
            may_read_secrets: false,
            node_id: node.id.clone(),
            id: id.to_owned(),
            kind,
            ips,
            namespace,
            dns_domain: dns_domain.to_owned(),
            labels: labels(&metadata),
            locality: locality(node, &metadata),
            interception,
            has_mixer: node
                .extensions
                .iter()
                .any(|extension| extension.name == MIXER_EXTENSION),
            extensions: node
                .extensions
                .iter()
                .filter(|extension| !extension.name.starts_with("envoy."))
                .map(|extension| extension.name.clone())
                .collect(),
            cluster: node.cluster.clone(),
            version: version(node),
            metadata,
        })
    }
}

fn text<'a>(metadata: &'a Struct, key: &str) -> Option<&'a str> {
    match metadata.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn labels(metadata: &Struct) -> BTreeMap<String, String> {
    let Some(Value {
        kind: Some(Kind::StructValue(labels)),
    }) = metadata.fields.get("LABELS")
    else {
        return BTreeMap::new();
    };
    labels
        .fields
        .iter()
        .filter_map(|(key, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
            _ => None,
        })
        .collect()
}

fn locality(node: &Node, metadata: &Struct) -> String {
    let from_node = node.locality.as_ref().map(|locality| {
        let parts = [locality.region.as_str(), &locality.zone, &locality.sub_zone];
        parts.join("/").trim_end_matches('/').to_owned()
    });
    match from_node {
        Some(locality) if !locality.is_empty() => locality,
        _ => text(metadata, "istio-locality")
            .unwrap_or_default()
            .replace('.', "/"),
    }
}

fn version(node: &Node) -> String {
    use proto::envoy::config::core::v3::node::UserAgentVersionType;
    match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|version| {
                format!(
                    "{}.{}.{}",
                    version.major_number, version.minor_number, version.patch
                )
            })
            .unwrap_or_default(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Node {
        Node {
            id: id.to_owned(),
            ..Node::default()
        }
    }

    #[test]
    fn node_id_gives_kind_address_and_namespace() {
        let proxy =
            Proxy::try_from(&node("sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local")).unwrap();
        assert_eq!(proxy.kind, ProxyKind::Sidecar);
        assert_eq!(proxy.ip().to_string(), "10.0.0.1");
        assert_eq!(proxy.namespace, "shop");
        assert_eq!(proxy.uid(), "kubernetes://web-1.shop");
    }

    #[test]
    fn bad_node_ids_are_refused() {
        assert!(matches!(
            Proxy::try_from(&node("web-1")),
            Err(InvalidNode::Id(_))
        ));
        assert!(matches!(
            Proxy::try_from(&node("cache~10.0.0.1~a.b~c")),
            Err(InvalidNode::Kind(_))
        ));
        assert!(matches!(
            Proxy::try_from(&node("sidecar~nowhere~a.b~c")),
            Err(InvalidNode::Address(_))
        ));
    }
}
