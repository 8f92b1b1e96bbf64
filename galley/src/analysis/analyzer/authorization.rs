//! Policies about who may do what: do they apply to anything, and do the names in them exist.

use super::super::{
    Code, Context, Object,
    context::{CONTROL_PLANE, selector_text, selects},
    message::Messages,
    object::{
        AUTHORIZATION_POLICY, DEPLOYMENT, NAMESPACE, POD, POLICY, REQUEST_AUTHENTICATION, SERVICE,
        SERVICE_ROLE, SERVICE_ROLE_BINDING, item_texts, items, text, texts,
    },
};
use serde_json::Value;
use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

pub(super) fn check(context: &Context, messages: &mut Messages) {
    let mut by_namespace: BTreeMap<&str, Vec<&Labels>> = BTreeMap::new();
    for pod in context.of(POD).filter(|pod| context.is_pod_in_mesh(pod)) {
        by_namespace
            .entry(&pod.namespace)
            .or_default()
            .push(&pod.labels);
    }
    let root = match text(&context.mesh_config()["rootNamespace"]) {
        "" => CONTROL_PLANE,
        root => root,
    };
    for policy in context.of(AUTHORIZATION_POLICY) {
        check_workloads(policy, root, &by_namespace, messages);
        check_namespaces(policy, context, messages);
    }
}

fn check_workloads(
    policy: &Object,
    root: &str,
    pods: &BTreeMap<&str, Vec<&Labels>>,
    messages: &mut Messages,
) {
    let spec = policy.spec();
    if !spec["targetRef"].is_null() || !spec["targetRefs"].is_null() {
        return;
    }
    let has_selector = !spec["selector"].is_null();
    let selector = texts(&spec["selector"]["matchLabels"]);
    let own = pods.get(policy.namespace.as_str());
    let applies = match (policy.namespace == root, has_selector) {
        (true, false) => true,
        (true, true) => pods
            .values()
            .flatten()
            .any(|labels| selects(&selector, labels)),
        (false, false) => own.is_some_and(|pods| !pods.is_empty()),
        (false, true) => {
            own.is_some_and(|pods| pods.iter().any(|labels| selects(&selector, labels)))
        }
    };
    if !applies {
        let text = match selector_text(&selector).as_str() {
            "" => "The policy applies to no pod: its namespace has none in the mesh".to_owned(),
            selector => format!("No pod of the mesh matches {selector}"),
        };
        messages.add(
            Code::NoMatchingWorkloadsFound,
            policy,
            "spec.selector",
            text,
        );
    }
}

fn check_namespaces(policy: &Object, context: &Context, messages: &mut Messages) {
    for (i, rule) in items(&policy.spec()["rules"]).enumerate() {
        for (j, from) in items(&rule["from"]).enumerate() {
            for field in ["namespaces", "notNamespaces"] {
                for (k, wanted) in item_texts(&from["source"][field]).enumerate() {
                    let mut namespaces = context.of(NAMESPACE);
                    if !namespaces.any(|namespace| is_named(&namespace.name, wanted)) {
                        let path = format!("spec.rules[{i}].from[{j}].source.{field}[{k}]");
                        let text = format!("Referenced namespace not found: {wanted:?}");
                        messages.add(Code::ReferencedResourceNotFound, policy, &path, text);
                    }
                }
            }
        }
    }
}

fn is_named(namespace: &str, wanted: &str) -> bool {
    if wanted == "*" {
        true
    } else if let Some(suffix) = wanted.strip_prefix('*') {
        namespace.ends_with(suffix)
    } else if let Some(prefix) = wanted.strip_suffix('*') {
        namespace.starts_with(prefix)
    } else {
        namespace.eq_ignore_ascii_case(wanted)
    }
}

