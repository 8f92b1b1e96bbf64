//! Services as Pilot gets them.

use super::*;
use crate::{
    event::{Key, Object},
    source::file::parse,
};
use proto::istio::networking::v1alpha3::{
    ServiceEntry,
    service_entry::{Location, Resolution},
};
use proto_mesh::kubernetes::{ENDPOINT_NAMES, NOT_READY_ENDPOINTS, SECOND_ADDRESSES};
use std::path::Path;

fn objects(yaml: &str) -> Objects {
    let file = parse(Path::new("test.yaml"), yaml);
    let objects = file.documents.into_iter().map(|document| {
        assert!(document.verdict.valid, "{:?}", document.verdict);
        (document.key.unwrap(), document.object.unwrap())
    });
    objects.collect::<BTreeMap<Key, Arc<Object>>>()
}

fn built(yaml: &str) -> Arc<Collection> {
    let settings = Settings {
        domain: "cluster.local".into(),
        trust_domain: "td".into(),
    };
    build_collection(&objects(yaml), &settings, &Dirty::All, None)
}

/// The entry; as Pilot does, it must find nothing wrong with it.
fn entry(collection: &Collection, name: &str) -> ServiceEntry {
    let resource = &collection.resources[name];
    let meta = proto_mesh::Metadata::from(resource.metadata.as_ref().unwrap());
    let entry = proto::any::unpack(resource.body.as_ref().unwrap()).unwrap();
    proto_mesh::Checked::new(meta, entry).unwrap().0.spec
}

const REVIEWS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop, labels: {app: reviews}, annotations: {networking.istio.io/exportTo: '.'}}
spec:
  clusterIP: 10.0.0.7
  ports:
  - {name: http, port: 9080, targetPort: 8080}
  - {name: metrics, port: 9090, appProtocol: grpc}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, namespace: shop, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints:
- addresses: [10.1.0.1]
  conditions: {ready: true}
  nodeName: n1
  targetRef: {kind: Pod, name: reviews-v1, namespace: shop}
- addresses: [10.1.0.2]
  conditions: {ready: false}
- addresses: [10.1.0.3]
  conditions: {ready: false, terminating: true}
ports: [{name: http, port: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-2, namespace: shop, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
ports: [{name: metrics, port: 9090}]
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v1, namespace: shop, labels: {app: reviews, version: v1}}
spec: {serviceAccountName: reviewer, containers: []}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1}}
";

#[test]
fn slices_pods_and_nodes_are_joined() {
    let collection = built(REVIEWS);
    let entry = entry(&collection, "shop/reviews");
    assert_eq!(entry.hosts, ["reviews.shop.svc.cluster.local"]);
    assert_eq!(entry.addresses, ["10.0.0.7"]);
    assert_eq!(entry.export_to, ["."]);
    assert_eq!(entry.resolution(), Resolution::Static);
    let protocols: Vec<_> = entry.ports.iter().map(|p| p.protocol.as_str()).collect();
    assert_eq!(protocols, ["HTTP", "GRPC"]);
    assert_eq!(entry.subject_alt_names, ["spiffe://td/ns/shop/sa/reviewer"]);
    let [first, second] = entry.endpoints.as_slice() else {
        panic!("{:?}", entry.endpoints)
    };
    assert_eq!(first.address, "10.1.0.1");
    assert_eq!(first.ports["http"], 8080);
    assert_eq!(first.ports["metrics"], 9090);
    assert_eq!(first.labels["version"], "v1");
    assert_eq!(first.locality, "eu/eu-1");
    assert_eq!(first.service_account, "reviewer");
    assert_eq!(second.address, "10.1.0.2");
    let metadata = collection.resources["shop/reviews"]
        .metadata
        .as_ref()
        .unwrap();
    assert_eq!(metadata.annotations[NOT_READY_ENDPOINTS], "10.1.0.2:8080");
    assert_eq!(metadata.labels["app"], "reviews");
}

#[test]
fn the_same_objects_give_the_same_collection() {
    let first = built(REVIEWS);
    assert_eq!(first.version, built(REVIEWS).version);
    let settings = Settings {
        domain: "cluster.local".into(),
        trust_domain: "td".into(),
    };
    let again = build_collection(&objects(REVIEWS), &settings, &Dirty::All, Some(&first));
    assert!(Arc::ptr_eq(&first, &again));
}

