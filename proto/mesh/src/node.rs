//! Proxies as they introduce themselves on xDS: the node's id and its metadata.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use prost_types::Struct;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::json_struct;

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeType {
    /// Beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

impl NodeType {
    /// As it stands in the node's id and in the agent's arguments.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

impl fmt::Display for NodeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node's id: `sidecar~10.0.0.1~reviews-v1.bookinfo~bookinfo.svc.cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// What the proxy is for.
    pub node_type: NodeType,
    /// The workload's first address.
    pub address: IpAddr,
    /// `pod.namespace`, unique in the mesh.
    pub id: String,
    /// The DNS domain of short names, `namespace.svc.cluster.local`.
    pub dns_domain: String,
}

/// A text that is no node's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNodeId {
    /// There are not four parts.
    #[error("node id {0:?} does not have the form type~address~pod.namespace~domain")]
    Form(String),
    /// Nobody knows such proxies.
    #[error("node type {0:?} is neither sidecar nor router")]
    Type(String),
    /// The second part is no address.
    #[error("{0:?} is no IP address")]
    Address(String),
}

impl NodeId {
    /// The namespace in the id; empty when the id has none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.id
            .rsplit_once('.')
            .map_or("", |(_, namespace)| namespace)
    }

    /// The pod's name in the id.
    #[must_use]
    pub fn pod(&self) -> &str {
        self.id
            .rsplit_once('.')
            .map_or(self.id.as_str(), |(pod, _)| pod)
    }

    /// The cluster's domain: what follows `namespace.svc.`.
    #[must_use]
    pub fn cluster_domain(&self) -> &str {
        self.dns_domain
            .split_once(".svc.")
            .map_or(self.dns_domain.as_str(), |(_, domain)| domain)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}~{}~{}~{}",
            self.node_type, self.address, self.id, self.dns_domain
        )
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split('~').collect();
        let [node_type, address, id, dns_domain] = parts[..] else {
            return Err(InvalidNodeId::Form(text.to_owned()));
        };
        let node_type = match node_type {
            "sidecar" => NodeType::Sidecar,
            "router" | "ingress" => NodeType::Router,
            other => return Err(InvalidNodeId::Type(other.to_owned())),
        };
        let address = address
            .parse()
            .map_err(|_| InvalidNodeId::Address(address.to_owned()))?;
        Ok(Self {
            node_type,
            address,
            id: id.to_owned(),
            dns_domain: dns_domain.to_owned(),
        })
    }
}

/// How a gateway treats connections whose SNI names a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouterMode {
    /// As any other.
    #[default]
    Standard,
    /// It passes them on to that cluster.
    SniDnat,
}

