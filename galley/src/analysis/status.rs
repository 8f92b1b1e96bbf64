//! What analysis finds, written into the status of a cluster's objects: `validationMessages`, and the condition
//! `PassedAnalysis`. An object without messages is only touched if it had some.

use super::{
    Input, Level, Message, Object, analyze,
    analyzer::all,
    follow::{follow, in_time},
    input::cluster,
    object::SECRET,
    suppression::Suppressions,
};
use crate::schema;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use proto_component::{drain::Drain, kubernetes::lease::Leadership};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// The condition's type.
const CONDITION: &str = "PassedAnalysis";

/// Looks at the cluster after each change that `changes` tells, and writes what it finds while this replica leads; until the drain.
pub fn keep<T: Send + Sync + 'static>(
    client: Client,
    changes: watch::Receiver<T>,
    leadership: Leadership,
    drain: Drain,
) {
    follow("analysis-status", changes, drain, move || {
        let (client, mut leadership) = (client.clone(), leadership.clone());
        async move {
            while leadership.gained().await {
                tokio::select! {
                    written = in_time(look(&client)) => {
                        let written = written?;
                        if written > 0 {
                            tracing::info!(target: "analysis", objects = written, "status written");
                        }
                        return Ok(());
                    }
                    // Perhaps half of it is written: whoever leads next looks at everything.
                    () = leadership.lost() => {}
                }
            }
            Ok(())
        }
    });
}

/// One look; how many objects were written to.
async fn look(client: &Client) -> anyhow::Result<usize> {
    let mut input = Input::new("");
    // A mesh's Galley has no business with keys.
    input.leave_out(SECRET.group, SECRET.kind);
    cluster::read(client, &mut input).await?;
    let (context, _) = input.into_context()?;
    let messages = analyze(&context, &all(), &Suppressions::default());
    let mut by_object: BTreeMap<(&str, String), Vec<&Message>> = BTreeMap::new();
    for message in &messages {
        let name = format!("{}/{}", message.namespace, message.name);
        by_object
            .entry((&message.kind, name))
            .or_default()
            .push(message);
    }
    let mut written = 0;
    for object in context.objects() {
        let name = format!("{}/{}", object.namespace, object.name);
        let own = by_object.get(&(object.kind.as_str(), name));
        let own = own.map_or(&[][..], Vec::as_slice);
        if let Some((resource, status)) = wanted(object, own) {
            write(client, &resource, object, &status).await?;
            written += 1;
        }
    }
    Ok(written)
}

/// The status that a mesh object should have, if it is another than it has.
fn wanted(object: &Object, messages: &[&Message]) -> Option<(ApiResource, Value)> {
    let api_version = object.value["apiVersion"].as_str()?;
    let schema::Lookup::Served(served) = schema::lookup(api_version, &object.kind) else {
        return None;
    };
    let status = &object.value["status"];
    let had = status["validationMessages"]
        .as_array()
        .is_some_and(|all| !all.is_empty());
    if messages.is_empty() && !had {
        return None;
    }
    let rows: Vec<Value> = messages.iter().map(|message| row(message)).collect();
    let is_good = messages.iter().all(|message| message.level < Level::Error);
    let condition = json!({
        "type": CONDITION,
        "status": if is_good { "True" } else { "False" },
        "reason": if messages.is_empty() { "NoMessages" } else { "MessagesFound" },
        "message": format!("{} messages", messages.len()),
    });
    let empty = Vec::new();
    let conditions = status["conditions"].as_array().unwrap_or(&empty);
    let is_same = conditions.iter().any(|current| {
        ["type", "status", "reason", "message"]
            .iter()
            .all(|field| current[*field] == condition[*field])
    });
    if is_same && status["validationMessages"] == Value::Array(rows.clone()) {
        return None;
    }
    let mut conditions: Vec<Value> = conditions
        .iter()
        .filter(|current| current["type"] != CONDITION)
        .cloned()
        .collect();
    conditions.push(condition);
    let generation = object.value["metadata"]["generation"].clone();
    let (group, version) = api_version.split_once('/')?;
    let kind = GroupVersionKind::gvk(group, version, &object.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, served.plural);
    let status = json!({"status": {
        "conditions": conditions,
        "validationMessages": rows,
        "observedGeneration": generation,
    }});
    Some((resource, status))
}

fn row(message: &Message) -> Value {
    let info = message.code.info();
    json!({
        "type": {"code": info.id, "name": info.name},
        "level": message.level.to_string().to_uppercase(),
        "documentationUrl": format!("https://istio.io/latest/docs/reference/config/analysis/{}/", info.id.to_lowercase()),
        "message": message.text,
    })
}

async fn write(
    client: &Client,
    resource: &ApiResource,
    object: &Object,
    status: &Value,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = if object.namespace.is_empty() {
        Api::all_with(client.clone(), resource)
    } else {
        Api::namespaced_with(client.clone(), &object.namespace, resource)
    };
    let params = PatchParams::default();
    let patch = Patch::Merge(status);
    match api.patch_status(&object.name, &params, &patch).await {
        // The object has gone.
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
        outcome => outcome.map(drop),
    }
}
