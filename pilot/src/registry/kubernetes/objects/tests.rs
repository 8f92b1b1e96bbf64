#![allow(clippy::needless_pass_by_value, reason = "json! makes values")]

use prometheus::Opts;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

struct Cluster {
    objects: Objects,
    events: IntCounterVec,
}

/// What has been told: names of what is there, and of what is gone with a minus.
fn names<T>(change: &store::Change<Synthetic<T>>) -> String {
    let set = change.set.iter().map(|object| object.meta.name.clone());
    let gone = change.removed.iter().map(|name| format!("-{name}"));
    set.chain(gone).collect::<Vec<_>>().join(" ")
}

impl Cluster {
    /// A cluster in which nothing is, and everything has been listed.
    fn new() -> Self {
        let mut cluster = Cluster {
            objects: Objects::new(settings("td"), &[]),
            events: IntCounterVec::new(Opts::new("events", "Events."), &["type", "event"]).unwrap(),
        };
        cluster.take(Told::Service(Change::Listed));
        cluster.take(Told::EndpointSlice(Change::Listed));
        cluster.take(Told::Pod(Change::Listed));
        cluster.take(Told::Node(Change::Listed));
        assert!(cluster.objects.updates().is_empty());
        cluster.take(Told::Namespace(Change::Listed));
        cluster
    }

    fn take(&mut self, told: Told) {
        self.objects.take(told, &self.events);
    }

    fn service(&mut self, name: &str, spec: Value) {
        let meta = json!({"name": name, "namespace": "shop"});
        self.take(Told::Service(Change::Object(object(
            json!({"metadata": meta, "spec": spec}),
        ))));
    }

    fn slice(&mut self, service: &str, endpoints: Value) {
        let meta = json!({"name": format!("{service}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service}});
        let ports = json!([{"name": "http", "port": 8080}]);
        self.take(Told::EndpointSlice(Change::Object(object(
            json!({"metadata": meta, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}),
        ))));
    }

    fn pod(&mut self, name: &str, ip: &str, labels: Value) {
        self.take(Told::Pod(Change::Object(object(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"serviceAccountName": "seller", "nodeName": "n1", "containers": []},
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
        })))));
    }

    fn node(&mut self, zone: &str) {
        self.take(Told::Node(Change::Object(object(json!({"metadata": {"name": "n1", "labels": {
            "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": zone, "topology.istio.io/subzone": "rack1",
        }}})))));
    }

    fn namespace(&mut self, labels: Value) {
        self.take(Told::Namespace(Change::Object(object(
            json!({"metadata": {"name": "shop", "labels": labels}}),
        ))));
    }

    /// The services and pods that are told.
    fn told(&mut self) -> (String, String) {
        let updates = self.objects.updates();
        match &updates[..] {
            [Update::ClusterServices(services), Update::Pods(pods)] => {
                (names(services), names(pods))
            }
            [] => Default::default(),
            other => panic!("{other:?}"),
        }
    }

    /// The endpoints of the only service that is told.
    fn endpoints(&mut self) -> Vec<String> {
        let updates = self.objects.updates();
        let Some(Update::ClusterServices(services)) = updates.first() else {
            panic!("{updates:?}")
        };
        let [service] = &services.set[..] else {
            panic!("{services:?}")
        };
        let not_ready = service.meta.annotation(NOT_READY_ENDPOINTS).unwrap_or("-");
        let endpoints = service.spec.endpoints.iter().map(|endpoint| {
            let port = endpoint.ports.get("http").copied().unwrap_or(0);
            format!(
                "{}:{port} {} {}",
                endpoint.address, endpoint.service_account, endpoint.locality
            )
        });
        endpoints.chain([not_ready.to_owned()]).collect()
    }
}

fn settings(trust_domain: &str) -> Settings {
    Settings {
        domain: "cluster.local".to_owned(),
        trust_domain: trust_domain.to_owned(),
    }
}

fn object<K: DeserializeOwned>(value: Value) -> Box<K> {
    serde_json::from_value(value).unwrap()
}

