//! The debug pages, with Istio's paths. Those that show configuration do so without secrets, and to this pod only.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use proto_component::monitoring::Monitoring;
use proto_component::redact::redact;
use serde::Deserialize;
use serde_json::{Value, json};

use super::watch::Watched;
use super::{Connection, Discovery, ResourceType};
use crate::model::{Endpoint, Service};

mod config_dump;
mod security;

/// `?proxyID=pod.namespace`
#[derive(Debug, Default, Deserialize)]
struct ProxyQuery {
    #[serde(rename = "proxyID", alias = "proxy_id")]
    proxy_id: Option<String>,
    resource: Option<String>,
    proxy_namespace: Option<String>,
}

/// `?push=1`
#[derive(Debug, Default, Deserialize)]
struct PushQuery {
    push: Option<String>,
    brief: Option<String>,
}

/// Adds the pages of `discovery`.
#[must_use]
pub fn pages(monitoring: Monitoring, discovery: &Arc<Discovery>) -> Monitoring {
    let page = |show: fn(&Discovery) -> Value| {
        let discovery = Arc::clone(discovery);
        get(move || async move { Json(show(&discovery)) })
    };
    let with_push = |show: fn(&Discovery) -> Value| {
        let discovery = Arc::clone(discovery);
        get(move |Query(query): Query<PushQuery>| async move {
            if query.push.is_some() {
                discovery.push_all();
            }
            Json(show(&discovery))
        })
    };
    let endpointz = Arc::clone(discovery);
    let monitoring = monitoring
        .debug("/debug/syncz", "what each proxy has accepted", page(syncz))
        .debug("/debug/registryz", "all services", page(registryz))
        .debug(
            "/debug/endpointz",
            "the endpoints of each service port",
            get(move |Query(query): Query<PushQuery>| async move {
                Json(show_endpoints(&endpointz, query.brief.is_some()))
            }),
        )
        .debug(
            "/debug/endpointShardz",
            "endpoints by host, namespace and registry",
            page(endpoint_shardz),
        )
        .private_debug("/debug/configz", "all configuration", page(configz))
        .debug(
            "/debug/edsz",
            "the endpoints that proxies follow; ?push=1 sends everything again",
            with_push(edsz),
        )
        .debug(
            "/debug/adsz",
            "connections; ?push=1 sends everything again",
            with_push(adsz),
        )
        .debug("/debug/cdsz", "the clusters of each connection", page(cdsz))
        .debug(
            "/debug/push_status",
            "trouble found while configuration was made",
            page(push_status),
        )
        .private_debug("/debug/mesh", "the mesh's settings in force", page(mesh))
        .debug(
            "/debug/authorizationz",
            "the authorization policies",
            page(security::authorizationz),
        );
    proxy_pages(monitoring, discovery)
}

/// The pages about one proxy.
fn proxy_pages(monitoring: Monitoring, discovery: &Arc<Discovery>) -> Monitoring {
    let dump = Arc::clone(discovery);
    let authentication = Arc::clone(discovery);
    let distribution = Arc::clone(discovery);
    monitoring
        .debug(
            "/debug/authenticationz",
            "who speaks mutual TLS with whom, as a proxy (?proxyID=pod.namespace) sees it",
            get(move |Query(query): Query<ProxyQuery>| async move {
                with_proxy(
                    &authentication,
                    query.proxy_id.as_deref(),
                    security::authenticationz,
                )
            }),
        )
        .debug(
            "/debug/config_distribution",
            "which version of ?resource=kind/namespace/name each proxy has accepted",
            get(move |Query(query): Query<ProxyQuery>| async move {
                let resource = query.resource.as_deref().unwrap_or_default();
                show_distribution(&distribution, resource, query.proxy_namespace.as_deref())
            }),
        )
        .private_debug(
            "/debug/config_dump",
            "what a proxy (?proxyID=pod.namespace) would be sent",
            get(move |Query(query): Query<ProxyQuery>| async move {
                with_proxy(&dump, query.proxy_id.as_deref(), config_dump::build)
            }),
        )
}

