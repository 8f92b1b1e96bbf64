//! `/config_dump`: everything configured, in the shape of `envoy.admin.v3.ConfigDump`; keys and tokens are left out.

use super::server::{Admin, Answer, Query};
use crate::{
    config::{Entry, Kind},
    transport::Secret,
};
use http::StatusCode;
use prost_types::Any;
use proto::json::{FieldNames, any_to_value, to_value_with};
use proto_component::redact::{REDACTED, redact};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const PREFIX: &str = "type.googleapis.com/envoy.admin.v3.";

pub(super) fn config_dump(admin: &Admin, query: &Query) -> Answer {
    let mut configs = vec![bootstrap(admin), clusters(admin)];
    if query.has("include_eds") {
        configs.push(endpoints(admin));
    }
    // There are no scoped routes, but those who read the dump by its sections find this one.
    let scoped = json!({"@type": format!("{PREFIX}ScopedRoutesConfigDump")});
    configs.extend([listeners(admin), scoped, routes(admin), secrets(admin)]);
    configs.extend(extensions(admin));
    let regex = match query
        .get("name_regex")
        .map(|text| regex::Regex::new(&format!("^(?:{text})$")))
        .transpose()
    {
        Ok(regex) => regex,
        Err(error) => {
            return Answer::Status(
                StatusCode::BAD_REQUEST,
                format!("Error while parsing name_regex from {error}\n"),
            );
        }
    };
    let paths: Option<Vec<&str>> = query.get("mask").map(|mask| mask.split(',').collect());
    if let Some(resource) = query.get("resource") {
        return resources(configs, resource, regex.as_ref(), paths.as_deref());
    }
    if let Some(regex) = &regex {
        for config in configs.iter_mut().filter_map(Value::as_object_mut) {
            for items in config.values_mut().filter_map(Value::as_array_mut) {
                items.retain(|item| name_of(item).is_some_and(|name| regex.is_match(name)));
            }
        }
    }
    if let Some(paths) = &paths {
        for config in &mut configs {
            trim(config, paths);
        }
        configs.retain(|config| config.as_object().is_some_and(|config| config.len() > 1));
    }
    Answer::Json(json!({ "configs": configs }))
}

/// Leaves what a field mask names, and the type.
fn trim(value: &mut Value, paths: &[&str]) {
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            if name == "@type" || paths.contains(&name.as_str()) {
                return true;
            }
            let inner: Vec<&str> = paths
                .iter()
                .filter_map(|path| path.strip_prefix(name.as_str())?.strip_prefix('.'))
                .collect();
            if inner.is_empty() {
                return false;
            }
            trim(value, &inner);
            true
        }),
        Value::Array(items) => {
            for item in items {
                trim(item, paths);
            }
        }
        _ => {}
    }
}

/// `?resource=dynamic_listeners`: the entries of that list only.
fn resources(
    configs: Vec<Value>,
    resource: &str,
    regex: Option<&regex::Regex>,
    paths: Option<&[&str]>,
) -> Answer {
    for config in configs {
        let Value::Object(mut config) = config else {
            continue;
        };
        let kind = config.get("@type").cloned();
        let Some(found) = config.remove(resource) else {
            continue;
        };
        let element = element_type(
            kind.as_ref().and_then(Value::as_str).unwrap_or_default(),
            resource,
        );
        let items = match found {
            Value::Array(items) => items,
            one => vec![one],
        };
        let items: Vec<Value> = items
            .into_iter()
            .filter(|item| {
                regex.is_none_or(|regex| name_of(item).is_some_and(|name| regex.is_match(name)))
            })
            .map(|mut item| {
                if let Some(paths) = paths {
                    trim(&mut item, paths);
                }
                with_type(&element, item)
            })
            .collect();
        return Answer::Json(json!({ "configs": items }));
    }
    Answer::Status(
        StatusCode::NOT_FOUND,
        format!("{resource} not found in config dump"),
    )
}

fn name_of(item: &Value) -> Option<&str> {
    let inner = [
        "name",
        "cluster",
        "listener",
        "route_config",
        "endpoint_config",
    ]
    .iter()
    .find_map(|field| item.get(field))?;
    inner.as_str().or_else(|| {
        inner
            .get("name")
            .or_else(|| inner.get("cluster_name"))
            .and_then(Value::as_str)
    })
}

