//! Service entries: TCP ones need addresses, and all agree on a port's protocol.

use super::super::{
    Code, Context, Object,
    context::{EVERYWHERE, scopes},
    message::Messages,
    object::{SERVICE_ENTRY, item_texts, items, text},
};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn check_addresses(context: &Context, messages: &mut Messages) {
    let metadata = &context.mesh_config()["defaultConfig"]["proxyMetadata"];
    let is_on = |key: &str| metadata[key] == "true";
    if is_on("ISTIO_META_DNS_CAPTURE") && is_on("ISTIO_META_DNS_AUTO_ALLOCATE") {
        return;
    }
    for entry in context.of(SERVICE_ENTRY) {
        let spec = entry.spec();
        if items(&spec["addresses"]).next().is_some() {
            continue;
        }
        for (index, port) in items(&spec["ports"]).enumerate() {
            if matches!(text(&port["protocol"]), "" | "TCP") {
                let path = format!("spec.ports[{index}]");
                let text = format!(
                    "TCP port {} needs spec.addresses: without, it takes the traffic of every host on that port",
                    port["number"]
                );
                messages.add(Code::ServiceEntryAddressesRequired, entry, &path, text);
            }
        }
    }
}

/// Who sees it, the host, its number.
type Port<'a> = (String, &'a str, u64);

pub(super) fn check_protocols(context: &Context, messages: &mut Messages) {
    let mut index: BTreeMap<Port<'_>, Vec<(String, &Object)>> = BTreeMap::new();
    for entry in context.of(SERVICE_ENTRY) {
        let spec = entry.spec();
        for scope in scopes(item_texts(&spec["exportTo"]), &entry.namespace) {
            for host in item_texts(&spec["hosts"]) {
                for port in items(&spec["ports"]) {
                    let number = port["number"].as_u64().unwrap_or_default();
                    let protocol = text(&port["protocol"]).to_ascii_uppercase();
                    let key = (scope.clone(), host, number);
                    index.entry(key).or_default().push((protocol, entry));
                }
            }
        }
    }
    let mut told = BTreeSet::new();
    for ((scope, host, port), entries) in &index {
        let everywhere = (EVERYWHERE.to_owned(), *host, *port);
        let public = index.get(&everywhere).filter(|_| scope != EVERYWHERE);
        let all: Vec<&(String, &Object)> =
            entries.iter().chain(public.into_iter().flatten()).collect();
        let protocols: BTreeSet<&str> = all.iter().map(|(protocol, _)| protocol.as_str()).collect();
        if protocols.len() < 2 {
            continue;
        }
        let names: BTreeSet<String> = all.iter().map(|(_, entry)| entry.full_name()).collect();
        let join = |texts: Vec<&str>| texts.join(", ");
        let text = format!(
            "Service entries {} give port {port} of {host} different protocols: {}",
            join(names.iter().map(String::as_str).collect()),
            join(protocols.into_iter().collect())
        );
        for (_, entry) in all {
            if told.insert(entry.full_name()) {
                let path = "metadata.name";
                messages.add(
                    Code::ConflictingServiceEntryProtocol,
                    entry,
                    path,
                    text.clone(),
                );
            }
        }
    }
}