/// Answers about one proxy.
fn with_proxy(
    discovery: &Discovery,
    proxy_id: Option<&str>,
    show: impl Fn(&Discovery, &Connection) -> Result<Value, proto::json::JsonError>,
) -> Response {
    let Some(proxy_id) = proxy_id else {
        let text = "proxyID is missing: ?proxyID=pod.namespace\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let Some(connection) = find(discovery, proxy_id) else {
        let text = format!("proxy {proxy_id} is not connected to this Pilot\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    match show(discovery, &connection) {
        Ok(mut shown) => {
            redact(&mut shown);
            Json(shown).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Which version of a resource each proxy has: the one that is in force here, once the proxy has accepted all that was pushed
/// since.
fn show_distribution(discovery: &Discovery, resource: &str, namespace: Option<&str>) -> Response {
    let Some((kind, key)) = resource.split_once('/') else {
        let text = "resource is missing: ?resource=kind/namespace/name\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let Some(version) = discovery.store.lock().resource_version(kind, key) else {
        return (StatusCode::NOT_FOUND, format!("{resource} is not known\n")).into_response();
    };
    let current = discovery.current().push.version;
    let rows = proxies(discovery)
        .filter(|connection| {
            namespace.is_none_or(|namespace| connection.proxy.namespace == namespace)
        })
        .map(|connection| {
            let mut row = json!({ "proxy": connection.proxy.id });
            for (kind, name) in [
                (ResourceType::Cluster, "cluster_acked"),
                (ResourceType::Listener, "listener_acked"),
                (ResourceType::Route, "route_acked"),
                (ResourceType::Endpoint, "endpoint_acked"),
            ] {
                let watched = connection.watched(kind).unwrap_or_default();
                let has_all =
                    connection.pushed() >= current && watched.nonce_sent == watched.nonce_acked;
                row[name] = if has_all {
                    version.as_str().into()
                } else {
                    Value::Null
                };
            }
            row
        });
    Json(Value::Array(rows.collect())).into_response()
}

/// The newest connection of a proxy, by `pod.namespace` or by its whole id.
fn find(discovery: &Discovery, proxy_id: &str) -> Option<Arc<Connection>> {
    let matches = |connection: &Arc<Connection>| {
        connection.proxy.id == proxy_id
            || connection.proxy.node_id == proxy_id
            || connection.id == proxy_id
    };
    proxies(discovery).rev().find(matches)
}

/// The connections of proxies, without those that agents have beside them.
fn proxies(discovery: &Discovery) -> impl DoubleEndedIterator<Item = Arc<Connection>> {
    let connections = discovery.connections().into_iter();
    connections.filter(|connection| !connection.is_agent())
}

fn syncz(discovery: &Discovery) -> Value {
    let rows = proxies(discovery).map(|connection| {
        let mut row = json!({
            "proxy": connection.proxy.id,
            "connection": connection.id,
            "proxy_version": connection.proxy.version,
            "istio_version": connection.proxy.metadata_text("ISTIO_VERSION").unwrap_or_default(),
            "cluster_id": connection.proxy.metadata_text("CLUSTER_ID").unwrap_or("Kubernetes"),
        });
        for (kind, name) in [
            (ResourceType::Cluster, "cluster"),
            (ResourceType::Listener, "listener"),
            (ResourceType::Route, "route"),
            (ResourceType::Endpoint, "endpoint"),
            (ResourceType::Extension, "extension_config"),
        ] {
            let watched = connection.watched(kind).unwrap_or_default();
            row[format!("{name}_sent")] = watched.nonce_sent.into();
            row[format!("{name}_acked")] = watched.nonce_acked.into();
            if !watched.nonce_rejected.is_empty() {
                row[format!("{name}_rejected")] = watched.nonce_rejected.into();
                row[format!("{name}_error")] = watched.error.into();
            }
        }
        row["endpoint_percent"] = json!(endpoint_percent(&connection));
        row
    });
    Value::Array(rows.collect())
}

/// How many of the clusters' endpoints the proxy has.
fn endpoint_percent(connection: &Connection) -> usize {
    let watched = connection
        .watched(ResourceType::Endpoint)
        .unwrap_or_default();
    let asked = watched.asked.names().len();
    watched.sent.len().min(asked) * 100 / asked.max(1)
}

fn describe_service(service: &Service) -> Value {
    json!({
        "hostname": service.host,
        "namespace": service.namespace,
        "name": service.name,
        "address": service.addresses.first().map_or("0.0.0.0", String::as_str),
        "addresses": service.addresses,
        "ports": service.ports.iter().map(|port| json!({
            "name": port.name, "port": port.number, "protocol": port.protocol.as_str(),
        })).collect::<Vec<_>>(),
        "resolution": format!("{:?}", service.resolution),
        "meshExternal": service.is_external,
        "registry": format!("{:?}", service.registry),
    })
}

fn registryz(discovery: &Discovery) -> Value {
    Value::Array(
        discovery
            .current()
            .push
            .services
            .all()
            .iter()
            .map(|service| describe_service(service))
            .collect(),
    )
}

fn describe_endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "address": endpoint.address,
        "ports": endpoint.ports,
        "labels": endpoint.labels,
        "serviceAccount": endpoint.identity,
        "locality": endpoint.locality,
        "weight": endpoint.weight,
        "network": endpoint.network,
        "tlsMode": if endpoint.is_mtls() { "istio" } else { "disabled" },
        "ready": endpoint.is_ready,
        "cluster": &*endpoint.cluster,
    })
}

fn show_endpoints(discovery: &Discovery, is_brief: bool) -> Value {
    let current = discovery.current();
    let mut rows = Vec::new();
    for service in current.push.services.all() {
        let endpoints = current.push.endpoints.of(&service.key());
        for port in &service.ports {
            let found: Vec<Value> = endpoints
                .iter()
                .map(|endpoint| {
                    let place = format!("{}:{}", endpoint.address, endpoint.port_for(port));
                    if is_brief {
                        json!(place)
                    } else {
                        json!({ "endpoint": place, "details": describe_endpoint(endpoint) })
                    }
                })
                .collect();
            rows.push(json!({ "svc": format!("{}:{}", service.host, port.name), "port": port.number, "ep": found }));
        }
    }
    Value::Array(rows)
}

fn endpoint_shardz(discovery: &Discovery) -> Value {
    let current = discovery.current();
    let mut shards: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for (key, endpoints) in current.push.endpoints.iter() {
        let described: Vec<Value> = endpoints
            .iter()
            .map(|endpoint| describe_endpoint(endpoint))
            .collect();
        shards.entry(key.host.clone()).or_default().insert(
            key.namespace.clone(),
            json!({ "Shards": { "MCP": described } }),
        );
    }
    json!(shards)
}

fn configz(discovery: &Discovery) -> Value {
    let mut shown = Value::Array(discovery.store.lock().summary().into_values().collect());
    redact(&mut shown);
    shown
}

fn mesh(discovery: &Discovery) -> Value {
    json!(format!("{:?}", discovery.current().push.mesh))
}

fn push_status(discovery: &Discovery) -> Value {
    let current = discovery.current();
    json!({ "version": current.push.version, "ProxyStatus": current.push.status.snapshot() })
}

fn describe_watch(watched: &Watched) -> Value {
    json!({
        "wildcard": watched.is_wildcard,
        "names": watched.asked.names().iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        "sent": watched.sent.len(),
        "nonce_sent": watched.nonce_sent,
        "nonce_acked": watched.nonce_acked,
        "nonce_rejected": watched.nonce_rejected,
        "version_sent": watched.version_sent,
        "version_acked": watched.version_acked,
        "error": watched.error,
    })
}

fn adsz(discovery: &Discovery) -> Value {
    let connections = discovery.connections();
    let rows: Vec<Value> = connections
        .iter()
        .map(|connection| {
            let watches: BTreeMap<&str, Value> = ResourceType::ALL
                .into_iter()
                .filter_map(|kind| {
                    Some((
                        kind.short_name(),
                        describe_watch(&connection.watched(kind)?),
                    ))
                })
                .collect();
            let since = connection.since.elapsed().map_or(0, |age| age.as_secs());
            json!({
                "connectionId": connection.id,
                "address": connection.proxy.ips,
                "delta": connection.is_delta,
                "ageSeconds": since,
                "watches": watches,
            })
        })
        .collect();
    json!({ "totalClients": rows.len(), "clients": rows })
}

fn names_by_connection(discovery: &Discovery, kind: ResourceType) -> Value {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for connection in proxies(discovery) {
        let sent = connection.watched(kind).unwrap_or_default().sent;
        let mut names: Vec<String> = sent.names().map(ToString::to_string).collect();
        names.sort();
        all.insert(connection.id.clone(), names);
    }
    json!(all)
}

fn cdsz(discovery: &Discovery) -> Value {
    names_by_connection(discovery, ResourceType::Cluster)
}

fn edsz(discovery: &Discovery) -> Value {
    names_by_connection(discovery, ResourceType::Endpoint)
}