/// What a proxy says of itself beside its id. Whatever it says under other names is in `rest`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "SCREAMING_SNAKE_CASE")]
pub struct NodeMetadata {
    /// Version of the proxy, `1.4.0`.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub istio_version: String,
    /// The workload's labels.
    #[serde(deserialize_with = "texts", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The workload's addresses, separated by commas.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub instance_ips: String,
    /// The namespace whose configuration applies; see [`NodeMetadata::config_namespace`].
    #[serde(
        rename = "CONFIG_NAMESPACE",
        deserialize_with = "text",
        skip_serializing_if = "String::is_empty"
    )]
    pub configured_namespace: String,
    /// The workload's namespace.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// REDIRECT, TPROXY or NONE.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub interception_mode: String,
    /// The workload's service account.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// `standard` or `sni-dnat`; see [`NodeMetadata::router_mode`].
    #[serde(
        rename = "ROUTER_MODE",
        deserialize_with = "text",
        skip_serializing_if = "String::is_empty"
    )]
    pub router_mode_name: String,
    /// The mesh.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub mesh_id: String,
    /// The cluster.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub cluster_id: String,
    /// The network that the workload is in.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// The networks, separated by commas, whose endpoints the proxy wants to see; empty means all.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub requested_network_view: String,
    /// The pod's name.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The workload (deployment) that the pod belongs to.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub workload_name: String,
    /// `kubernetes://apis/…` of that workload.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The containers' ports, as JSON.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub pod_ports: String,
    /// Inbound ports that are captured: `*` or a list.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub include_inbound_ports: String,
    /// Idle timeout of connections, a Go duration.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub idle_timeout: String,
    /// `1` when HTTP/1.0 is accepted.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub http10: String,
    /// `1` when certificates come over SDS.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub sds: String,
    /// Where the token for SDS lies.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub sds_token_path: String,
    /// `1` when gateway certificates come over SDS.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub user_sds: String,
    /// Everything else, annotations of the pod among it.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl NodeMetadata {
    /// Reads the metadata of an xDS node. Values of an unexpected type are left out: one odd entry must not keep a proxy away.
    #[must_use]
    pub fn from_struct(fields: &Struct) -> Self {
        let value = Value::Object(json_struct::to_json(fields));
        serde_json::from_value(value).unwrap_or_default()
    }

    /// The metadata as an xDS node carries it.
    #[must_use]
    pub fn to_struct(&self) -> Struct {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => json_struct::from_json(fields),
            _ => Struct::default(),
        }
    }

    /// The namespace whose configuration applies to the proxy.
    #[must_use]
    pub fn config_namespace(&self) -> &str {
        if self.configured_namespace.is_empty() {
            &self.namespace
        } else {
            &self.configured_namespace
        }
    }

    /// How a gateway treats SNI.
    #[must_use]
    pub fn router_mode(&self) -> RouterMode {
        if self.router_mode_name.eq_ignore_ascii_case("sni-dnat") {
            RouterMode::SniDnat
        } else {
            RouterMode::Standard
        }
    }

    /// The workload's addresses; what is no address is left out.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.instance_ips
            .split(',')
            .filter_map(|text| text.trim().parse().ok())
            .collect()
    }

    /// A text under another name, such as a pod's annotation.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.rest.get(key).and_then(Value::as_str)
    }
}

/// Takes a scalar as text; proxies write `1`, `"1"` and `true` as they like.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(scalar(&Value::deserialize(deserializer)?))
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Object(fields) => Ok(fields
            .iter()
            .map(|(key, value)| (key.clone(), scalar(value)))
            .collect()),
        _ => Ok(BTreeMap::new()),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Number(number) => number
            .as_f64()
            .filter(|number| number.fract() == 0.0)
            .map_or_else(|| number.to_string(), |number| format!("{number:.0}")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_has_four_parts() {
        let text = "sidecar~10.0.0.1~reviews-v1.bookinfo~bookinfo.svc.cluster.local";
        let id: NodeId = text.parse().unwrap();
        assert_eq!(
            (id.pod(), id.namespace(), id.cluster_domain()),
            ("reviews-v1", "bookinfo", "cluster.local")
        );
        assert_eq!(id.to_string(), text);
        assert_eq!(
            "a~b".parse::<NodeId>(),
            Err(InvalidNodeId::Form("a~b".into()))
        );
        assert_eq!(
            "x~1.1.1.1~a~b".parse::<NodeId>(),
            Err(InvalidNodeId::Type("x".into()))
        );
        assert_eq!(
            "router~x~a~b".parse::<NodeId>(),
            Err(InvalidNodeId::Address("x".into()))
        );
    }

    #[test]
    fn metadata_is_read_leniently_and_written_back() {
        let wire = json_struct::from_json(
            json!({"NAMESPACE": "a", "LABELS": {"app": "x", "n": 1}, "HTTP10": 1, "SDS": true, "INSTANCE_IPS": "10.0.0.1,::1,x",
                   "ROUTER_MODE": "sni-dnat", "policy.istio.io/check": "disable", "OWNER": null})
            .as_object()
            .unwrap()
            .clone(),
        );
        let metadata = NodeMetadata::from_struct(&wire);
        assert_eq!(metadata.config_namespace(), "a");
        assert_eq!(metadata.labels["n"], "1");
        assert_eq!(
            (metadata.http10.as_str(), metadata.sds.as_str()),
            ("1", "true")
        );
        assert_eq!(metadata.addresses().len(), 2);
        assert_eq!(metadata.router_mode(), RouterMode::SniDnat);
        assert_eq!(metadata.get("policy.istio.io/check"), Some("disable"));
        assert_eq!(NodeMetadata::from_struct(&metadata.to_struct()), metadata);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".*") {
            let _ = text.parse::<NodeId>();
        }
    }
}
