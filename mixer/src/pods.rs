//! The pods of the cluster as `kubernetesenv` looks them up: by uid (`kubernetes://pod.namespace`) and by address. An index is
//! immutable; a new one takes its place when something changed. Everything that becomes an attribute is worked out here
//! once, so that a request only borrows it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::Value as Json;

/// All pods.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    all: Vec<Pod>,
    by_uid: HashMap<String, usize>,
    by_ip: HashMap<IpAddr, usize>,
}

/// A pod, in the words of attributes.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    /// `kubernetes://pod.namespace`.
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    /// Sorted.
    pub(crate) labels: Vec<(Cow<'static, str>, String)>,
    /// 4 or 16 bytes; empty while the pod has none.
    pub(crate) ip: Vec<u8>,
    /// 4 or 16 bytes; empty if it is not known.
    pub(crate) host_ip: Vec<u8>,
    pub(crate) workload: Workload,
    /// Containers and the ports that they declare.
    containers: Vec<(String, Vec<i64>)>,
}

/// What a pod is one of: its controller, or itself.
#[derive(Debug, Default)]
pub(crate) struct Workload {
    pub(crate) name: String,
    /// `istio://namespace/workloads/name`.
    pub(crate) uid: String,
    /// `kubernetes://apis/apps/v1/namespaces/namespace/deployments/name`.
    pub(crate) owner: String,
}

impl Pods {
    /// An index of pods in Kubernetes' JSON. Of two with one address the first counts, as in the 1.4 line.
    pub(crate) fn new<'j>(pods: impl Iterator<Item = &'j Json>) -> Self {
        let mut index = Self::default();
        for pod in pods.filter_map(Pod::read) {
            let position = index.all.len();
            if let Some(ip) = address_of(&pod.ip) {
                index.by_ip.entry(ip).or_insert(position);
            }
            index.by_uid.insert(pod.uid.clone(), position);
            index.all.push(pod);
        }
        index
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The pod of a uid, or of an address where no uid is told. QUIRK: a uid that is not known hides the address.
    pub(crate) fn find(&self, uid: &str, ip: Option<IpAddr>) -> Option<&Pod> {
        if uid.is_empty() {
            return self.at(ip?);
        }
        match self.by_uid.get(uid) {
            Some(position) => self.all.get(*position),
            None => self.at(uid.parse().ok()?),
        }
    }

    fn at(&self, ip: IpAddr) -> Option<&Pod> {
        self.by_ip
            .get(&ip.to_canonical())
            .and_then(|position| self.all.get(*position))
    }

    /// An address that a pod has, or none at all, as the bytes of an attribute.
    pub(crate) fn bytes_of(&self, ip: IpAddr) -> Option<&[u8]> {
        if ip.is_unspecified() {
            return Some(&[0, 0, 0, 0]);
        }
        self.at(ip).map(|pod| pod.ip.as_slice())
    }
}

impl Pod {
    fn read(pod: &Json) -> Option<Self> {
        let meta = &pod["metadata"];
        let (name, namespace) = (text(&meta["name"]), text(&meta["namespace"]));
        if name.is_empty() {
            return None;
        }
        let labels = meta["labels"].as_object().into_iter().flatten();
        let mut labels: Vec<_> = labels
            .map(|(key, value)| (Cow::Owned(key.clone()), text(value)))
            .collect();
        labels.sort_unstable();
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let ports = |container: &Json| {
            let ports = container["ports"].as_array().into_iter().flatten();
            ports
                .filter_map(|port| number(&port["containerPort"]))
                .collect()
        };
        Some(Self {
            uid: format!("kubernetes://{name}.{namespace}"),
            service_account: text(&pod["spec"]["serviceAccountName"]),
            ip: bytes(&pod["status"]["podIP"]),
            host_ip: bytes(&pod["status"]["hostIP"]),
            workload: Workload::of(meta, &name, &namespace),
            containers: containers
                .map(|container| (text(&container["name"]), ports(container)))
                .collect(),
            labels,
            name,
            namespace,
        })
    }

    /// The container that declares a port.
    pub(crate) fn container_with(&self, port: i64) -> Option<&str> {
        let mut containers = self.containers.iter();
        let found = containers.find(|(_, ports)| port > 0 && ports.contains(&port));
        found.map(|(name, _)| name.as_str())
    }
}