/// Fetching keys should be kept away from the cluster's own addresses.
pub(super) fn check_jwks(context: &Context, messages: &mut Messages) {
    const MOST_NAMES: usize = 5;
    const SETTING: &str = "BLOCKED_CIDRS_IN_JWKS_URIS";
    let names: Vec<String> = context
        .of(REQUEST_AUTHENTICATION)
        .map(Object::full_name)
        .collect();
    if names.is_empty() {
        return;
    }
    for deployment in context.of(DEPLOYMENT) {
        if deployment.labels.get("app").map(String::as_str) != Some("istiod") {
            continue;
        }
        let containers = &deployment.spec()["template"]["spec"]["containers"];
        let is_restricted = items(containers)
            .flat_map(|container| items(&container["env"]))
            .any(|entry| entry["name"] == SETTING && !text(&entry["value"]).is_empty());
        if !is_restricted {
            let mut list = names[..names.len().min(MOST_NAMES)].join(", ");
            if names.len() > MOST_NAMES {
                list += &format!(", and {} more", names.len() - MOST_NAMES);
            }
            let text = format!(
                "{SETTING} is not set while {} objects name addresses to fetch keys from: {list}",
                names.len()
            );
            messages.add(Code::JwksUriFetchUnrestricted, deployment, "", text);
        }
    }
}

/// The 1.4 line's roles: a binding names a role of its own namespace, a role services of its own.
pub(super) fn check_roles(context: &Context, messages: &mut Messages) {
    for binding in context.of(SERVICE_ROLE_BINDING) {
        let role = text(&binding.spec()["roleRef"]["name"]);
        if !role.is_empty()
            && context
                .find(SERVICE_ROLE, &binding.namespace, role)
                .is_none()
        {
            let text = format!("Referenced service role not found: {role:?}");
            let path = "spec.roleRef.name";
            messages.add(Code::ReferencedResourceNotFound, binding, path, text);
        }
    }
    for role in context.of(SERVICE_ROLE) {
        let hosts: Vec<String> = context
            .of(SERVICE)
            .filter(|service| service.namespace == role.namespace)
            .map(|service| context.full_host(&service.name, &service.namespace))
            .collect();
        for (i, rule) in items(&role.spec()["rules"]).enumerate() {
            for (j, wanted) in item_texts(&rule["services"]).enumerate() {
                if !hosts.iter().any(|host| is_named(host, wanted)) && wanted != "*" {
                    let path = format!("spec.rules[{i}].services[{j}]");
                    let text = format!("Referenced service not found: {wanted:?}");
                    messages.add(Code::ReferencedResourceNotFound, role, &path, text);
                }
            }
        }
    }
}

/// The 1.4 line's policies: a token is read on HTTP ports only, and those are known by their names.
pub(super) fn check_token_ports(context: &Context, messages: &mut Messages) {
    for policy in context.of(POLICY) {
        let spec = policy.spec();
        if !items(&spec["origins"]).any(|origin| !origin["jwt"].is_null()) {
            continue;
        }
        for target in items(&spec["targets"]) {
            let service = context.find(SERVICE, &policy.namespace, text(&target["name"]));
            for port in service.into_iter().flat_map(|s| items(&s.spec()["ports"])) {
                if is_targeted(&target["ports"], port) && !speaks_http(port) {
                    let text = format!(
                        "The policy targets port {} ({:?}, {}), which does not speak HTTP by its name; tokens are not read there",
                        port["port"],
                        text(&port["name"]),
                        text(&port["protocol"])
                    );
                    let code = Code::JwtFailureDueToInvalidServicePortPrefix;
                    messages.add(code, policy, "spec.targets", text);
                }
            }
        }
    }
}

fn is_targeted(wanted: &Value, port: &Value) -> bool {
    let mut wanted = items(wanted).peekable();
    wanted.peek().is_none()
        || wanted.any(|wanted| wanted["number"] == port["port"] || wanted["name"] == port["name"])
}

fn speaks_http(port: &Value) -> bool {
    let protocol = text(&port["protocol"]);
    let prefix = text(&port["name"]).split('-').next().unwrap_or_default();
    (protocol.is_empty() || protocol == "TCP") && matches!(prefix, "http" | "http2" | "https")
}