fn element_type(kind: &str, resource: &str) -> String {
    let element = match resource {
        "static_clusters" => "StaticCluster",
        "dynamic_active_clusters" | "dynamic_warming_clusters" => "DynamicCluster",
        "static_listeners" => "StaticListener",
        "dynamic_listeners" => "DynamicListener",
        "static_route_configs" => "StaticRouteConfig",
        "dynamic_route_configs" => "DynamicRouteConfig",
        "static_secrets" => "StaticSecret",
        "dynamic_active_secrets" | "dynamic_warming_secrets" => "DynamicSecret",
        "static_endpoint_configs" => "StaticEndpointConfig",
        "dynamic_endpoint_configs" => "DynamicEndpointConfig",
        "bootstrap" => return "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap".into(),
        _ => return kind.to_owned(),
    };
    format!("{kind}.{element}")
}

fn with_type(kind: &str, value: Value) -> Value {
    let mut object = Map::new();
    object.insert("@type".into(), json!(kind));
    if let Value::Object(fields) = value {
        object.extend(fields);
    }
    Value::Object(object)
}

/// A message in an `Any`, as JSON with its type; keys in it are blotted out.
fn message(any: &Any) -> Value {
    let value = any_to_value(any, FieldNames::Proto)
        .unwrap_or_else(|error| json!({ "error": error.to_string() }));
    let mut value = with_type(&any.type_url, value);
    redact(&mut value);
    value
}

/// RFC 3339 in UTC, to the millisecond.
pub(super) fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let millis = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    millis.format(&Rfc3339).unwrap_or_default()
}

fn bootstrap(admin: &Admin) -> Value {
    let mut value = to_value_with(&admin.bootstrap.wire, FieldNames::Proto).unwrap_or_default();
    redact(&mut value);
    json!({ "@type": format!("{PREFIX}BootstrapConfigDump"), "bootstrap": value, "last_updated": timestamp(admin.store.server.started_at) })
}

fn error_state<T>(entry: &Entry<T>) -> Option<Value> {
    entry
        .error
        .as_deref()
        .map(|(details, at)| json!({ "details": details, "last_update_attempt": timestamp(*at) }))
}

fn version(admin: &Admin, kind: Kind) -> String {
    admin
        .store
        .with_state(|state| state.versions.get(&kind).cloned().unwrap_or_default())
}

fn clusters(admin: &Admin) -> Value {
    let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
    admin.store.with_state(|state| {
        for (_, entry) in state.clusters.iter() {
            let mut one = Map::new();
            if !entry.is_static {
                one.insert("version_info".into(), json!(&*entry.version));
            }
            one.insert("cluster".into(), message(&entry.raw.any(Kind::Cluster)));
            one.insert("last_updated".into(), json!(timestamp(entry.updated)));
            one.extend(error_state(entry).map(|error| ("error_state".to_owned(), error)));
            let list = if entry.is_static {
                &mut fixed
            } else if entry.warming.is_some() {
                &mut warming
            } else {
                &mut active
            };
            list.push(Value::Object(one));
        }
    });
    dump(
        "ClustersConfigDump",
        &version(admin, Kind::Cluster),
        [
            ("static_clusters", fixed),
            ("dynamic_active_clusters", active),
            ("dynamic_warming_clusters", warming),
        ],
    )
}

fn listeners(admin: &Admin) -> Value {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    admin.store.with_state(|state| {
        for (name, entry) in &state.listeners {
            if entry.is_static {
                fixed.push(json!({ "listener": message(&entry.raw.any(Kind::Listener)), "last_updated": timestamp(entry.updated) }));
                continue;
            }
            let newest = json!({ "version_info": &*entry.version, "listener": message(&entry.raw.any(Kind::Listener)), "last_updated": timestamp(entry.updated) });
            let mut one = Map::new();
            one.insert("name".into(), json!(name));
            if entry.warming.is_some() {
                if let Some(before) = &entry.active {
                    one.insert("active_state".into(), json!({ "listener": message(&proto::any::pack(&before.wire)) }));
                }
                one.insert("warming_state".into(), newest);
            } else {
                one.insert("active_state".into(), newest);
            }
            one.extend(error_state(entry).map(|error| ("error_state".to_owned(), error)));
            dynamic.push(Value::Object(one));
        }
    });
    dump(
        "ListenersConfigDump",
        &version(admin, Kind::Listener),
        [("static_listeners", fixed), ("dynamic_listeners", dynamic)],
    )
}

/// What came by ECDS, if anything is asked for by it.
fn extensions(admin: &Admin) -> Option<Value> {
    let slots = admin.store.extensions.all();
    let filters: Vec<Value> = slots.iter().filter_map(|slot| {
        let delivered = slot.delivered()?;
        Some(json!({ "version_info": &*delivered.version, "ecds_filter": message(&delivered.raw.any(Kind::Extension)), "last_updated": timestamp(delivered.updated) }))
    }).collect();
    let kind = format!("{PREFIX}EcdsConfigDump");
    (!slots.is_empty()).then(|| json!({ "@type": kind, "ecds_filters": filters }))
}

