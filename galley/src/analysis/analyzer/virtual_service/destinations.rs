//! Destinations: is the host served, on that port, and is the subset defined.

use super::super::super::{
    Code, Context, Object,
    message::Messages,
    object::{DESTINATION_RULE, VIRTUAL_SERVICE, item_texts, items, text},
};
use serde_json::Value;
use std::collections::HashSet;

/// A destination with the path of its field.
struct Destination<'a> {
    path: String,
    value: &'a Value,
    is_mirror: bool,
}

/// All destinations of routes and mirrors.
fn destinations(spec: &Value) -> Vec<Destination<'_>> {
    let mut found = Vec::new();
    for protocol in ["http", "tls", "tcp"] {
        for (i, route) in items(&spec[protocol]).enumerate() {
            for (j, weighted) in items(&route["route"]).enumerate() {
                found.push(Destination {
                    path: format!("spec.{protocol}[{i}].route[{j}].destination"),
                    value: &weighted["destination"],
                    is_mirror: false,
                });
            }
            if !route["mirror"].is_null() {
                found.push(Destination {
                    path: format!("spec.{protocol}[{i}].mirror"),
                    value: &route["mirror"],
                    is_mirror: true,
                });
            }
            for (j, mirror) in items(&route["mirrors"]).enumerate() {
                found.push(Destination {
                    path: format!("spec.{protocol}[{i}].mirrors[{j}].destination"),
                    value: &mirror["destination"],
                    is_mirror: true,
                });
            }
        }
    }
    found
}

pub(in super::super) fn check(context: &Context, messages: &mut Messages) {
    for service in context.of(VIRTUAL_SERVICE) {
        for destination in destinations(service.spec()) {
            check_one(context, service, &destination, messages);
        }
    }
    check_shadowed_subsets(context, messages);
}

fn check_one(
    context: &Context,
    service: &Object,
    destination: &Destination<'_>,
    messages: &mut Messages,
) {
    let host = text(&destination.value["host"]);
    let path = format!("{}.host", destination.path);
    let export_to = &service.spec()["exportTo"];
    let Some(served) = context.host(&service.namespace, export_to, host) else {
        let what = if destination.is_mirror {
            "mirror host"
        } else {
            "host"
        };
        let text = format!("Referenced {what} not found: {host:?}");
        messages.add(Code::ReferencedResourceNotFound, service, &path, text);
        return;
    };
    match destination.value["port"]["number"].as_u64() {
        None if served.ports.len() > 1 => {
            let ports: Vec<String> = served.ports.iter().map(u64::to_string).collect();
            let text = format!("{host} has several ports: name one of {}", ports.join(", "));
            let code = Code::VirtualServiceDestinationPortSelectorRequired;
            messages.add(code, service, &path, text);
        }
        Some(port) if !served.ports.contains(&port) => {
            let text = format!("Referenced host:port not found: \"{host}:{port}\"");
            messages.add(Code::ReferencedResourceNotFound, service, &path, text);
        }
        None | Some(_) => {}
    }
}

/// The subsets that one virtual service chooses for a host do not apply to routes of another one's gateway.
fn check_shadowed_subsets(context: &Context, messages: &mut Messages) {
    let routes = |service: &'_ Object| -> Vec<(String, String, bool)> {
        destinations(service.spec())
            .into_iter()
            .filter(|destination| {
                !destination.is_mirror && destination.path.starts_with("spec.http")
            })
            .map(|destination| {
                let has_subset = !text(&destination.value["subset"]).is_empty();
                let host = text(&destination.value["host"]).to_owned();
                (destination.path, host, has_subset)
            })
            .collect()
    };
    let mut chosen: Vec<(String, String)> = Vec::new();
    for service in context.of(VIRTUAL_SERVICE) {
        for (_, host, has_subset) in routes(service) {
            if has_subset && item_texts(&service.spec()["hosts"]).any(|name| name == host) {
                chosen.push((host, service.full_name()));
            }
        }
    }
    for service in context.of(VIRTUAL_SERVICE) {
        if item_texts(&service.spec()["gateways"]).next().is_none() {
            continue;
        }
        for (path, host, has_subset) in routes(service) {
            for (_, other) in chosen.iter().filter(|(of, _)| *of == host && !has_subset) {
                let text = format!(
                    "Traffic from the gateway to {host} does not follow the subsets that {other} chooses"
                );
                messages.add(Code::IngressRouteRulesNotAffected, service, &path, text);
            }
        }
    }
}

pub(in super::super) fn check_subsets(context: &Context, messages: &mut Messages) {
    let defined: HashSet<(String, &str)> = context
        .of(DESTINATION_RULE)
        .flat_map(|rule| {
            let host = context.full_host(text(&rule.spec()["host"]), &rule.namespace);
            items(&rule.spec()["subsets"]).map(move |subset| (host.clone(), text(&subset["name"])))
        })
        .collect();
    for service in context.of(VIRTUAL_SERVICE) {
        for destination in destinations(service.spec()) {
            let (host, subset) = (
                text(&destination.value["host"]),
                text(&destination.value["subset"]),
            );
            let full_host = context.full_host(host, &service.namespace);
            if !subset.is_empty() && !defined.contains(&(full_host, subset)) {
                let what = if destination.is_mirror {
                    "mirror+subset"
                } else {
                    "host+subset"
                };
                let text =
                    format!("Referenced {what} in destinationrule not found: \"{host}+{subset}\"");
                let path = format!("{}.subset", destination.path);
                messages.add(Code::ReferencedResourceNotFound, service, &path, text);
            }
        }
    }
}
