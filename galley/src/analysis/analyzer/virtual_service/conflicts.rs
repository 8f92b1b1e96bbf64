//! Two virtual services for the mesh's sidecars must not name the same host where both are seen.

use super::super::super::{
    Code, Context, Object,
    context::{EVERYWHERE, MESH_GATEWAY, scopes},
    message::Messages,
    object::{VIRTUAL_SERVICE, item_texts},
};
use proto_mesh::host::matches;
use std::collections::BTreeMap;

pub(in super::super) fn check(context: &Context, messages: &mut Messages) {
    let mut claims: BTreeMap<(String, String), Vec<&Object>> = BTreeMap::new();
    for service in context.of(VIRTUAL_SERVICE) {
        let spec = service.spec();
        let mut gateways = item_texts(&spec["gateways"]).peekable();
        if gateways.peek().is_some() && !gateways.any(|gateway| gateway == MESH_GATEWAY) {
            continue;
        }
        for scope in scopes(item_texts(&spec["exportTo"]), &service.namespace) {
            for host in item_texts(&spec["hosts"]) {
                let host = context.full_host(host, &service.namespace);
                claims
                    .entry((scope.clone(), host))
                    .or_default()
                    .push(service);
            }
        }
    }
    for ((scope, host), own) in &claims {
        // What one namespace sees, it sees beside what everybody sees; wildcards overlap there.
        let public = claims
            .iter()
            .filter(|((other, _), _)| scope != EVERYWHERE && other == EVERYWHERE)
            .filter(|((_, other), _)| matches(host, other))
            .flat_map(|(_, services)| services);
        let services: Vec<&Object> = own.iter().chain(public).copied().collect();
        if services.len() < 2 {
            continue;
        }
        let names: Vec<String> = services.iter().map(|service| service.full_name()).collect();
        let text = format!(
            "Virtual services {} all name the host {host}, seen from {}",
            names.join(", "),
            if scope == EVERYWHERE {
                "everywhere"
            } else {
                scope
            }
        );
        for service in services {
            let code = Code::ConflictingMeshGatewayVirtualServiceHosts;
            messages.add(code, service, "metadata.name", text.clone());
        }
    }
}
