//! Envoy filters: operations that do nothing where they are applied, and patches whose order is left to chance.

use super::super::{
    Code, Context, Object,
    message::Messages,
    object::{ENVOY_FILTER, items, text},
};
use serde_json::Value;

pub(super) fn check(context: &Context, messages: &mut Messages) {
    // Filters that some proxy versions only have.
    let mut versioned: Vec<String> = Vec::new();
    for filter in context.of(ENVOY_FILTER) {
        for (index, patch) in items(&filter.spec()["configPatches"]).enumerate() {
            if patch["patch"].is_null() {
                break;
            }
            let name = filter_name(patch);
            check_patch(filter, index, patch, versioned.contains(&name), messages);
            if !text(&patch["match"]["proxy"]["proxyVersion"]).is_empty() {
                versioned.push(name);
            }
        }
    }
}

/// What the patch adds, or what it looks for.
fn filter_name(patch: &Value) -> String {
    let value = &patch["patch"]["value"];
    match (&value["name"], value.is_object()) {
        (Value::String(name), _) => name.clone(),
        (_, true) => text(&patch["match"]["listener"]["filterChain"]["filter"]["name"]).to_owned(),
        _ => String::new(),
    }
}

fn check_patch(
    filter: &Object,
    index: usize,
    patch: &Value,
    is_versioned: bool,
    messages: &mut Messages,
) {
    let path = format!("spec.configPatches[{index}].patch.operation");
    let apply_to = text(&patch["applyTo"]);
    let is_route = matches!(apply_to, "ROUTE_CONFIGURATION" | "HTTP_ROUTE");
    let operation = text(&patch["patch"]["operation"]);
    let ignored = |code: Code| (code, format!("{operation} is ignored for {apply_to}"));
    let (code, text) = match operation {
        "ADD" if is_route => ignored(Code::EnvoyFilterUsesAddOperationIncorrectly),
        "REMOVE" if is_route => ignored(Code::EnvoyFilterUsesRemoveOperationIncorrectly),
        "REPLACE" if !matches!(apply_to, "NETWORK_FILTER" | "HTTP_FILTER" | "VIRTUAL_HOST") => {
            ignored(Code::EnvoyFilterUsesReplaceOperationIncorrectly)
        }
        "REMOVE" | "REPLACE" | "INSERT_BEFORE" | "INSERT_AFTER" => {
            if filter.spec()["priority"].as_i64().unwrap_or_default() != 0 {
                return;
            }
            if is_versioned {
                (
                    Code::EnvoyFilterUsesRelativeOperationWithProxyVersion,
                    format!(
                        "{operation} depends on a filter that some proxy versions only have; set priority"
                    ),
                )
            } else {
                (
                    Code::EnvoyFilterUsesRelativeOperation,
                    format!("{operation} depends on what is there before; set priority"),
                )
            }
        }
        _ => return,
    };
    messages.add(code, filter, &path, text);
}
