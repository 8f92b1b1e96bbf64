//! Fields and kinds that still work, or no longer do, and what took their place.

use super::super::{
    Code, Context,
    message::Messages,
    object::{
        CUSTOM_RESOURCE_DEFINITION, MESH_POLICY, POLICY, SERVICE_ROLE_BINDING, SIDECAR, TELEMETRY,
        VIRTUAL_SERVICE, items, text,
    },
};

const REMOVED_KINDS: [&str; 4] = [
    "ClusterRbacConfig",
    "RbacConfig",
    "ServiceRole",
    "ServiceRoleBinding",
];

pub(super) fn check(context: &Context, messages: &mut Messages) {
    for service in context.of(VIRTUAL_SERVICE) {
        for (index, route) in items(&service.spec()["http"]).enumerate() {
            let percent = &route["fault"]["delay"]["percent"];
            if percent.as_i64().unwrap_or_default() > 0 {
                let path = format!("spec.http[{index}].fault.delay.percent");
                let text = "fault.delay.percent is deprecated; use fault.delay.percentage";
                messages.add(Code::Deprecated, service, &path, text);
            }
        }
    }
    for sidecar in context.of(SIDECAR) {
        if !sidecar.spec()["outboundTrafficPolicy"]["egressProxy"].is_null() {
            let path = "spec.outboundTrafficPolicy.egressProxy";
            let text = "outboundTrafficPolicy.egressProxy is ignored";
            messages.add(Code::Deprecated, sidecar, path, text);
        }
    }
    for definition in context.of(CUSTOM_RESOURCE_DEFINITION) {
        let spec = definition.spec();
        let kind = text(&spec["names"]["kind"]);
        if spec["group"] == "rbac.istio.io" && REMOVED_KINDS.contains(&kind) {
            let text = format!("Kind {kind} of rbac.istio.io is gone; use AuthorizationPolicy");
            messages.add(Code::Deprecated, definition, "spec.names.kind", text);
        }
    }
    for binding in context.of(SERVICE_ROLE_BINDING) {
        for (index, subject) in items(&binding.spec()["subjects"]).enumerate() {
            if !text(&subject["group"]).is_empty() {
                let path = format!("spec.subjects[{index}].group");
                let text = "subjects.group is deprecated; use subjects.groups";
                messages.add(Code::Deprecated, binding, &path, text);
            }
        }
    }
    for policy in context.of(POLICY) {
        let text = "Policy is deprecated; use PeerAuthentication and RequestAuthentication";
        messages.add(Code::PolicyResourceIsDeprecated, policy, "kind", text);
    }
    for policy in context.of(MESH_POLICY) {
        let text = "MeshPolicy is deprecated; use PeerAuthentication in the root namespace";
        messages.add(Code::MeshPolicyResourceIsDeprecated, policy, "kind", text);
    }
    check_lightstep(context, messages);
}

/// Tracing to Lightstep goes over OpenTelemetry today.
fn check_lightstep(context: &Context, messages: &mut Messages) {
    let deprecated: Vec<&str> = items(&context.mesh_config()["extensionProviders"])
        .filter(|provider| !provider["lightstep"].is_null())
        .map(|provider| text(&provider["name"]))
        .collect();
    for telemetry in context.of(TELEMETRY) {
        for (i, tracing) in items(&telemetry.spec()["tracing"]).enumerate() {
            for (j, provider) in items(&tracing["providers"]).enumerate() {
                let name = text(&provider["name"]);
                if deprecated.contains(&name) {
                    let path = format!("spec.tracing[{i}].providers[{j}].name");
                    let text = format!(
                        "Provider {name} is of kind lightstep, which is deprecated; use opentelemetry"
                    );
                    messages.add(Code::Deprecated, telemetry, &path, text);
                }
            }
        }
    }
}
