//! Short names of Envoy's extensions: `{rbac: {...}}` in a list of HTTP filters stands for the filter's full name and type.

/// Full name and type of one extension.
type Row = (&'static str, &'static str, &'static str);

/// HTTP filters.
const HTTP: &[Row] = &[
    (
        "set_filter_state",
        "envoy.filters.http.set_filter_state",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
    ),
    (
        "router",
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
    ),
    (
        "cors",
        "envoy.filters.http.cors",
        "envoy.extensions.filters.http.cors.v3.Cors",
    ),
    (
        "fault",
        "envoy.filters.http.fault",
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
    ),
    (
        "rbac",
        "envoy.filters.http.rbac",
        "envoy.extensions.filters.http.rbac.v3.RBAC",
    ),
    (
        "jwt_authn",
        "envoy.filters.http.jwt_authn",
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    ),
    (
        "ext_authz",
        "envoy.filters.http.ext_authz",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    ),
    (
        "ratelimit",
        "envoy.filters.http.ratelimit",
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
    ),
    (
        "local_ratelimit",
        "envoy.filters.http.local_ratelimit",
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
    ),
    (
        "buffer",
        "envoy.filters.http.buffer",
        "envoy.extensions.filters.http.buffer.v3.Buffer",
    ),
    (
        "compressor",
        "envoy.filters.http.compressor",
        "envoy.extensions.filters.http.compressor.v3.Compressor",
    ),
    (
        "decompressor",
        "envoy.filters.http.decompressor",
        "envoy.extensions.filters.http.decompressor.v3.Decompressor",
    ),
    (
        "health_check",
        "envoy.filters.http.health_check",
        "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    ),
    (
        "header_to_metadata",
        "envoy.filters.http.header_to_metadata",
        "envoy.extensions.filters.http.header_to_metadata.v3.Config",
    ),
    (
        "set_metadata",
        "envoy.filters.http.set_metadata",
        "envoy.extensions.filters.http.set_metadata.v3.Config",
    ),
    (
        "grpc_stats",
        "envoy.filters.http.grpc_stats",
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    ),
    (
        "grpc_web",
        "envoy.filters.http.grpc_web",
        "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    ),
    (
        "dynamic_forward_proxy",
        "envoy.filters.http.dynamic_forward_proxy",
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
    ),
    (
        "header_mutation",
        "envoy.filters.http.header_mutation",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    ),
    (
        "lua",
        "envoy.filters.http.lua",
        "envoy.extensions.filters.http.lua.v3.Lua",
    ),
];
/// What per-route configuration of HTTP filters is called where it differs from the filter's own.
const PER_ROUTE: &[Row] = &[
    (
        "set_filter_state",
        "envoy.filters.http.set_filter_state",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
    ),
    (
        "cors",
        "envoy.filters.http.cors",
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    ),
    (
        "rbac",
        "envoy.filters.http.rbac",
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    ),
    (
        "jwt_authn",
        "envoy.filters.http.jwt_authn",
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
    ),
    (
        "ext_authz",
        "envoy.filters.http.ext_authz",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
    ),
    (
        "ratelimit",
        "envoy.filters.http.ratelimit",
        "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
    ),
    (
        "buffer",
        "envoy.filters.http.buffer",
        "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
    ),
    (
        "compressor",
        "envoy.filters.http.compressor",
        "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute",
    ),
    (
        "header_mutation",
        "envoy.filters.http.header_mutation",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
    ),
    ("disabled", "", "envoy.config.route.v3.FilterConfig"),
];
/// Network filters.
const NETWORK: &[Row] = &[
    (
        "set_filter_state",
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
    ),
    (
        "tcp_proxy",
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    ),
    (
        "rbac",
        "envoy.filters.network.rbac",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
    ),
    (
        "sni_cluster",
        "envoy.filters.network.sni_cluster",
        "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
    ),
    (
        "sni_dynamic_forward_proxy",
        "envoy.filters.network.sni_dynamic_forward_proxy",
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
    ),
    (
        "echo",
        "envoy.filters.network.echo",
        "envoy.extensions.filters.network.echo.v3.Echo",
    ),
    (
        "direct_response",
        "envoy.filters.network.direct_response",
        "envoy.extensions.filters.network.direct_response.v3.Config",
    ),
    (
        "connection_limit",
        "envoy.filters.network.connection_limit",
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
    ),
    (
        "local_ratelimit",
        "envoy.filters.network.local_ratelimit",
        "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
    ),
    (
        "ext_authz",
        "envoy.filters.network.ext_authz",
        "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
    ),
    (
        "redis_proxy",
        "envoy.filters.network.redis_proxy",
        "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
    ),
    (
        "mongo_proxy",
        "envoy.filters.network.mongo_proxy",
        "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy",
    ),
    (
        "mysql_proxy",
        "envoy.filters.network.mysql_proxy",
        "envoy.extensions.filters.network.mysql_proxy.v3.MySQLProxy",
    ),
    (
        "http_connection_manager",
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
];
/// Listener filters.
const LISTENER: &[Row] = &[
    (
        "set_filter_state",
        "envoy.filters.listener.set_filter_state",
        "envoy.extensions.filters.listener.set_filter_state.v3.Config",
    ),
    (
        "tls_inspector",
        "envoy.filters.listener.tls_inspector",
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    ),
    (
        "http_inspector",
        "envoy.filters.listener.http_inspector",
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    ),
    (
        "proxy_protocol",
        "envoy.filters.listener.proxy_protocol",
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    ),
    (
        "original_dst",
        "envoy.filters.listener.original_dst",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    ),
    (
        "original_src",
        "envoy.filters.listener.original_src",
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
    ),
];
/// Access loggers.
const LOG: &[Row] = &[
    (
        "file",
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    ),
    (
        "stdout",
        "envoy.access_loggers.stdout",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
    ),
    (
        "http_grpc",
        "envoy.access_loggers.http_grpc",
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    ),
    (
        "tcp_grpc",
        "envoy.access_loggers.tcp_grpc",
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
    ),
    (
        "open_telemetry",
        "envoy.access_loggers.open_telemetry",
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
    ),
];

use serde_json::{Map, Value, json};

/// Writes short names out, everywhere in a configuration: in the lists that hold filters and in per-route configurations.
pub fn expand(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(expand),
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match key.as_str() {
                    "http_filters" => list(value, HTTP),
                    "listener_filters" => list(value, LISTENER),
                    "filters" => list(value, NETWORK),
                    "access_log" => list(value, LOG),
                    "typed_per_filter_config" => per_route(value),
                    _ => {}
                }
                expand(value);
            }
        }
        _ => {}
    }
}

fn list(value: &mut Value, table: &[Row]) {
    for item in value.as_array_mut().into_iter().flatten() {
        let short = match &*item {
            Value::String(name) => Some((name.clone(), json!({}), Map::new())),
            Value::Object(map) => {
                map.iter()
                    .next()
                    .filter(|_| !map.contains_key("name"))
                    .map(|(name, config)| {
                        let rest: Map<String, Value> = map.clone().into_iter().skip(1).collect();
                        (name.clone(), config.clone(), rest)
                    })
            }
            _ => None,
        };
        let Some((name, config, rest)) = short else {
            continue;
        };
        if let Some((_, full, message)) = table.iter().find(|row| row.0 == name) {
            let mut filter = json!({"name": full, "typed_config": typed(message, &config)});
            merge(&mut filter, &Value::Object(rest));
            *item = filter;
        }
    }
}

fn per_route(value: &mut Value) {
    let Some(map) = value.as_object_mut() else {
        return;
    };
    let entries: Vec<(String, Value)> = std::mem::take(map).into_iter().collect();
    for (name, config) in entries {
        let is_short = config.get("@type").is_none() && !name.contains('.');
        let row = PER_ROUTE.iter().chain(HTTP).find(|row| row.0 == name);
        let (name, config) = match row.filter(|_| is_short) {
            Some((_, full, _))
                if config.get("disabled").is_some()
                    && name != "rbac"
                    && config.as_object().is_some_and(|config| config.len() == 1)
                    && !matches!(name.as_str(), "ext_authz" | "buffer" | "compressor") =>
            {
                (
                    (*full).to_owned(),
                    typed("envoy.config.route.v3.FilterConfig", &config),
                )
            }
            Some((_, full, message)) => ((*full).to_owned(), typed(message, &config)),
            None => (name, config),
        };
        map.insert(name, config);
    }
}

fn typed(message: &str, config: &Value) -> Value {
    let mut typed = json!({"@type": format!("type.googleapis.com/{message}")});
    merge(&mut typed, config);
    typed
}

/// Merges `over` into `value`: maps by key, everything else replaced.
pub fn merge(value: &mut Value, over: &Value) {
    match (value, over) {
        (Value::Object(map), Value::Object(over)) => {
            for (key, over) in over {
                merge(map.entry(key.clone()).or_insert(Value::Null), over);
            }
        }
        (_, Value::Null) => {}
        (value, over) => *value = over.clone(),
    }
}
