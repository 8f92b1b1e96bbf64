//! Gateways: is there a workload, is its port reachable, is its certificate there, does another gateway claim the same.

use super::super::{
    Code, Context, Object,
    context::{selector_text, selects},
    message::Messages,
    object::{GATEWAY, POD, SECRET, SERVICE, item_texts, items, text, texts},
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

mod credential;

pub(super) fn check_ports(context: &Context, messages: &mut Messages) {
    for gateway in context.of(GATEWAY) {
        let selector = texts(&gateway.spec()["selector"]);
        let mut has_pods = false;
        let mut ports = BTreeSet::new();
        for pod in context.pods(&selector) {
            has_pods = true;
            ports.extend(listening_ports(context, pod));
        }
        if !has_pods {
            not_selected(gateway, &selector, messages);
            continue;
        }
        for (index, server) in items(&gateway.spec()["servers"]).enumerate() {
            let Some(number) = server["port"]["number"].as_u64() else {
                continue;
            };
            if !ports.contains(&number) {
                let text = format!(
                    "No service leads to port {number} of the pods with {}",
                    selector_text(&selector)
                );
                let path = format!("spec.servers[{index}].port.number");
                messages.add(Code::GatewayPortNotDefinedOnService, gateway, &path, text);
            }
        }
    }
}

/// The ports of the pod that services lead to.
fn listening_ports(context: &Context, pod: &Object) -> Vec<u64> {
    let leads_here = |service: &&Object| {
        let selector = texts(&service.spec()["selector"]);
        service.namespace == pod.namespace && selects(&selector, &pod.labels)
    };
    // A server's port is the workload's or the service's: the gateway listens on the one that the other leads to.
    let numbers = |port: &Value| {
        let protocol = text(&port["protocol"]);
        let is_tcp = protocol.is_empty() || protocol == "TCP";
        [port["targetPort"].as_u64(), port["port"].as_u64()].map(|port| port.filter(|_| is_tcp))
    };
    context
        .of(SERVICE)
        .filter(leads_here)
        .flat_map(|service| items(&service.spec()["ports"]).flat_map(numbers))
        .flatten()
        .collect()
}

fn not_selected(gateway: &Object, selector: &BTreeMap<String, String>, messages: &mut Messages) {
    let text = format!(
        "Referenced selector not found: {:?}",
        selector_text(selector)
    );
    let path = "spec.selector";
    messages.add(Code::ReferencedResourceNotFound, gateway, path, text);
}

pub(super) fn check_secrets(context: &Context, messages: &mut Messages) {
    for gateway in context.of(GATEWAY) {
        let selector = texts(&gateway.spec()["selector"]);
        // Secrets are those of the workload's namespace, not of the gateway's.
        let Some(pod) = context.pods(&selector).next() else {
            not_selected(gateway, &selector, messages);
            continue;
        };
        if pod.namespace.is_empty() {
            // QUIRK: Istio says the selector is not found. Only a file that names no namespaces gets here.
            let text = format!(
                "Referenced selector not found: {:?} selects {}, whose namespace is not known (name one, or use --namespace)",
                selector_text(&selector),
                pod.title()
            );
            let path = "spec.selector";
            messages.add(Code::ReferencedResourceNotFound, gateway, path, text);
            continue;
        }
        for (index, server) in items(&gateway.spec()["servers"]).enumerate() {
            let names = item_texts(&server["tls"]["credentialNames"]);
            let name = text(&server["tls"]["credentialName"]);
            for name in names.chain((!name.is_empty()).then_some(name)) {
                let path = format!("spec.servers[{index}].tls.credentialName");
                check_secret(context, gateway, &pod.namespace, name, &path, messages);
            }
        }
    }
}

fn check_secret(
    context: &Context,
    gateway: &Object,
    namespace: &str,
    name: &str,
    path: &str,
    messages: &mut Messages,
) {
    let bare = name.strip_prefix("kubernetes://").unwrap_or(name);
    let Some(secret) = context.find(SECRET, namespace, bare) else {
        if !context.is_read(SECRET) {
            return;
        }
        let text =
            format!("Referenced credentialName not found: {name:?} in namespace {namespace}");
        messages.add(Code::ReferencedResourceNotFound, gateway, path, text);
        return;
    };
    if let Err(problem) = credential::check(secret) {
        let text = format!("Secret {namespace}/{bare} cannot be used: {problem}");
        messages.add(Code::InvalidGatewayCredential, gateway, path, text);
    }
}

pub(super) fn check_certificates(context: &Context, messages: &mut Messages) {
    for gateway in context.of(GATEWAY) {
        let selector = texts(&gateway.spec()["selector"]);
        for other in context.of(GATEWAY) {
            let is_same = other.full_name() == gateway.full_name();
            if is_same || !selects(&selector, &texts(&other.spec()["selector"])) {
                continue;
            }
            let shares = items(&gateway.spec()["servers"]).any(|own| {
                items(&other.spec()["servers"])
                    .any(|server| has_same_certificate(&own["tls"], &server["tls"]))
            });
            if shares {
                let text = format!(
                    "Gateways {} and {} have the same certificate",
                    gateway.full_name(),
                    other.full_name()
                );
                let path = "metadata.name";
                messages.add(Code::GatewayDuplicateCertificate, gateway, path, text);
            }
        }
    }
}

fn has_same_certificate(own: &Value, other: &Value) -> bool {
    let same = |field: &str| !text(&own[field]).is_empty() && own[field] == other[field];
    let has_secret = |tls: &Value| !text(&tls["credentialName"]).is_empty();
    if has_secret(own) || has_secret(other) {
        return same("credentialName");
    }
    same("serverCertificate") && same("privateKey")
}

/// A gateway's claim: what it selects, and host and bind address by port.
struct Claim<'a> {
    gateway: &'a Object,
    selector: BTreeMap<String, String>,
    hosts: BTreeSet<(u64, &'a str, &'a str)>,
}

