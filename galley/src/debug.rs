//! Debug pages on the monitoring port: what is served (to this pod only, without secrets), what is left out and why, who is
//! subscribed.

use crate::{
    analysis::folder::Found,
    event::{Key, Origin},
    processor::View,
};
use arc_swap::ArcSwap;
use axum::{
    Json,
    extract::Query,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use proto::{istio::mcp::v1alpha1::Resource, json::FieldNames};
use proto_component::{monitoring::Monitoring, redact::redact};
use proto_mcp::source::Source;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

#[derive(serde::Deserialize)]
struct Which {
    collection: Option<String>,
    name: Option<String>,
}

/// Adds the pages.
pub fn pages(
    monitoring: Monitoring,
    view: Arc<ArcSwap<View>>,
    source: Source,
    found: Found,
) -> Monitoring {
    let (all, counts, rejected) = (view.clone(), view.clone(), view);
    monitoring
        .private_debug(
            "/debug/snapshot",
            "what is served: ?collection=… for resources, &amp;name=… for one",
            get(async move |Query(which): Query<Which>| snapshot(&all.load(), &which)),
        )
        .debug(
            "/debug/collections",
            "version and size of each collection",
            get(async move || Json(collections(&counts.load()))),
        )
        .debug(
            "/debug/rejected",
            "objects that are left out, and why",
            get(async move || Json(rejected.load().rejected.clone())),
        )
        .debug(
            "/debug/analysis",
            "what --enableAnalysis has found in the folder",
            get(async move || Json(found.rows())),
        )
        .debug(
            "/debug/sinks",
            "who is subscribed, and how far each one is",
            get(async move || Json(source.sinks())),
        )
}

fn collections(view: &View) -> Value {
    let published = view
        .published
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map(|since| since.as_secs_f64());
    let collections: BTreeMap<&str, Value> = view
        .kept
        .snapshot
        .iter()
        .map(|(name, collection)| {
            let row =
                json!({"version": collection.version, "resources": collection.resources.size()});
            (name, row)
        })
        .collect();
    json!({
        "published": published,
        "unreadable": view.unreadable,
        "rejected": view.rejected.len(),
        "collections": collections,
    })
}

fn snapshot(view: &View, which: &Which) -> Response {
    let Some(name) = &which.collection else {
        return Json(collections(view)).into_response();
    };
    let Some(collection) = view.kept.snapshot.get(name) else {
        let text = format!("there is no collection {name}; see /debug/collections\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let resources = collection
        .resources
        .iter()
        .filter(|(resource, _)| which.name.as_ref().is_none_or(|wanted| wanted == *resource))
        .map(|(resource_name, resource)| {
            let key = Key::new(name, resource_name);
            let origin = view.kept.origins.get(&key);
            describe(resource, origin)
        });
    Json(resources.collect::<Vec<Value>>()).into_response()
}

fn describe(resource: &Resource, origin: Option<&Origin>) -> Value {
    let metadata = resource.metadata.clone().unwrap_or_default();
    let spec = resource.body.as_ref().map(|body| {
        let mut spec = proto::json::any_to_value(body, FieldNames::Json)
            .unwrap_or_else(|error| Value::String(error.to_string()));
        redact(&mut spec);
        spec
    });
    json!({
        "name": metadata.name,
        "version": metadata.version,
        "origin": origin.map(ToString::to_string),
        "labels": metadata.labels,
        "annotations": metadata.annotations,
        "spec": spec,
    })
}
