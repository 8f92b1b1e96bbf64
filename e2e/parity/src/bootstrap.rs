//! Writes a group's configuration as an Envoy v3 bootstrap.
//!
//! The short form: a **cluster** is `{}` (static, one endpoint: the upstream of its name), with `upstreams: [..]` for several,
//! `http2: true`, `tls: {..}` (the TLS context) and any field of Envoy's besides. A **listener** has `routes` (one virtual host
//! for all domains) or `virtual_hosts`, `hcm` (merged into the connection manager), `filters` (HTTP filters before the router),
//! `log` (the access log's format), `tls`; or `network` (network filters instead of HTTP); or `chains` (whole filter chains);
//! and `listener` (merged over it). Extensions go by the short names of [`extension`](crate::extension).

use crate::{
    case::Group,
    extension::{expand, merge},
    group::{ADMIN, Place},
};
use serde_json::{Map, Value, json};

/// The type URL of a message.
fn type_url(message: &str) -> String {
    format!("type.googleapis.com/{message}")
}

/// The bootstrap of a group.
#[must_use]
pub fn bootstrap(group: &Group, place: &Place) -> Value {
    let listeners: Vec<Value> = group
        .listeners
        .iter()
        .enumerate()
        .map(|(index, (name, short))| listener(name, index, short, place))
        .collect();
    let clusters: Vec<Value> = group
        .clusters
        .iter()
        .map(|(name, short)| cluster(name, short, group, place))
        .collect();
    let mut bootstrap = json!({
        "node": {"id": "parity", "cluster": "parity-cluster", "locality": {"region": "r1", "zone": "z1"}},
        "admin": {"address": socket(&place.address.to_string(), ADMIN)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    merge(&mut bootstrap, &group.bootstrap);
    // Lists that are given beside the short forms are added to them.
    for kind in ["listeners", "clusters"] {
        let Some(more) = group
            .bootstrap
            .pointer(&format!("/static_resources/{kind}"))
            .and_then(Value::as_array)
        else {
            continue;
        };
        let short = if kind == "listeners" {
            &listeners
        } else {
            &clusters
        };
        let all: Vec<Value> = short.iter().chain(more).cloned().collect();
        bootstrap["static_resources"][kind] = Value::Array(all);
    }
    expand(&mut bootstrap);
    bootstrap
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// The port of a named upstream, as [`group`](crate::group) numbers them.
#[must_use]
pub fn upstream_port(group: &Group, name: &str) -> Option<u16> {
    let index = group.upstreams.get_index_of(name)?;
    group.upstreams[index]
        .port
        .or_else(|| Some(20000 + u16::try_from(index).ok()?))
}

/// The port of a named listener.
#[must_use]
pub fn listener_port(group: &Group, name: &str) -> Option<u16> {
    let index = group.listeners.get_index_of(name)?;
    let own = group.listeners[index].get("port").and_then(Value::as_u64);
    own.and_then(|port| u16::try_from(port).ok())
        .or_else(|| Some(10000 + u16::try_from(index).ok()?))
}

/// Takes a field out of a short form.
fn take(map: &mut Map<String, Value>, key: &str) -> Option<Value> {
    map.remove(key)
}

fn endpoint(name: &str, group: &Group, place: &Place) -> Value {
    let path = group
        .upstreams
        .get(name)
        .and_then(|upstream| upstream.unix.clone());
    let address = match path {
        Some(path) => json!({"pipe": {"path": path}}),
        None => socket(
            &place.address.to_string(),
            upstream_port(group, name).unwrap_or(1),
        ),
    };
    json!({"endpoint": {"address": address}})
}

fn cluster(name: &str, short: &Value, group: &Group, place: &Place) -> Value {
    let mut rest = short.as_object().cloned().unwrap_or_default();
    let names: Vec<String> = match take(&mut rest, "upstreams") {
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(|name| name.as_str().map(ToOwned::to_owned))
            .collect(),
        _ => vec![name.to_owned()],
    };
    let mut cluster = json!({"name": name, "connect_timeout": "2s"});
    if !rest.contains_key("cluster_type") && !rest.contains_key("type") {
        cluster["type"] = "STATIC".into();
    }
    if !rest.contains_key("load_assignment")
        && !rest.contains_key("eds_cluster_config")
        && !rest.contains_key("cluster_type")
        && rest.get("type").is_none_or(|kind| kind != "ORIGINAL_DST")
    {
        let endpoints: Vec<Value> = names
            .iter()
            .map(|name| endpoint(name, group, place))
            .collect();
        cluster["load_assignment"] =
            json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]});
    }
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mut protocol = take(&mut rest, "protocol").unwrap_or(Value::Null);
    if take(&mut rest, "http2").is_some() {
        protocol = json!({"explicit_http_config": {"http2_protocol_options": {}}});
    }
    if !protocol.is_null() {
        let mut typed = json!({"@type": type_url(options)});
        merge(&mut typed, &protocol);
        if typed.get("explicit_http_config").is_none()
            && typed.get("use_downstream_protocol_config").is_none()
            && typed.get("auto_config").is_none()
        {
            typed["explicit_http_config"] = json!({"http_protocol_options": {}});
        }
        cluster["typed_extension_protocol_options"] = json!({options: typed});
    }
    if let Some(context) = take(&mut rest, "tls") {
        cluster["transport_socket"] = tls("UpstreamTlsContext", &context);
    }
    merge(&mut cluster, &Value::Object(rest));
    cluster
}

fn tls(message: &str, context: &Value) -> Value {
    let mut typed =
        json!({"@type": type_url(&format!("envoy.extensions.transport_sockets.tls.v3.{message}"))});
    merge(&mut typed, context);
    json!({"name": "envoy.transport_sockets.tls", "typed_config": typed})
}

fn listener(name: &str, index: usize, short: &Value, place: &Place) -> Value {
    let mut rest = short.as_object().cloned().unwrap_or_default();
    let own = take(&mut rest, "port").and_then(|port| port.as_u64());
    let port = own
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(10000 + u16::try_from(index).unwrap_or_default());
    let over = take(&mut rest, "listener").unwrap_or(Value::Null);
    let context = take(&mut rest, "tls");
    let mut listener = json!({"name": name, "address": socket(&place.address.to_string(), port)});
    let mut chains = match (take(&mut rest, "chains"), take(&mut rest, "network")) {
        (Some(chains), _) => chains,
        (None, Some(network)) => json!([{"filters": network}]),
        (None, None) => json!([{"filters": [connection_manager(name, &mut rest, place)]}]),
    };
    if let (Some(context), Some(chain)) = (context, chains.get_mut(0)) {
        chain["transport_socket"] = tls("DownstreamTlsContext", &context);
    }
    for chain in chains.as_array_mut().into_iter().flatten() {
        short_chain(name, chain, place);
    }
    listener["filter_chains"] = chains;
    merge(&mut listener, &Value::Object(rest));
    merge(&mut listener, &over);
    if let Some(chain) = listener.get_mut("default_filter_chain") {
        short_chain(name, chain, place);
    }
    listener
}

/// A chain may say `tls` (its context), `reply` (the text that a connection is answered with) or `http` (a listener's short form).
fn short_chain(name: &str, chain: &mut Value, place: &Place) {
    let Some(map) = chain.as_object_mut() else {
        return;
    };
    if let Some(context) = map.remove("tls") {
        map.insert(
            "transport_socket".to_owned(),
            tls("DownstreamTlsContext", &context),
        );
    }
    if let Some(Value::String(text)) = map.remove("reply") {
        let filter = json!({"direct_response": {"response": {"inline_string": text}}});
        map.insert("filters".to_owned(), json!([filter]));
    }
    if let Some(Value::Object(mut http)) = map.remove("http") {
        let filter = connection_manager(name, &mut http, place);
        map.insert("filters".to_owned(), json!([filter]));
    }
}

fn connection_manager(name: &str, rest: &mut Map<String, Value>, place: &Place) -> Value {
    let hosts = take(rest, "virtual_hosts").unwrap_or_else(|| {
        let routes = rest
            .remove("routes")
            .unwrap_or_else(|| json!([{"match": {"prefix": "/"}, "route": {"cluster": "echo"}}]));
        json!([{"name": "all", "domains": ["*"], "routes": routes}])
    });
    let mut filters = take(rest, "filters")
        .and_then(|filters| filters.as_array().cloned())
        .unwrap_or_default();
    filters.push("router".into());
    let mut manager = json!({
        "stat_prefix": name,
        "route_config": {"name": format!("{name}-routes"), "virtual_hosts": hosts},
        "http_filters": filters,
    });
    if let Some(Value::String(format)) = take(rest, "log") {
        manager["access_log"] = file_log(
            name,
            &json!({"text_format_source": {"inline_string": format!("{format}\n")}}),
            place,
        );
    }
    if let Some(format) = take(rest, "json_log") {
        manager["access_log"] = file_log(name, &json!({"json_format": format}), place);
    }
    if let Some(over) = take(rest, "hcm") {
        if over.get("rds").is_some() {
            manager
                .as_object_mut()
                .map(|manager| manager.remove("route_config"));
        }
        merge(&mut manager, &over);
    }
    json!({"http_connection_manager": manager})
}

/// The access log of a listener: a file in the run's folder.
fn file_log(name: &str, format: &Value, place: &Place) -> Value {
    json!([{"file": {"path": format!("{}/{name}.log", place.dir), "log_format": format}}])
}