fn routes(admin: &Admin) -> Value {
    let dynamic: Vec<Value> = admin.store.routes.all().iter().filter_map(|slot| {
        let source = slot.source()?;
        let any = slot.whole().map_or_else(|| source.raw.any(Kind::Route), |whole| proto::any::pack(&whole));
        Some(json!({ "version_info": &*source.version, "route_config": message(&any), "last_updated": timestamp(source.updated) }))
    }).collect();
    let mut fixed = Vec::new();
    for listener in admin.store.listeners.map().by_name.values() {
        let config = listener.config.load();
        for chain in config.chains.iter() {
            for filter in &chain.wire.filters {
                fixed.extend(inline_routes(filter).map(|any| json!({ "route_config": message(&any), "last_updated": timestamp(admin.store.server.started_at) })));
            }
        }
    }
    dump(
        "RoutesConfigDump",
        "",
        [
            ("static_route_configs", fixed),
            ("dynamic_route_configs", dynamic),
        ],
    )
}

/// The route configuration that a connection manager has in place.
fn inline_routes(filter: &proto::envoy::config::listener::v3::Filter) -> Option<Any> {
    use proto::envoy::{
        config::listener::v3::filter::ConfigType,
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
    };
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        return None;
    };
    match proto::any::unpack::<HttpConnectionManager>(any)
        .ok()?
        .route_specifier?
    {
        RouteSpecifier::RouteConfig(routes) => Some(proto::any::pack(&routes)),
        RouteSpecifier::Rds(_) | RouteSpecifier::ScopedRoutes(_) => None,
    }
}

fn endpoints(admin: &Admin) -> Value {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    admin.store.with_state(|state| {
        for entry in state.assignments.values().flat_map(BTreeMap::values) {
            dynamic.push(json!({ "version_info": &*entry.version, "endpoint_config": message(&entry.raw.any(Kind::Endpoint)), "last_updated": timestamp(entry.updated) }));
        }
        for (_, entry) in state.clusters.iter() {
            let wire = <proto::envoy::config::cluster::v3::Cluster as prost::Message>::decode(entry.raw.bytes());
            if let Some(assignment) = wire.ok().and_then(|wire| wire.load_assignment) {
                fixed.push(json!({ "endpoint_config": message(&proto::any::pack(&assignment)) }));
            }
        }
    });
    dump(
        "EndpointsConfigDump",
        "",
        [
            ("static_endpoint_configs", fixed),
            ("dynamic_endpoint_configs", dynamic),
        ],
    )
}

fn secrets(admin: &Admin) -> Value {
    let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
    for slot in admin.store.secrets.all() {
        let value = slot.load();
        let secret = value
            .as_deref()
            .map(|secret| secret_json(&slot.name, secret));
        let (updated, version) = slot.updated();
        let one = json!({ "name": slot.name, "version_info": &*version, "last_updated": timestamp(updated), "secret": secret });
        if slot.source.is_none() {
            fixed.push(one);
        } else if secret.is_some() {
            active.push(one);
        } else {
            warming.push(one);
        }
    }
    dump(
        "SecretsConfigDump",
        "",
        [
            ("static_secrets", fixed),
            ("dynamic_active_secrets", active),
            ("dynamic_warming_secrets", warming),
        ],
    )
}

fn secret_json(name: &str, secret: &Secret) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    match secret {
        Secret::KeyPair(pair) => json!({
            "@type": kind, "name": name,
            "tls_certificate": { "certificate_chain": { "inline_bytes": pair.chain_base64() }, "private_key": { "inline_bytes": base64_text(REDACTED) } },
        }),
        Secret::Validation(validation) => {
            let context = to_value_with(&validation.wire, FieldNames::Proto).unwrap_or_default();
            json!({ "@type": kind, "name": name, "validation_context": context })
        }
        Secret::TicketKeys(_) => json!({
            "@type": kind, "name": name,
            "session_ticket_keys": { "keys": [{ "inline_bytes": base64_text(REDACTED) }] },
        }),
    }
}

fn base64_text(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn dump<const N: usize>(kind: &str, version: &str, lists: [(&str, Vec<Value>); N]) -> Value {
    let mut dump = Map::new();
    dump.insert("@type".into(), json!(format!("{PREFIX}{kind}")));
    if !version.is_empty() {
        dump.insert("version_info".into(), json!(version));
    }
    for (name, list) in lists {
        if !list.is_empty() {
            dump.insert(name.into(), json!(list));
        }
    }
    Value::Object(dump)
}
