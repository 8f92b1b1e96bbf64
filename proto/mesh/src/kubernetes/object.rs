//! Kubernetes' own objects, as far as the mesh reads them, under the names that they have there. What is left out is skipped
//! when an object is read: a pod's whole specification is a hundred times as much, and so is the code that reads it.
//!
//! As Kubernetes' own reading a field that is missing or null has its default.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use serde::{Deserialize, Deserializer, Serialize};

/// A kind's fields, each of which may be missing.
macro_rules! object {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
    )*};
}

/// What the API server calls a kind.
macro_rules! resource {
    ($($name:ident $group:literal $api_version:literal $plural:literal $scope:ident,)*) => {$(
        impl k8s_openapi::Resource for $name {
            const API_VERSION: &'static str = $api_version;
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($name);
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }

        impl k8s_openapi::Metadata for $name {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    )*};
}

resource! {
    Namespace "" "v1" "namespaces" ClusterResourceScope,
    Node "" "v1" "nodes" ClusterResourceScope,
    ServiceAccount "" "v1" "serviceaccounts" NamespaceResourceScope,
    Service "" "v1" "services" NamespaceResourceScope,
    Endpoints "" "v1" "endpoints" NamespaceResourceScope,
    EndpointSlice "discovery.k8s.io" "discovery.k8s.io/v1" "endpointslices" NamespaceResourceScope,
    Pod "" "v1" "pods" NamespaceResourceScope,
    Ingress "networking.k8s.io" "networking.k8s.io/v1" "ingresses" NamespaceResourceScope,
}

object! {
    /// A namespace.
    Namespace {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
    }

    /// A node.
    Node {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
        /// What it is.
        status: Option<NodeStatus>,
    }

    /// What a node is.
    NodeStatus {
        /// Its addresses, of all types.
        addresses: Option<Vec<NodeAddress>>,
    }

    /// An address of a node.
    NodeAddress {
        /// `ExternalIP`, `InternalIP`, `Hostname`, …
        #[serde(rename = "type", deserialize_with = "or_default")]
        type_: String,
        /// The address.
        #[serde(deserialize_with = "or_default")]
        address: String,
    }

    /// A service account.
    ServiceAccount {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
    }

    /// A service.
    Service {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
        /// What it is to be.
        spec: Option<ServiceSpec>,
        /// What it is.
        status: Option<ServiceStatus>,
    }

    /// What a service is.
    ServiceStatus {
        /// Where it is reached from outside.
        load_balancer: Option<LoadBalancerStatus>,
    }

    /// Where a service or an ingress is reached from outside.
    LoadBalancerStatus {
        /// Its addresses.
        ingress: Option<Vec<LoadBalancerIngress>>,
    }

    /// An address of a load balancer, one of the two.
    LoadBalancerIngress {
        /// IPv4 or IPv6.
        #[serde(skip_serializing_if = "Option::is_none")]
        ip: Option<String>,
        /// Its name.
        #[serde(skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
    }

    /// What a service is to be.
    ServiceSpec {
        /// `ClusterIP`, `ExternalName`, …
        #[serde(rename = "type")]
        type_: Option<String>,
        /// Its first address, or `None`.
        #[serde(rename = "clusterIP")]
        cluster_ip: Option<String>,
        /// All of its addresses.
        #[serde(rename = "clusterIPs")]
        cluster_ips: Option<Vec<String>>,
        /// What an `ExternalName` stands for.
        external_name: Option<String>,
        /// Further addresses that it is reached at from outside.
        #[serde(rename = "externalIPs")]
        external_ips: Option<Vec<String>>,
        /// Its ports.
        ports: Option<Vec<ServicePort>>,
        /// Endpoints that are not ready get traffic, too.
        publish_not_ready_addresses: Option<bool>,
    }

    /// A service's port.
    ServicePort {
        /// Its name; the only one may have none.
        name: Option<String>,
        /// Its number.
        #[serde(deserialize_with = "or_default")]
        port: i32,
        /// `TCP`, `UDP` or `SCTP`.
        protocol: Option<String>,
        /// What is spoken on it.
        app_protocol: Option<String>,
    }

    /// The endpoints of a service, all in one object.
    Endpoints {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
        /// Addresses that have the same ports.
        subsets: Option<Vec<EndpointSubset>>,
    }

    /// Addresses that have the same ports.
    EndpointSubset {
        /// Those that are ready.
        addresses: Option<Vec<EndpointAddress>>,
        /// Those that are not.
        not_ready_addresses: Option<Vec<EndpointAddress>>,
        /// Their ports.
        ports: Option<Vec<SubsetPort>>,
    }

    /// The address of an endpoint.
    EndpointAddress {
        /// IPv4 or IPv6.
        #[serde(deserialize_with = "or_default")]
        ip: String,
        /// Its name below the service's.
        hostname: Option<String>,
        /// Its node.
        node_name: Option<String>,
        /// Its pod.
        target_ref: Option<ObjectReference>,
    }

    /// A port of an [`EndpointSubset`].
    SubsetPort {
        /// As in the service.
        name: Option<String>,
        /// Its number.
        #[serde(deserialize_with = "or_default")]
        port: i32,
    }

    /// Names another object.
    ObjectReference {
        /// Its kind.
        kind: Option<String>,
        /// Its name.
        name: Option<String>,
        /// Its namespace.
        namespace: Option<String>,
    }

    /// Some of the endpoints of a service.
    EndpointSlice {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
        /// The endpoints.
        #[serde(deserialize_with = "or_default")]
        endpoints: Vec<Endpoint>,
        /// Their ports.
        ports: Option<Vec<EndpointPort>>,
    }

    /// An endpoint of an [`EndpointSlice`].
    Endpoint {
        /// Its addresses.
        #[serde(deserialize_with = "or_default")]
        addresses: Vec<String>,
        /// Its name below the service's.
        hostname: Option<String>,
        /// How it is.
        conditions: Option<EndpointConditions>,
        /// Its node.
        node_name: Option<String>,
        /// Its pod.
        target_ref: Option<ObjectReference>,
        /// Its zone.
        zone: Option<String>,
    }

    /// How an endpoint is.
    EndpointConditions {
        /// It may get traffic; not said: it may.
        ready: Option<bool>,
        /// It answers, whether it is on its way out or not.
        serving: Option<bool>,
        /// It is on its way out.
        terminating: Option<bool>,
    }

    /// A port of an [`EndpointSlice`].
    EndpointPort {
        /// As in the service.
        name: Option<String>,
        /// Its number.
        port: Option<i32>,
    }

    /// A pod.
    Pod {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
        /// What it is to be.
        spec: Option<PodSpec>,
        /// What it is.
        status: Option<PodStatus>,
    }

    /// What a pod is to be.
    PodSpec {
        /// What runs in it.
        #[serde(deserialize_with = "or_default")]
        containers: Vec<Container>,
        /// Who it is.
        service_account_name: Option<String>,
        /// Where it runs.
        node_name: Option<String>,
        /// Its name below the service's, if it is not the pod's.
        hostname: Option<String>,
        /// The headless service below which it has a name.
        subdomain: Option<String>,
        /// It has its node's network, and no address of its own.
        host_network: Option<bool>,
    }

    /// A container.
    Container {
        /// Its name.
        #[serde(deserialize_with = "or_default")]
        name: String,
        /// Ports that it says it has.
        ports: Option<Vec<ContainerPort>>,
    }

    /// A container's port.
    ContainerPort {
        /// Its number.
        #[serde(deserialize_with = "or_default")]
        container_port: i32,
    }

    /// What a pod is.
    PodStatus {
        /// Its conditions, `Ready` among them.
        conditions: Option<Vec<PodCondition>>,
        /// Its node's address.
        #[serde(rename = "hostIP")]
        host_ip: Option<String>,
        /// Its first address.
        #[serde(rename = "podIP")]
        pod_ip: Option<String>,
        /// All of its addresses.
        #[serde(rename = "podIPs")]
        pod_ips: Option<Vec<PodIp>>,
    }

    /// A condition of a pod.
    PodCondition {
        /// What it is about.
        #[serde(rename = "type", deserialize_with = "or_default")]
        type_: String,
        /// `True`, `False` or `Unknown`.
        #[serde(deserialize_with = "or_default")]
        status: String,
    }

    /// An address of a pod.
    PodIp {
        /// IPv4 or IPv6.
        #[serde(deserialize_with = "or_default")]
        ip: String,
    }

    /// What comes into the cluster.
    Ingress {
        /// Its metadata.
        #[serde(deserialize_with = "or_default")]
        metadata: ObjectMeta,
        /// What it is to be.
        spec: Option<IngressSpec>,
        /// What it is.
        status: Option<IngressStatus>,
    }

    /// What an ingress is.
    IngressStatus {
        /// Where it is reached from outside.
        load_balancer: Option<LoadBalancerStatus>,
    }

    /// What an ingress is to be.
    IngressSpec {
        /// Where goes what no rule takes.
        default_backend: Option<IngressBackend>,
        /// Whose it is.
        ingress_class_name: Option<String>,
        /// What goes where.
        rules: Option<Vec<IngressRule>>,
        /// Its certificates.
        tls: Option<Vec<IngressTls>>,
    }

    /// Where the requests for a host go.
    IngressRule {
        /// The host; none: every one.
        host: Option<String>,
        /// Its paths.
        http: Option<HttpIngressRuleValue>,
    }

    /// Where the paths of a host go.
    HttpIngressRuleValue {
        /// The paths.
        #[serde(deserialize_with = "or_default")]
        paths: Vec<HttpIngressPath>,
    }

    /// Where a path goes.
    HttpIngressPath {
        /// Where it goes.
        #[serde(deserialize_with = "or_default")]
        backend: IngressBackend,
        /// The path.
        path: Option<String>,
        /// `Exact`, `Prefix` or `ImplementationSpecific`.
        #[serde(deserialize_with = "or_default")]
        path_type: String,
    }

    /// What is behind an ingress.
    IngressBackend {
        /// A service.
        service: Option<IngressServiceBackend>,
    }

    /// A service behind an ingress.
    IngressServiceBackend {
        /// Its name.
        #[serde(deserialize_with = "or_default")]
        name: String,
        /// Its port.
        port: Option<ServiceBackendPort>,
    }

    /// A service's port, by one of the two.
    ServiceBackendPort {
        /// Its name.
        name: Option<String>,
        /// Its number.
        number: Option<i32>,
    }

    /// A certificate of an ingress.
    IngressTls {
        /// The hosts that it is for.
        hosts: Option<Vec<String>>,
        /// The secret that holds it.
        secret_name: Option<String>,
    }
}

/// Null is the default.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_or_null_has_its_default() {
        let slice: EndpointSlice =
            serde_json::from_value(json!({"metadata": {"name": "a"}, "endpoints": null})).unwrap();
        assert_eq!(slice.metadata.name.as_deref(), Some("a"));
        assert_eq!(slice.endpoints, []);
        let text = r#"{"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1}]}],
            "volumes": [{"name": "v"}], "hostNetwork": true}, "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}}"#;
        let pod: Pod = serde_json::from_str(text).unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!(spec.host_network, Some(true));
        assert_eq!(
            spec.containers[0].ports.as_ref().unwrap()[0].container_port,
            1
        );
        assert_eq!(pod.status.unwrap().pod_ip.as_deref(), Some("10.0.0.1"));
        let wrong = serde_json::from_value::<Service>(json!({"spec": {"ports": [{"port": "x"}]}}));
        assert!(wrong.is_err());
    }
}
