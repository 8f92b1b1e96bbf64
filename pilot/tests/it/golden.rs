//! Everything that proxies are sent for an input, compared with what was reviewed. `REFRESH_GOLDEN=1` rewrites it.
//!
//! For a case on the shared world `want.yaml` holds what differs from what the proxy gets in the world alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pilot::model::Proxy;
use pilot::networking::route::KnownHosts;
use pilot::networking::{
    View, bootstrap, cluster, endpoint, extension, listener, name_table, route,
};
use pilot::push_context::PushContext;
use prost::Message as _;
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::listener::v3::{Listener, filter::ConfigType};
use proto::envoy::config::route::v3::RouteConfiguration;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier, http_filter,
};
use proto::json::{FieldNames, to_value_with};
use serde_json::{Map, Value, json};

use super::case::{self, Case};

/// What a gRPC client asks for that calls every service, and a server at all ports of its workload.
fn proxyless(view: &View<'_>) -> (Vec<Cluster>, Vec<Listener>) {
    let clusters = cluster::build(view);
    let clusters = clusters
        .iter()
        .filter_map(|known| cluster::api(view, &known.name));
    let services = view.push.services.all().iter();
    let dialed = services.flat_map(|service| {
        let ports = service.ports.iter();
        ports.map(|port| format!("{}:{}", service.host, port.number))
    });
    let served = view.instances.iter().map(|instance| {
        let port = instance.target_port();
        format!("xds.istio.io/grpc/lds/inbound/0.0.0.0:{port}")
    });
    let listeners = dialed
        .chain(served)
        .filter_map(|name| listener::api(view, &name));
    (clusters.collect(), listeners.collect())
}

fn managers(listeners: &[Listener]) -> Vec<HttpConnectionManager> {
    let api = listeners
        .iter()
        .filter_map(|listener| listener.api_listener.as_ref()?.api_listener.as_ref())
        .filter_map(|any| proto::any::unpack(any).ok());
    let chains = listeners.iter().flat_map(|listener| {
        listener
            .filter_chains
            .iter()
            .chain(&listener.default_filter_chain)
    });
    chains
        .flat_map(|chain| &chain.filters)
        .filter_map(|filter| match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => {
                proto::any::unpack::<HttpConnectionManager>(any).ok()
            }
            _ => None,
        })
        .chain(api)
        .collect()
}

/// The names of the route configurations that listeners refer to.
fn route_names(managers: &[HttpConnectionManager]) -> BTreeSet<String> {
    managers
        .iter()
        .filter_map(|manager| match &manager.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => Some(rds.route_config_name.clone()),
            _ => None,
        })
        .collect()
}

/// The names of the extensions that listeners refer to.
fn extension_names(managers: &[HttpConnectionManager]) -> BTreeSet<String> {
    let filters = managers.iter().flat_map(|manager| &manager.http_filters);
    filters
        .filter(|filter| {
            matches!(
                filter.config_type,
                Some(http_filter::ConfigType::ConfigDiscovery(_))
            )
        })
        .map(|filter| filter.name.clone())
        .collect()
}

/// Encoded in parts, and again out of the same parts, a route configuration is what it is as a whole.
fn assert_encoded(view: &View<'_>, name: &str, built: &RouteConfiguration) {
    let mut known = KnownHosts::default();
    for _ in 0..2 {
        let encoded = route::encode(view, name, &mut known);
        assert_eq!(encoded, built.encode_to_vec(), "{name}");
        known.keep_in(encoded.into());
    }
}

type Resources = BTreeMap<&'static str, BTreeMap<String, Value>>;

/// Everything that one proxy is sent, by type and name.
fn generate(node: &Node, push: &PushContext) -> Resources {
    let proxy = Proxy::try_from(node).unwrap();
    let view = View::new(&proxy, push);
    let names = FieldNames::Proto;
    let (clusters, listeners) = if proxy.is_proxyless() {
        proxyless(&view)
    } else {
        (cluster::build(&view), listener::build(&view))
    };
    let managers = managers(&listeners);
    let knows_itself = proxy.metadata_text("ENABLE_SELF_DISCOVERY").is_some();
    let eds = clusters
        .iter()
        .filter(|cluster| cluster.eds_cluster_config.is_some())
        .map(|cluster| cluster.name.as_str())
        .chain(knows_itself.then_some(endpoint::LOCAL_CLUSTER))
        .map(|name| {
            let assignment = endpoint::build(&view, name);
            (name.to_owned(), to_value_with(&assignment, names).unwrap())
        })
        .collect();
    let mut all = Resources::from([
        ("endpoints", eds),
        (
            "clusters",
            clusters
                .iter()
                .map(|it| (it.name.clone(), to_value_with(it, names).unwrap()))
                .collect(),
        ),
        (
            "listeners",
            listeners
                .iter()
                .map(|it| (it.name.clone(), to_value_with(it, names).unwrap()))
                .collect(),
        ),
        (
            "routes",
            route_names(&managers)
                .into_iter()
                .map(|name| {
                    let built = route::build(&view, &name);
                    assert_encoded(&view, &name, &built);
                    (name, to_value_with(&built, names).unwrap())
                })
                .collect(),
        ),
        (
            "extensions",
            extension_names(&managers)
                .into_iter()
                .filter_map(|name| {
                    let built = extension::build(&view, &name)?;
                    Some((name, to_value_with(&built, names).unwrap()))
                })
                .collect(),
        ),
    ]);
    let patches = bootstrap::build(&view, bootstrap::PATCHES).unwrap();
    if patches.encoded_len() > 0 {
        let patches = to_value_with(&patches, names).unwrap();
        all.insert(
            "bootstrap",
            BTreeMap::from([(bootstrap::PATCHES.to_owned(), patches)]),
        );
    }
    if proxy.metadata_text("DNS_CAPTURE").is_some() {
        let table = to_value_with(&name_table::build(&view), names).unwrap();
        all.insert("names", BTreeMap::from([("table".to_owned(), table)]));
    }
    all
}

