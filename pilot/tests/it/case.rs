//! The configurations of the golden tests: a folder of `testdata` each.
//!
//! `input.yaml` begins with a document `kind: Case` (or `kind: Proxies`, for a case that stands alone): the mesh's settings, the
//! proxies, and which of the shared world (`testdata/world.yaml`) there is. The configuration follows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot::config::store::{ConfigStore, Kind, KindSet};
use pilot::config::{Update, file};
use pilot::jwks::KeySets;
use pilot::model::Mesh;
use pilot::push_context::PushContext;
use pilot::registry::{ServiceRegistry, service_entry::Settings};
use proto::envoy::config::core::v3::Node;
use serde_json::{Value, json};

/// One configuration.
pub(crate) struct Case {
    /// Folder name.
    pub(crate) name: String,
    /// The proxies, in the order of the file.
    pub(crate) nodes: Vec<Node>,
    /// The same proxies without what the case says of them.
    pub(crate) plain_nodes: Vec<Node>,
    /// The mesh's settings.
    pub(crate) mesh: Mesh,
    /// What the sources say.
    pub(crate) updates: Vec<Update>,
    /// Only the differences from the world are shown.
    pub(crate) is_on_world: bool,
}

/// Proxies of the world by name.
fn world_node(name: &str) -> Value {
    let (id, labels) = match name {
        "web" => (
            "sidecar~10.1.0.1~web-1.default~default.svc.cluster.local",
            json!({"app": "web", "version": "v1"}),
        ),
        "reviews" => (
            "sidecar~10.1.0.4~reviews-v1-1.default~default.svc.cluster.local",
            json!({"app": "reviews", "version": "v1"}),
        ),
        "gateway" => (
            "router~10.1.9.1~ingress-1.istio-system~istio-system.svc.cluster.local",
            json!({"istio": "ingressgateway"}),
        ),
        other => panic!("no proxy {other} in the world"),
    };
    let namespace = id.split('~').nth(2).unwrap().split_once('.').unwrap().1;
    json!({
        "id": id,
        "cluster": name,
        "metadata": {"LABELS": labels, "NAMESPACE": namespace, "ISTIO_VERSION": "1.24.0"},
        "locality": {"region": "r1", "zone": "z1", "sub_zone": "s1"},
    })
}

/// A node of a case: the name of one of the world's, perhaps with metadata of its own, or a whole node.
fn node(value: &Value) -> Node {
    let merged = match value {
        Value::String(name) => world_node(name),
        value if value.get("proxy").is_some() => {
            let mut node = world_node(value["proxy"].as_str().unwrap());
            for (key, value) in value["metadata"].as_object().into_iter().flatten() {
                node["metadata"][key] = value.clone();
            }
            for key in ["locality", "extensions"] {
                if let Some(own) = value.get(key) {
                    node[key] = own.clone();
                }
            }
            node
        }
        value => value.clone(),
    };
    proto::json::from_value(&merged).unwrap()
}

pub(crate) fn testdata() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// Reads a case from the text of its `input.yaml`.
pub(crate) fn read(name: &str, text: &str) -> Case {
    let mut documents = proto::yaml::parse_documents(text)
        .into_iter()
        .map(Result::unwrap);
    let head = documents.next().unwrap().value;
    let is_on_world = head["kind"] == "Case";
    assert!(
        is_on_world || head["kind"] == "Proxies",
        "{name}: the first document names the proxies"
    );
    let default = [json!("web")];
    let proxies = head
        .get("nodes")
        .or(head.get("proxies"))
        .and_then(Value::as_array);
    let nodes = proxies.map_or(&default[..], Vec::as_slice);
    let mesh_config = proto_mesh::mesh_config::overlay(
        &proto_mesh::mesh_config::defaults(),
        head.get("mesh").unwrap_or(&json!({})),
    );
    let body = text.split_once("\n---\n").map_or("", |(_, body)| body);
    let world = if is_on_world {
        std::fs::read_to_string(testdata().join("world.yaml")).unwrap()
    } else {
        String::new()
    };
    let texts = [("world.yaml", world.as_str()), ("input.yaml", body)];
    let loaded = file::load(texts.into_iter().filter(|(_, text)| !text.is_empty()));
    assert!(loaded.problems.is_empty(), "{name}: {:?}", loaded.problems);
    Case {
        name: name.to_owned(),
        nodes: nodes.iter().map(node).collect(),
        plain_nodes: nodes
            .iter()
            .map(|value| node(value.get("proxy").unwrap_or(value)))
            .collect(),
        mesh: Mesh::from(&mesh_config.unwrap()),
        updates: loaded.updates,
        is_on_world,
    }
}

/// Every case, by name.
pub(crate) fn all() -> Vec<(PathBuf, Case)> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(testdata())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("input.yaml").exists())
        .collect();
    folders.sort();
    let load = |folder: PathBuf| {
        let input = std::fs::read_to_string(folder.join("input.yaml")).unwrap();
        let case = read(&name_of(&folder), &input);
        (folder, case)
    };
    folders.into_iter().map(load).collect()
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

/// The push context that a Pilot with this configuration has.
pub(crate) fn push_context(mesh: &Mesh, updates: Vec<Update>) -> PushContext {
    let (mut store, mut registry) = (ConfigStore::default(), ServiceRegistry::default());
    for update in updates {
        store.apply(update).unwrap();
    }
    let settings = Settings {
        trust_domain: &mesh.trust_domain,
        export_to: &mesh.service_export_to,
        cluster: &Arc::from("Kubernetes"),
    };
    for kind in [
        Kind::SyntheticServiceEntry,
        Kind::ServiceEntry,
        Kind::WorkloadEntry,
    ] {
        let keys: BTreeSet<String> = store.keys(kind);
        registry.refresh(&store, kind, &keys, &settings);
    }
    PushContext::next(
        &PushContext::default(),
        "cluster.local",
        &Arc::new(mesh.clone()),
        &store,
        &registry,
        &Arc::new(KeySets::default()),
        &KindSet::all(),
    )
}
