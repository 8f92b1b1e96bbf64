//! Debug pages about security: what is spoken between a proxy and the services it sees, and who may do what.

use proto::istio::networking::v1alpha3::{ClientTlsSettings, client_tls_settings::TlSmode};
use proto::json::JsonError;
use serde_json::{Value, json};

use crate::networking::View;
use crate::networking::cluster::TrafficPolicy;
use crate::push_context::policies::MtlsMode;
use crate::xds::{Connection, Discovery};

/// One row for each port of each service that the proxy can see.
#[allow(
    clippy::unnecessary_wraps,
    reason = "stands beside pages that can fail"
)]
pub(super) fn authenticationz(
    discovery: &Discovery,
    connection: &Connection,
) -> Result<Value, JsonError> {
    let current = discovery.current();
    let view = View::new(&connection.proxy, &current.push);
    let mut rows = Vec::new();
    for service in &view.scope.services {
        let rule = view.destination_rule(service);
        for port in &service.ports {
            let server = current.push.policies.service_mode(service, port);
            let policy = TrafficPolicy::of(&view, service, port.number, "");
            let client = policy.tls.map(ClientTlsSettings::mode);
            let status = match (server, client) {
                (_, None) => "AUTO",
                (MtlsMode::Strict, Some(TlSmode::IstioMutual))
                | (MtlsMode::Disable, Some(TlSmode::Disable))
                | (MtlsMode::Permissive, Some(_)) => "OK",
                _ => "CONFLICT",
            };
            let rule_name = rule.filter(|_| policy.tls.is_some()).map_or_else(
                || "-".to_owned(),
                |rule| format!("{}/{}", rule.namespace, rule.names.join(",")),
            );
            rows.push(json!({
                "host": service.host,
                "port": port.number,
                "authentication_policy_name": "-",
                "destination_rule_name": rule_name,
                "server_protocol": server_text(server),
                "client_protocol": client.map_or("AUTO", |mode| mode.as_str_name()),
                "TLS_conflict_status": status,
            }));
        }
    }
    Ok(Value::Array(rows))
}

fn server_text(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Disable => "HTTP",
        MtlsMode::Permissive => "HTTP/mTLS",
        MtlsMode::Strict => "mTLS",
    }
}

/// Every authorization policy and role of the 1.4 line.
pub(super) fn authorizationz(discovery: &Discovery) -> Value {
    let all = discovery.store.lock().summary();
    let kinds = [
        "AuthorizationPolicy/",
        "ClusterRbacConfig/",
        "ServiceRole/",
        "ServiceRoleBinding/",
    ];
    let wanted = all
        .into_iter()
        .filter(|(key, _)| kinds.iter().any(|kind| key.starts_with(kind)));
    Value::Array(wanted.map(|(_, value)| value).collect())
}
