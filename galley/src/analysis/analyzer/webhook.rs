//! Injection's webhooks: at most one may take each pod, and each must lead somewhere.

use super::super::{
    Code, Context, Object,
    context::label_selector_selects,
    message::Messages,
    object::{MUTATING_WEBHOOK, SERVICE, VALIDATING_WEBHOOK, item_texts, items, text, texts},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

const REVISION: &str = "istio.io/rev";

/// A webhook and the object that it is in.
struct Webhook<'a> {
    configuration: &'a Object,
    index: usize,
    value: &'a Value,
}

impl Webhook<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.configuration.name, text(&self.value["name"]))
    }
}

pub(super) fn check(context: &Context, messages: &mut Messages) {
    let mut revisions = BTreeSet::new();
    let mut webhooks = Vec::new();
    for configuration in context.of(MUTATING_WEBHOOK) {
        let own = revisions_of(configuration);
        let mut values = items(&configuration.value["webhooks"]);
        if own.is_empty() && !values.any(|value| text(&value["name"]).ends_with("istio.io")) {
            continue;
        }
        revisions.extend(own);
        let values = items(&configuration.value["webhooks"]).enumerate();
        webhooks.extend(values.map(|(index, value)| Webhook {
            configuration,
            index,
            value,
        }));
    }
    check_overlaps(&webhooks, &revisions, messages);
    for webhook in &webhooks {
        let service = &webhook.value["clientConfig"]["service"];
        let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
        if !service.is_null() && context.find(SERVICE, namespace, name).is_none() {
            let text = format!(
                "Webhook {} leads to service {namespace}/{name}, which does not exist",
                webhook.name()
            );
            let path = format!("webhooks[{}].clientConfig.service", webhook.index);
            messages.add(Code::InvalidWebhook, webhook.configuration, &path, text);
        }
    }
}

fn revisions_of(configuration: &Object) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = configuration
        .labels
        .get(REVISION)
        .cloned()
        .into_iter()
        .collect();
    for webhook in items(&configuration.value["webhooks"]) {
        for field in ["namespaceSelector", "objectSelector"] {
            let selector = &webhook[field];
            found.extend(texts(&selector["matchLabels"]).remove(REVISION));
            for expression in items(&selector["matchExpressions"]) {
                if expression["key"] == REVISION {
                    found.extend(item_texts(&expression["values"]).map(str::to_owned));
                }
            }
        }
    }
    found
}

/// The labels that decide about injection, in every combination.
fn label_sets(
    key: &str,
    values: [&str; 2],
    revisions: &BTreeSet<String>,
) -> Vec<BTreeMap<String, String>> {
    let mut sets = Vec::new();
    for revision in std::iter::once(None).chain(revisions.iter().map(Some)) {
        for value in [None, Some(values[0]), Some(values[1])] {
            let mut labels = BTreeMap::new();
            if let Some(value) = value {
                labels.insert(key.to_owned(), value.to_owned());
            }
            if let Some(revision) = revision {
                labels.insert(REVISION.to_owned(), revision.clone());
            }
            sets.push(labels);
        }
    }
    sets
}

fn check_overlaps(webhooks: &[Webhook<'_>], revisions: &BTreeSet<String>, messages: &mut Messages) {
    let namespaces = label_sets("istio-injection", ["enabled", "disabled"], revisions);
    let pods = label_sets("sidecar.istio.io/inject", ["true", "false"], revisions);
    let mut overlaps: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for namespace in &namespaces {
        for pod in &pods {
            let matching: Vec<usize> = (0..webhooks.len())
                .filter(|index| {
                    let value = webhooks[*index].value;
                    label_selector_selects(&value["namespaceSelector"], namespace)
                        && label_selector_selects(&value["objectSelector"], pod)
                })
                .collect();
            for index in &matching {
                let others = matching.iter().filter(|other| *other != index);
                let names: BTreeSet<String> = others.map(|other| webhooks[*other].name()).collect();
                if !names.is_empty() {
                    overlaps.entry(*index).or_default().extend(names);
                }
            }
        }
    }
    for (index, names) in overlaps {
        let webhook = &webhooks[index];
        let names: Vec<String> = names.into_iter().collect();
        let text = format!(
            "Webhook {} takes pods that others take too, which may inject them twice: {}",
            webhook.name(),
            names.join(", ")
        );
        let path = format!("webhooks[{}]", webhook.index);
        messages.add(Code::InvalidWebhook, webhook.configuration, &path, text);
    }
}

/// Webhooks of a control plane elsewhere must have an address.
pub(super) fn check_addresses(context: &Context, messages: &mut Messages) {
    let validating = context.of(VALIDATING_WEBHOOK).filter(|configuration| {
        configuration.name == "istiod-default-validator"
            || configuration.name.starts_with("istio-validator")
    });
    let mutating = context
        .of(MUTATING_WEBHOOK)
        .filter(|configuration| configuration.name.starts_with("istio-sidecar-injector"));
    for configuration in validating.chain(mutating) {
        for (index, webhook) in items(&configuration.value["webhooks"]).enumerate() {
            let client = &webhook["clientConfig"];
            let path = format!("webhooks[{index}].clientConfig");
            let name = text(&webhook["name"]);
            match client["url"].as_str().map(host_of) {
                None if !client["service"].is_null() => {}
                None => {
                    let text = format!("Webhook {name} has neither url nor service");
                    let code = Code::InvalidExternalControlPlaneConfig;
                    messages.add(code, configuration, &path, text);
                }
                Some(Err(problem)) => {
                    let text = format!("The url of webhook {name} {problem}");
                    let code = Code::InvalidExternalControlPlaneConfig;
                    messages.add(code, configuration, &path, text);
                }
                Some(Ok(host)) if host.parse::<IpAddr>().is_ok() => {
                    let text = format!(
                        "The url of webhook {name} names the address {host}; a name survives a move"
                    );
                    let code = Code::ExternalControlPlaneAddressIsNotAHostname;
                    messages.add(code, configuration, &path, text);
                }
                Some(Ok(_)) => {}
            }
        }
    }
}

/// The host of an `https` address.
fn host_of(url: &str) -> Result<&str, String> {
    if url.trim().is_empty() {
        return Err("is blank".to_owned());
    }
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| format!("is no address: {url:?}"))?;
    if scheme != "https" {
        return Err(format!("is not https but {scheme}"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    Ok(host)
}
