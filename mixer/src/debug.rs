//! Debug pages of the monitoring port: what configuration is in force and what was left out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Json;
use axum::routing::get;
use proto_component::monitoring::Monitoring;
use serde_json::{Value, json};

use crate::routing::{Rule, Table};
use crate::store::Status;

/// Adds the pages.
pub(crate) fn pages(
    monitoring: Monitoring,
    table: Arc<ArcSwap<Table>>,
    status: Status,
) -> Monitoring {
    let page = |render: fn(&Table) -> Value| {
        let table = table.clone();
        get(move || async move { Json(render(&table.load())) })
    };
    let (handlers, rules) = (page(handlers), page(rules));
    let config = get(move || async move {
        let table = table.load();
        Json(json!({
            "id": table.id,
            "source": status.to_json(),
            "counts": table.counts,
            "instances": table.instance_count,
            "errors": table.errors,
        }))
    });
    monitoring
        .debug(
            "/debug/config",
            "the configuration in force and what was left out of it",
            config,
        )
        .debug("/debug/handlers", "handlers at work", handlers)
        .debug(
            "/debug/rules",
            "rules by namespace, in the order of evaluation",
            rules,
        )
}

fn handlers(table: &Table) -> Value {
    let mut handlers: BTreeMap<&str, Value> = BTreeMap::new();
    for (label, handler) in &table.handlers {
        let mut templates: Vec<_> = table
            .destinations
            .iter()
            .filter(|destination| Arc::ptr_eq(&destination.handler, handler))
            .map(|destination| destination.template.as_str())
            .collect();
        templates.sort_unstable();
        handlers.insert(
            label,
            json!({"adapter": handler.adapter_name, "templates": templates}),
        );
    }
    json!(handlers)
}

fn rules(table: &Table) -> Value {
    let namespaces: BTreeMap<&str, Vec<Value>> = table
        .all_routes()
        .map(|(namespace, routes)| {
            let name = if namespace.is_empty() { "*" } else { namespace };
            let rules = routes.rules.iter().map(|rule| describe(table, rule));
            (name, rules.collect())
        })
        .collect();
    json!(namespaces)
}

fn describe(table: &Table, rule: &Rule) -> Value {
    let actions: Vec<_> = rule
        .all_actions()
        .map(|action| {
            let instances: Vec<_> = action
                .instances
                .iter()
                .map(|instance| instance.full_name.as_str())
                .collect();
            json!({
                "handler": table.destinations[action.destination].handler.label,
                "variety": action.variety.name(),
                "instances": instances,
            })
        })
        .collect();
    json!({
        "name": rule.name,
        "match": rule.condition_text,
        "actions": actions,
        "headerOperations": rule.request_headers.len() + rule.response_headers.len(),
    })
}
