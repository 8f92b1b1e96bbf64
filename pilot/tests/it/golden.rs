//! Everything that proxies are sent for an input, compared with what was reviewed. `REFRESH_GOLDEN=1` rewrites it.
//!
//! A case is a folder of `testdata`: `input.yaml` holds the configuration, and first of all a document
//! `kind: Proxies` with the nodes; `want.yaml` holds the resources of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot::config::store::{self, ConfigStore, KindSet};
use pilot::config::{Update, file};
use pilot::model::{Mesh, Proxy, Registry};
use pilot::networking::{View, cluster, endpoint, listener, route};
use pilot::push_context::PushContext;
use pilot::registry::{ServiceRegistry, service_entry};
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::listener::v3::{Listener, filter::ConfigType};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use proto::json::{FieldNames, to_value_with};
use serde_json::{Value, json};

struct Case {
    nodes: Vec<Node>,
    push: PushContext,
}

fn read(text: &str) -> Case {
    let mut documents = proto::yaml::parse_documents(text)
        .into_iter()
        .map(Result::unwrap);
    let head = documents.next().unwrap().value;
    assert_eq!(
        head["kind"], "Proxies",
        "the first document names the proxies"
    );
    let nodes = head["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| proto::json::from_value(node).unwrap())
        .collect();
    let mesh_config = proto_mesh::mesh_config::overlay(
        &proto_mesh::mesh_config::defaults(),
        head.get("mesh").unwrap_or(&json!({})),
    );
    let mesh = Mesh::from(&mesh_config.unwrap());
    let body = text.split_once("\n---\n").unwrap().1;
    let loaded = file::load([("input.yaml", body)].into_iter());
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let push = push_context(&mesh, loaded.updates);
    Case { nodes, push }
}

fn push_context(mesh: &Mesh, updates: Vec<Update>) -> PushContext {
    let (mut configs, mut registry) = (ConfigStore::default(), ServiceRegistry::default());
    let settings = service_entry::Settings {
        trust_domain: &mesh.trust_domain,
        export_to: &mesh.service_export_to,
    };
    for update in updates {
        match update {
            Update::VirtualServices(change) => {
                drop(store::apply(&mut configs.virtual_services, change));
            }
            Update::DestinationRules(change) => {
                drop(store::apply(&mut configs.destination_rules, change));
            }
            Update::Gateways(change) => {
                drop(store::apply(&mut configs.gateways, change));
            }
            Update::Sidecars(change) => {
                drop(store::apply(&mut configs.sidecars, change));
            }
            Update::PeerAuthentications(change) => {
                drop(store::apply(&mut configs.peer_authentications, change));
            }
            Update::RequestAuthentications(change) => {
                drop(store::apply(&mut configs.request_authentications, change));
            }
            Update::AuthorizationPolicies(change) => {
                drop(store::apply(&mut configs.authorization_policies, change));
            }
            Update::ServiceEntries(change) => {
                for entry in change.set {
                    let key = store::key(&entry.meta);
                    registry.apply(
                        Registry::ServiceEntry,
                        &key,
                        Some((&entry.meta, &entry.spec)),
                        &settings,
                    );
                }
            }
            Update::SyntheticServiceEntries(change) => {
                for entry in change.set {
                    let key = store::key(&entry.meta);
                    registry.apply(
                        Registry::Kubernetes,
                        &key,
                        Some((&entry.meta, &entry.spec)),
                        &settings,
                    );
                }
            }
            Update::Mesh(_) => unreachable!("files hold no mesh settings"),
        }
    }
    let mesh = Arc::new(mesh.clone());
    PushContext::next(
        &PushContext::default(),
        "cluster.local",
        &mesh,
        &configs,
        &registry,
        &KindSet::all(),
    )
}

/// The names of the route configurations that listeners refer to.
fn route_names(listeners: &[Listener]) -> BTreeSet<String> {
    let chains = listeners.iter().flat_map(|listener| {
        listener
            .filter_chains
            .iter()
            .chain(&listener.default_filter_chain)
    });
    let managers = chains
        .flat_map(|chain| &chain.filters)
        .filter_map(|filter| match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => {
                proto::any::unpack::<HttpConnectionManager>(any).ok()
            }
            _ => None,
        });
    managers
        .filter_map(|manager| match manager.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => Some(rds.route_config_name),
            _ => None,
        })
        .collect()
}

fn generate(case: &Case) -> Value {
    let mut all = BTreeMap::new();
    for node in &case.nodes {
        let proxy = Proxy::try_from(node).unwrap();
        let view = View::new(&proxy, &case.push);
        let (clusters, listeners) = (cluster::build(&view), listener::build(&view));
        let eds: Vec<String> = clusters
            .iter()
            .filter(|cluster| cluster.eds_cluster_config.is_some())
            .map(|cluster| cluster.name.clone())
            .collect();
        let names = FieldNames::Proto;
        all.insert(
            proxy.id.clone(),
            json!({
                "clusters": clusters.iter().map(|it| to_value_with(it, names).unwrap()).collect::<Vec<_>>(),
                "endpoints": eds.iter().map(|it| to_value_with(&endpoint::build(&view, it), names).unwrap()).collect::<Vec<_>>(),
                "listeners": listeners.iter().map(|it| to_value_with(it, names).unwrap()).collect::<Vec<_>>(),
                "routes": route_names(&listeners).iter().map(|it| to_value_with(&route::build(&view, it), names).unwrap()).collect::<Vec<_>>(),
            }),
        );
    }
    sorted(json!({ "proxies": all, "status": case.push.status.snapshot() }))
}

/// The same with the keys of every object in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn compare(folder: &Path) {
    let input = std::fs::read_to_string(folder.join("input.yaml")).unwrap();
    let got = proto::yaml::to_string(&generate(&read(&input))).unwrap();
    let again = proto::yaml::to_string(&generate(&read(&input))).unwrap();
    assert_eq!(got, again, "generation is not deterministic");
    let want = folder.join("want.yaml");
    #[allow(
        clippy::disallowed_methods,
        reason = "the switch that rewrites golden files"
    )]
    if std::env::var("REFRESH_GOLDEN").is_ok() {
        std::fs::write(&want, got).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&want).unwrap_or_default();
    let difference = got
        .lines()
        .zip(expected.lines())
        .enumerate()
        .find(|(_, (got, want))| got != want);
    if let Some((line, (got, want))) = difference {
        panic!(
            "{}:{}: got {got:?}, want {want:?} (REFRESH_GOLDEN=1 rewrites it)",
            want_name(folder),
            line + 1
        );
    }
    assert_eq!(
        got.lines().count(),
        expected.lines().count(),
        "{}: another length",
        want_name(folder)
    );
}

fn want_name(folder: &Path) -> String {
    folder.join("want.yaml").display().to_string()
}

#[test]
fn generated_resources_are_as_reviewed() {
    let testdata = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(testdata)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        compare(&case);
    }
}