pub(super) fn check_conflicts(context: &Context, messages: &mut Messages) {
    let claims: Vec<Claim<'_>> = context
        .of(GATEWAY)
        .map(|gateway| Claim {
            gateway,
            selector: texts(&gateway.spec()["selector"]),
            hosts: items(&gateway.spec()["servers"])
                .flat_map(|server| item_texts(&server["hosts"]).map(move |host| (server, host)))
                .map(|(server, host)| (port_of(server), host, text(&server["bind"])))
                .collect(),
        })
        .collect();
    for claim in &claims {
        let servers = items(&claim.gateway.spec()["servers"]).count();
        let is_shared = claims.iter().any(|other| {
            !other.hosts.is_empty() && is_same_workload(context, &claim.selector, &other.selector)
        });
        if servers == 0 && !claim.selector.is_empty() && !is_shared {
            not_selected(claim.gateway, &claim.selector, messages);
            continue;
        }
        check_claim(context, claim, &claims, messages);
    }
}

fn check_claim(context: &Context, claim: &Claim<'_>, all: &[Claim<'_>], messages: &mut Messages) {
    let others: Vec<&Claim<'_>> = all
        .iter()
        .filter(|other| !std::ptr::eq(other.gateway, claim.gateway))
        .filter(|other| !claim.hosts.is_disjoint(&other.hosts))
        .filter(|other| is_same_workload(context, &claim.selector, &other.selector))
        .collect();
    for (index, server) in items(&claim.gateway.spec()["servers"]).enumerate() {
        let (port, bind) = (port_of(server), text(&server["bind"]));
        let hosts: Vec<&str> = item_texts(&server["hosts"]).collect();
        let names: BTreeSet<String> = others
            .iter()
            .filter(|other| {
                hosts
                    .iter()
                    .any(|host| other.hosts.contains(&(port, *host, bind)))
            })
            .map(|other| other.gateway.full_name())
            .collect();
        if !names.is_empty() {
            let names: Vec<String> = names.into_iter().collect();
            let text = format!(
                "Gateways {} also claim port {port} and hosts {} of the pods with {}",
                names.join(", "),
                hosts.join(", "),
                selector_text(&claim.selector)
            );
            let path = format!("spec.servers[{index}].hosts");
            messages.add(Code::ConflictingGateways, claim.gateway, &path, text);
        }
    }
}

fn port_of(server: &Value) -> u64 {
    server["port"]["number"].as_u64().unwrap_or_default()
}

/// Whether both select the same pods, or one selects some of the other's.
fn is_same_workload(
    context: &Context,
    one: &BTreeMap<String, String>,
    other: &BTreeMap<String, String>,
) -> bool {
    if one == other {
        return true;
    }
    let is_part = selects(one, other) || selects(other, one);
    is_part
        && context
            .of(POD)
            .any(|pod| selects(one, &pod.labels) && selects(other, &pod.labels))
}