impl Workload {
    fn of(meta: &Json, pod: &str, namespace: &str) -> Self {
        let owners = meta["ownerReferences"].as_array().into_iter().flatten();
        let owner = owners
            .into_iter()
            .find(|owner| owner["controller"] == true)
            .map(|owner| lift(owner, &text(&meta["labels"]["pod-template-hash"])));
        let (name, owner) = match owner {
            Some((version, kind, name)) => {
                let plural = format!("{}s", kind.to_lowercase());
                let path = format!("apis/{version}/namespaces/{namespace}/{plural}/{name}");
                (name, path)
            }
            None => (
                pod.to_owned(),
                format!("api/v1/namespaces/{namespace}/pods/{pod}"),
            ),
        };
        Self {
            uid: format!("istio://{namespace}/workloads/{name}"),
            owner: format!("kubernetes://{owner}"),
            name,
        }
    }
}

/// An owner's version, kind and name. A ReplicaSet that a Deployment made carries the hash of its template in its name; then
/// it is the Deployment that counts.
fn lift(owner: &Json, hash: &str) -> (String, String, String) {
    let (kind, name) = (text(&owner["kind"]), text(&owner["name"]));
    let version = text(&owner["apiVersion"]);
    let deployment = name
        .strip_suffix(hash)
        .and_then(|name| name.strip_suffix('-'))
        .filter(|_| kind == "ReplicaSet" && !hash.is_empty());
    match deployment {
        Some(deployment) => (version, "Deployment".to_owned(), deployment.to_owned()),
        None => (version, kind, name),
    }
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A number, whether it came as JSON or through a `Struct`, which knows only floating-point numbers.
fn number(value: &Json) -> Option<i64> {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a port is far below the limit"
    )]
    value
        .as_i64()
        .or_else(|| value.as_f64().map(|number| number as i64))
}

fn bytes(value: &Json) -> Vec<u8> {
    match value.as_str().and_then(|text| text.parse::<IpAddr>().ok()) {
        Some(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(IpAddr::V6(ip)) => ip.octets().to_vec(),
        None => Vec::new(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|sixteen| IpAddr::from(sixteen).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pods() -> Pods {
        let pod = |name: &str, ip: &str, owner: Json| {
            json!({
                "metadata": {"name": name, "namespace": "shop", "ownerReferences": [owner],
                    "labels": {"version": "v1", "app": "web", "pod-template-hash": "5d8f"}},
                "spec": {"serviceAccountName": "web", "containers": [
                    {"name": "web", "ports": [{"containerPort": 9080.0}]}, {"name": "istio-proxy"}]},
                "status": {"podIP": ip, "hostIP": "10.0.0.1"},
            })
        };
        let owner = |kind: &str, name: &str, is_controller: bool| json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": is_controller});
        let all = [
            pod(
                "web-5d8f-x",
                "10.1.0.1",
                owner("ReplicaSet", "web-5d8f", true),
            ),
            pod("db-0", "10.1.0.2", owner("StatefulSet", "db", true)),
            pod("alone", "10.1.0.2", owner("Node", "n", false)),
            json!({"metadata": {}}),
        ];
        Pods::new(all.iter())
    }

    #[test]
    fn a_pod_is_found_by_uid_and_by_address() {
        let pods = pods();
        assert_eq!(pods.len(), 3);
        let by_uid = pods.find("kubernetes://web-5d8f-x.shop", None).unwrap();
        let ip = Some("::ffff:10.1.0.1".parse().unwrap());
        assert_eq!(pods.find("", ip).unwrap().uid, by_uid.uid);
        assert!(pods.find("kubernetes://gone.shop", ip).is_none());
        assert_eq!(pods.find("10.1.0.1", None).unwrap().uid, by_uid.uid);
        assert_eq!(by_uid.container_with(9080), Some("web"));
        assert_eq!(by_uid.container_with(0), None);
        assert_eq!(by_uid.labels[0], ("app".into(), "web".to_owned()));
    }

    #[test]
    fn the_workload_is_the_controller_or_the_pod_itself() {
        let pods = pods();
        let workload = |name: &str| {
            let uid = format!("kubernetes://{name}.shop");
            &pods.find(&uid, None).unwrap().workload
        };
        assert_eq!(workload("web-5d8f-x").name, "web");
        assert_eq!(
            workload("web-5d8f-x").owner,
            "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"
        );
        assert_eq!(workload("web-5d8f-x").uid, "istio://shop/workloads/web");
        assert!(workload("db-0").owner.ends_with("/statefulsets/db"));
        assert_eq!(workload("alone").name, "alone");
        assert_eq!(
            workload("alone").owner,
            "kubernetes://api/v1/namespaces/shop/pods/alone"
        );
    }

    #[test]
    fn of_two_pods_with_one_address_the_first_counts() {
        let found = pods();
        let found = found.find("", Some("10.1.0.2".parse().unwrap())).unwrap();
        assert_eq!(found.name, "db-0");
    }
}
