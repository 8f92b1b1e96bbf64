//! Filter names of the 1.4 line and what they are called today; and today's messages of filters that used to be configured
//! without naming one.

use serde_json::{Map, Value, json};

/// Old name, today's name, today's message.
const FILTERS: &[(&str, &str, &str)] = &[
    (
        "envoy.buffer",
        "envoy.filters.http.buffer",
        "envoy.extensions.filters.http.buffer.v3.Buffer",
    ),
    (
        "envoy.client_ssl_auth",
        "envoy.filters.network.client_ssl_auth",
        "",
    ),
    (
        "envoy.cors",
        "envoy.filters.http.cors",
        "envoy.extensions.filters.http.cors.v3.Cors",
    ),
    (
        "envoy.csrf",
        "envoy.filters.http.csrf",
        "envoy.extensions.filters.http.csrf.v3.CsrfPolicy",
    ),
    (
        "envoy.echo",
        "envoy.filters.network.echo",
        "envoy.extensions.filters.network.echo.v3.Echo",
    ),
    (
        "envoy.ext_authz",
        "envoy.filters.http.ext_authz",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    ),
    (
        "envoy.fault",
        "envoy.filters.http.fault",
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
    ),
    (
        "envoy.grpc_http1_bridge",
        "envoy.filters.http.grpc_http1_bridge",
        "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config",
    ),
    (
        "envoy.grpc_json_transcoder",
        "envoy.filters.http.grpc_json_transcoder",
        "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
    ),
    (
        "envoy.grpc_web",
        "envoy.filters.http.grpc_web",
        "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    ),
    (
        "envoy.gzip",
        "envoy.filters.http.gzip",
        "envoy.extensions.filters.http.gzip.v3.Gzip",
    ),
    (
        "envoy.health_check",
        "envoy.filters.http.health_check",
        "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    ),
    (
        "envoy.http_connection_manager",
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
    (
        "envoy.ip_tagging",
        "envoy.filters.http.ip_tagging",
        "envoy.extensions.filters.http.ip_tagging.v3.IPTagging",
    ),
    (
        "envoy.lua",
        "envoy.filters.http.lua",
        "envoy.extensions.filters.http.lua.v3.Lua",
    ),
    (
        "envoy.mongo_proxy",
        "envoy.filters.network.mongo_proxy",
        "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy",
    ),
    (
        "envoy.rate_limit",
        "envoy.filters.http.ratelimit",
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
    ),
    (
        "envoy.ratelimit",
        "envoy.filters.network.ratelimit",
        "envoy.extensions.filters.network.ratelimit.v3.RateLimit",
    ),
    (
        "envoy.redis_proxy",
        "envoy.filters.network.redis_proxy",
        "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
    ),
    (
        "envoy.router",
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
    ),
    ("envoy.squash", "envoy.filters.http.squash", ""),
    (
        "envoy.tcp_proxy",
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    ),
    (
        "envoy.listener.http_inspector",
        "envoy.filters.listener.http_inspector",
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    ),
    (
        "envoy.listener.original_dst",
        "envoy.filters.listener.original_dst",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    ),
    (
        "envoy.listener.original_src",
        "envoy.filters.listener.original_src",
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
    ),
    (
        "envoy.listener.proxy_protocol",
        "envoy.filters.listener.proxy_protocol",
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    ),
    (
        "envoy.listener.tls_inspector",
        "envoy.filters.listener.tls_inspector",
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    ),
    (
        "envoy.filters.http.rbac",
        "envoy.filters.http.rbac",
        "envoy.extensions.filters.http.rbac.v3.RBAC",
    ),
    (
        "envoy.filters.network.rbac",
        "envoy.filters.network.rbac",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
    ),
    (
        "envoy.filters.http.header_to_metadata",
        "envoy.filters.http.header_to_metadata",
        "envoy.extensions.filters.http.header_to_metadata.v3.Config",
    ),
    (
        "envoy.filters.http.jwt_authn",
        "envoy.filters.http.jwt_authn",
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    ),
];

/// Today's name of a filter; names that are not old stay.
pub(super) fn today(name: &str) -> &str {
    FILTERS
        .iter()
        .find(|(old, ..)| *old == name)
        .map_or(name, |(_, new, _)| new)
}

/// What the types of filters' messages began with in Envoy's second API.
const SECOND_API: &str = "type.googleapis.com/envoy.config.filter.";

/// Rewrites a filter as the 1.4 line wrote it: an old name, `config` in the place of `typed_config`, or a `typed_config` of
/// Envoy's second API, whose messages are today's but for their names.
pub(super) fn modernize(filter: &mut Map<String, Value>) {
    let Some(name) = filter.get("name").and_then(Value::as_str) else {
        return;
    };
    let name = today(name).to_owned();
    let message = FILTERS
        .iter()
        .find(|(_, new, _)| *new == name)
        .map_or("", |(.., message)| message);
    if !message.is_empty()
        && !filter.contains_key("typed_config")
        && !filter.contains_key("typedConfig")
        && let Some(config) = filter.remove("config")
    {
        let mut typed = Map::from_iter([(
            "@type".to_owned(),
            json!(format!("{}{message}", proto::type_url::PREFIX)),
        )]);
        if let Value::Object(fields) = config {
            typed.extend(fields);
        }
        filter.insert("typed_config".to_owned(), Value::Object(typed));
    }
    let typed = ["typed_config", "typedConfig"]
        .into_iter()
        .find(|key| filter.contains_key(*key))
        .and_then(|key| filter[key].get_mut("@type"));
    if let Some(kind) = typed
        && !message.is_empty()
        && kind
            .as_str()
            .is_some_and(|kind| kind.starts_with(SECOND_API))
    {
        *kind = json!(format!("{}{message}", proto::type_url::PREFIX));
    }
    filter.insert("name".to_owned(), Value::String(name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_old_name_becomes_todays_with_its_message() {
        for (old, new, message) in FILTERS {
            assert_eq!(today(old), *new);
            assert_eq!(today(new), *new, "{old}: what is new stays");
            if message.is_empty() {
                continue;
            }
            let url = format!("{}{message}", proto::type_url::PREFIX);
            for config in [
                json!({"name": old, "config": {"a": 1}}),
                json!({"name": old, "typed_config": {"@type": format!("{SECOND_API}x.v2.Y"), "a": 1}}),
                json!({"name": new, "typed_config": {"@type": url, "a": 1}}),
            ] {
                let mut filter = config.as_object().unwrap().clone();
                modernize(&mut filter);
                let wanted = json!({"name": new, "typed_config": {"@type": url, "a": 1}});
                assert_eq!(Value::Object(filter), wanted, "{config}");
            }
        }
    }

    #[test]
    fn what_is_not_known_stays() {
        let own =
            json!({"name": "mine", "typed_config": {"@type": "type.googleapis.com/mine.Filter"}});
        let mut filter = own.as_object().unwrap().clone();
        modernize(&mut filter);
        assert_eq!(Value::Object(filter), own);
    }
}