/// What is in `new` and not in `old`: changed fields of objects, changed elements of lists.
fn difference(old: &Value, new: &Value) -> Value {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut changed = Map::new();
            for (key, value) in new {
                match old.get(key) {
                    Some(before) if before == value => {}
                    Some(before) => drop(changed.insert(key.clone(), difference(before, value))),
                    None => drop(changed.insert(key.clone(), value.clone())),
                }
            }
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                changed.insert(key.clone(), json!("(gone)"));
            }
            Value::Object(changed)
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            let elements = old.iter().zip(new).enumerate();
            let changed = elements.filter(|(_, (old, new))| old != new);
            let shown =
                changed.map(|(index, (old, new))| (format!("[{index}]"), difference(old, new)));
            Value::Object(shown.collect())
        }
        (Value::Array(old), Value::Array(new)) => {
            let mut shown: Map<String, Value> = new
                .iter()
                .enumerate()
                .filter(|(_, element)| !old.contains(element))
                .map(|(index, element)| (format!("[{index}]"), element.clone()))
                .collect();
            let gone = old.iter().filter(|element| !new.contains(element)).count();
            if gone > 0 {
                shown.insert("(gone)".to_owned(), json!(gone));
            }
            Value::Object(shown)
        }
        (_, new) => new.clone(),
    }
}

fn against_world(old: &Resources, new: Resources) -> Value {
    let mut shown = Map::new();
    for (kind, resources) in new {
        let before = old.get(kind).cloned().unwrap_or_default();
        let mut changed = Map::new();
        for (name, value) in &resources {
            match before.get(name) {
                Some(old) if old == value => {}
                Some(old) => {
                    changed.insert(format!("{name} (changed)"), difference(old, value));
                }
                None => {
                    changed.insert(name.clone(), value.clone());
                }
            }
        }
        for name in before.keys().filter(|name| !resources.contains_key(*name)) {
            changed.insert(name.clone(), json!("(gone)"));
        }
        if !changed.is_empty() {
            shown.insert(kind.to_owned(), Value::Object(changed));
        }
    }
    Value::Object(shown)
}

fn render(case: Case) -> String {
    let push = case::push_context(&case.mesh, case.updates);
    let mut world = None;
    let mut all = BTreeMap::new();
    for (node, plain) in case.nodes.iter().zip(&case.plain_nodes) {
        let generated = generate(node, &push);
        let shown = if case.is_on_world {
            let world = world.get_or_insert_with(|| {
                let world = case::read("world", "kind: Case\n");
                case::push_context(&world.mesh, world.updates)
            });
            against_world(&generate(plain, world), generated)
        } else {
            json!(generated)
        };
        all.insert(Proxy::try_from(node).unwrap().id, shown);
    }
    let mut shown = json!({ "proxies": all });
    let status = json!(push.status.snapshot());
    if status.as_object().is_some_and(|events| !events.is_empty()) {
        shown["status"] = status;
    }
    proto::yaml::to_string(&sorted(shown)).unwrap()
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

fn compare(folder: &Path, case: Case) -> Result<(), String> {
    let name = case.name.clone();
    let got = render(case);
    let want = folder.join("want.yaml");
    #[allow(
        clippy::disallowed_methods,
        reason = "the switch that rewrites golden files"
    )]
    if std::env::var("REFRESH_GOLDEN").is_ok() {
        std::fs::write(&want, got).unwrap();
        return Ok(());
    }
    let expected = std::fs::read_to_string(&want).unwrap_or_default();
    if got == expected {
        return Ok(());
    }
    let lines = || got.lines().zip(expected.lines()).enumerate();
    Err(match lines().find(|(_, (got, want))| got != want) {
        Some((line, (got, want))) => {
            format!("{name}/want.yaml:{}: got {got:?}, want {want:?}", line + 1)
        }
        None => format!("{name}/want.yaml: another length"),
    })
}

#[test]
fn generated_resources_are_as_reviewed() {
    let cases = case::all();
    assert!(!cases.is_empty());
    let wrong: Vec<String> = cases
        .into_iter()
        .filter_map(|(folder, case)| compare(&folder, case).err())
        .collect();
    assert!(
        wrong.is_empty(),
        "{}\n(REFRESH_GOLDEN=1 rewrites them)",
        wrong.join("\n")
    );
}

#[test]
fn generation_is_deterministic() {
    for (folder, case) in case::all().into_iter().step_by(7) {
        let input = std::fs::read_to_string(folder.join("input.yaml")).unwrap();
        let again = case::read(&case.name, &input);
        let name = case.name.clone();
        assert_eq!(render(case), render(again), "{name}");
    }
}