#[test]
fn headless_and_external_services_and_plain_endpoints() {
    let collection = built(
        r"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{port: 3306}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: db}
subsets: [{addresses: [{ip: 10.9.0.1}], notReadyAddresses: [{ip: 10.9.0.2}], ports: [{port: 33060}]}]
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {type: ExternalName, externalName: far.example.com, ports: [{name: https, port: 443}]}
",
    );
    let db = entry(&collection, "default/db");
    assert_eq!((db.resolution(), db.addresses.len()), (Resolution::None, 0));
    assert_eq!(db.ports[0].protocol, "TCP");
    assert_eq!(db.endpoints[0].ports[&db.ports[0].name], 33060);
    assert_eq!(db.endpoints.len(), 2);
    let far = entry(&collection, "default/far");
    assert_eq!(
        (far.resolution(), far.location()),
        (Resolution::Dns, Location::MeshExternal)
    );
    assert_eq!(far.endpoints[0].address, "far.example.com");
}

#[test]
fn what_is_behind_a_headless_service_has_a_name_below_it() {
    let pods = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: db-0}}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: other}}
- {addresses: [10.1.0.3], hostname: machine}
- {addresses: [10.1.0.4], targetRef: {kind: Pod, name: db-7f-x}}
ports: [{name: tcp, port: 3306}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-2, labels: {kubernetes.io/service-name: db}}
addressType: IPv6
endpoints: [{addresses: ['fd00::1'], targetRef: {kind: Pod, name: db-0}}]
ports: [{name: tcp, port: 3306}]
---
apiVersion: v1
kind: Pod
metadata: {name: db-0}
spec: {subdomain: db, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec: {hostname: other, subdomain: web, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: db-7f-x}
spec: {hostname: spare, subdomain: db, containers: []}
---
apiVersion: v1
kind: Service
metadata: {name: db}
";
    let told = |spec: &str, key: &str| {
        let collection = built(&format!("{pods}spec: {spec}"));
        let metadata = collection.resources["default/db"].metadata.as_ref();
        metadata.unwrap().annotations.get(key).cloned()
    };
    let names = |spec: &str| told(spec, ENDPOINT_NAMES);
    assert_eq!(
        names("{clusterIP: None, ports: [{name: tcp, port: 3306}]}").unwrap(),
        "10.1.0.1=db-0,10.1.0.3=machine,10.1.0.4=spare,fd00::1=db-0"
    );
    // Who has one address for all is asked for that.
    let shared = "{clusterIP: 10.0.0.9, ports: [{name: tcp, port: 3306}]}";
    assert_eq!(names(shared), None);
    // A pod with two addresses is one.
    let seconds = told(shared, SECOND_ADDRESSES);
    assert_eq!(seconds.as_deref(), Some("10.1.0.1=fd00::1"));
}

#[test]
fn a_change_touches_the_services_that_it_concerns_only() {
    let old = objects(&format!(
        "{REVIEWS}---\n{}",
        REVIEWS.replace("shop", "other")
    ));
    let touched = |kind: &str, name: &str| {
        let mut new = old.clone();
        let key = Key {
            collection: kind.into(),
            name: name.into(),
        };
        let gone = Objects::from([(key.clone(), new.remove(&key).unwrap())]);
        let none = Objects::new();
        match (Dirty::of(&gone, &none, &new), Dirty::of(&none, &gone, &old)) {
            (Dirty::Services(names), other) => {
                assert_eq!(other, Dirty::Services(names.clone()));
                names.into_iter().collect::<Vec<_>>().join(" ")
            }
            (Dirty::All, _) => "all".to_owned(),
        }
    };
    assert_eq!(touched("Service", "shop/reviews"), "shop/reviews");
    assert_eq!(touched("EndpointSlice", "shop/reviews-2"), "shop/reviews");
    // Its address is in the slices of both.
    assert_eq!(
        touched("Pod", "shop/reviews-v1"),
        "other/reviews shop/reviews"
    );
    assert_eq!(touched("Node", "n1"), "all");
    assert_eq!(
        Dirty::of(&Objects::new(), &Objects::new(), &old),
        Dirty::none()
    );
}