fn http() -> Value {
    json!({"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80, "targetPort": "web"}]})
}

#[test]
fn services_are_joined_with_slices_pods_and_nodes() {
    let mut cluster = Cluster::new();
    cluster.service("reviews", http());
    cluster.node("eu-1");
    cluster.pod("reviews-v1", "10.1.0.1", json!({"version": "v1"}));
    cluster.slice(
        "reviews",
        json!([
            {"addresses": ["10.1.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "reviews-v1", "namespace": "shop"}},
            {"addresses": ["10.1.0.2"], "conditions": {"ready": false}},
        ]),
    );
    let told = [
        "10.1.0.1:8080 seller eu/eu-1/rack1",
        "10.1.0.2:8080  ",
        "10.1.0.2:8080",
    ];
    assert_eq!(cluster.endpoints(), told);
}

#[test]
fn a_change_is_told_of_what_it_touches_only() {
    let mut cluster = Cluster::new();
    cluster.service("reviews", http());
    cluster.service("ratings", http());
    cluster.slice("reviews", json!([{"addresses": ["10.1.0.1"]}]));
    cluster.slice("ratings", json!([{"addresses": ["10.1.0.2"]}]));
    cluster.pod("reviews-v1", "10.1.0.1", json!({}));
    assert_eq!(
        cluster.told(),
        ("ratings reviews".into(), "reviews-v1".into())
    );
    // The same again, as after a new list.
    cluster.pod("reviews-v1", "10.1.0.1", json!({}));
    cluster.slice("ratings", json!([{"addresses": ["10.1.0.2"]}]));
    assert_eq!(cluster.told(), Default::default());

    cluster.pod("reviews-v1", "10.1.0.1", json!({"app": "reviews"}));
    assert_eq!(cluster.told(), ("reviews".into(), "reviews-v1".into()));
    cluster.slice("ratings", json!([{"addresses": ["10.1.0.3"]}]));
    assert_eq!(cluster.told(), ("ratings".into(), String::new()));
    // Its address is of no service any more.
    cluster.pod("ratings-v1", "10.1.0.2", json!({}));
    assert_eq!(cluster.told(), (String::new(), "ratings-v1".into()));
    cluster.node("eu-2");
    assert_eq!(
        cluster.told(),
        ("ratings reviews".into(), "ratings-v1 reviews-v1".into())
    );
}

#[test]
fn what_a_new_list_does_not_tell_is_gone_and_a_failure_takes_nothing_away() {
    let mut cluster = Cluster::new();
    cluster.service("reviews", http());
    cluster.service("ratings", http());
    cluster.told();
    cluster.take(Told::Service(Change::Failed("away".into())));
    assert_eq!(cluster.told(), Default::default());
    cluster.take(Told::Service(Change::Listing));
    cluster.service("ratings", http());
    assert_eq!(cluster.told(), Default::default());
    cluster.take(Told::Service(Change::Listed));
    assert_eq!(cluster.told(), ("-shop/reviews".into(), String::new()));
}

#[test]
fn nodes_and_namespaces_may_be_forbidden() {
    let mut cluster = Cluster {
        objects: Objects::new(settings("td"), &[]),
        ..Cluster::new()
    };
    cluster.take(Told::Node(Change::Denied("no".into())));
    cluster.take(Told::Namespace(Change::Denied("no".into())));
    cluster.take(Told::EndpointSlice(Change::Listed));
    cluster.take(Told::Pod(Change::Listed));
    cluster.take(Told::Service(Change::Denied("not yet".into())));
    assert!(!cluster.objects.is_known());
    cluster.take(Told::Service(Change::Listed));
    assert!(cluster.objects.is_known());
}

#[test]
fn namespaces_are_followed_as_selectors_say() {
    let mut cluster = Cluster::new();
    cluster.namespace(json!({"mesh": "on"}));
    cluster.service("reviews", http());
    assert_eq!(cluster.told().0, "reviews");
    let wanted = LabelSelector {
        match_labels: Labels::from([("mesh".to_owned(), "on".to_owned())]),
        ..LabelSelector::default()
    };
    cluster.objects.configure(settings("td"), &[wanted]);
    assert_eq!(cluster.told().0, "reviews");
    cluster.namespace(json!({"mesh": "off"}));
    assert_eq!(cluster.told().0, "-shop/reviews");
    cluster.namespace(json!({"mesh": "on"}));
    assert_eq!(cluster.told().0, "reviews");
}
