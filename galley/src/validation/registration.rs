//! The webhook's registration: the `ValidatingWebhookConfiguration` that sends the API server to us.
//!
//! With a file it is created from that, without one it must be there already (a chart's); either way each webhook gets the
//! CA's certificate, and gets it again when the file changes or somebody takes it away. A webhook that calls a service is
//! not registered before the service has an endpoint: until then the API server could change nothing.

use crate::{args::KubernetesArgs, metrics::ValidationMetrics};
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::StreamExt as _;
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration, discovery::v1::EndpointSlice,
    rbac::v1::ClusterRole,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use proto_component::{
    backoff::Backoff,
    drain::Drain,
    file_watcher::FileWatcher,
    kubernetes::{self, lease::Leadership},
    process::Usage,
    task,
};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::{fs, time::Duration};

/// Who the API server says has written the fields.
pub(crate) const MANAGER: &str = "galley";

/// Registers the webhook and keeps it registered while this replica leads, until the drain.
pub fn keep(
    client: Client,
    args: KubernetesArgs,
    metrics: ValidationMetrics,
    mut leadership: Leadership,
    drain: Drain,
) {
    task::spawn("webhook-registration", async move {
        while leadership.gained().await {
            tokio::select! {
                () = follow(&client, &args, &metrics, &drain) => return,
                () = leadership.lost() => {}
            }
        }
    });
}

async fn follow(
    client: &Client,
    args: &KubernetesArgs,
    metrics: &ValidationMetrics,
    drain: &Drain,
) {
    let mut files = vec![args.webhook_ca_file.clone()];
    files.extend(args.webhook_config_file.clone());
    let mut files = FileWatcher::files(files);
    let selector = format!("metadata.name={}", args.webhook_name);
    let mut changes = kubernetes::watch_selected(registrations(client), &selector, "").boxed();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        match register(client, args).await {
            Ok(true) => {
                metrics.config_updated(Ok(()));
                tracing::info!(target: "validation", name = args.webhook_name, "webhook registered");
                backoff.reset();
            }
            Ok(false) => backoff.reset(),
            Err(error) => {
                metrics.config_updated(Err(()));
                let error = format!("{error:#}");
                tracing::warn!(target: "validation", error, name = args.webhook_name, "cannot register the webhook; trying again");
                if !backoff.wait(drain).await {
                    return;
                }
                continue;
            }
        }
        tokio::select! {
            () = files.changed() => {}
            _ = changes.next() => {}
            () = drain.signaled() => return,
        }
    }
}

/// Takes the registration away once this replica leads: validation is switched off.
pub fn remove(client: Client, name: String, mut leadership: Leadership, drain: Drain) {
    task::spawn("webhook-registration", async move {
        let api = registrations(&client);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        while leadership.gained().await {
            match api.delete(&name, &kube::api::DeleteParams::default()).await {
                Ok(_) => {
                    tracing::info!(target: "validation", name, "webhook's registration removed");
                    return;
                }
                Err(kube::Error::Api(status)) if status.code == 404 => return,
                Err(error) => {
                    tracing::warn!(target: "validation", %error, name, "cannot remove the webhook's registration; trying again");
                }
            }
            if !backoff.wait(&drain).await {
                return;
            }
        }
    });
}

fn registrations(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &kind::<ValidatingWebhookConfiguration>())
}

/// How a kind is asked for whose objects are read as they come: code that reads all of their fields is large.
fn kind<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

/// Brings the registration into the wanted state; false if it is in it already.
async fn register(client: &Client, args: &KubernetesArgs) -> anyhow::Result<bool> {
    let authority = fs::read(&args.webhook_ca_file)
        .with_context(|| format!("read {}", args.webhook_ca_file.display()))?;
    if !authority.starts_with(b"-----BEGIN CERTIFICATE") {
        bail!("{} holds no certificate", args.webhook_ca_file.display());
    }
    let bundle = STANDARD.encode(&authority);
    let api = registrations(client);
    let current = api.get_opt(&args.webhook_name).await?;
    let current = current.map(serde_json::to_value).transpose()?;
    let mut wanted = match &args.webhook_config_file {
        Some(file) => {
            let text =
                fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            read_configuration(&text, &args.webhook_name)
                .with_context(|| format!("read {}", file.display()))?
        }
        None => {
            let current = current.as_ref().with_context(|| {
                format!(
                    "there is no ValidatingWebhookConfiguration {}",
                    args.webhook_name
                )
            })?;
            let names = items(&current["webhooks"]).map(|webhook| {
                json!({
                    "name": webhook["name"],
                    "clientConfig": {},
                    "admissionReviewVersions": webhook["admissionReviewVersions"],
                    "sideEffects": webhook["sideEffects"],
                })
            });
            json!({"webhooks": names.collect::<Vec<_>>()})
        }
    };
    for webhook in wanted["webhooks"].as_array_mut().into_iter().flatten() {
        webhook["clientConfig"]["caBundle"] = bundle.clone().into();
    }
    if current
        .as_ref()
        .is_some_and(|current| has(current, &wanted))
    {
        return Ok(false);
    }
    wait_for_service(client, &wanted).await?;
    if args.webhook_config_file.is_none() {
        // A merge by the webhooks' names, which leaves everything else as it is.
        let patch = json!({"webhooks": items(&wanted["webhooks"]).map(|webhook| {
            json!({"name": webhook["name"], "clientConfig": {"caBundle": bundle}})
        }).collect::<Vec<_>>()});
        api.patch(
            &args.webhook_name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await?;
        return Ok(true);
    }
    if let Some(owner) = owner(client, args).await? {
        wanted["metadata"]["ownerReferences"] = json!([owner]);
    }
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&args.webhook_name, &params, &Patch::Apply(&wanted))
        .await?;
    Ok(true)
}

fn read_configuration(text: &str, name: &str) -> anyhow::Result<Value> {
    let document = proto::yaml::parse_documents(text)
        .into_iter()
        .next()
        .ok_or_else(|| Usage("the file is empty".to_owned()))??;
    let mut value = document.value;
    if value["kind"] != "ValidatingWebhookConfiguration" {
        bail!("it is no ValidatingWebhookConfiguration");
    }
    value["metadata"]["name"] = name.into();
    // The type's own reading says what is wrong with it, before the API server does.
    ValidatingWebhookConfiguration::deserialize(&value)?;
    Ok(value)
}

/// Our ClusterRole, with which the registration goes: what is the whole cluster's cannot belong to a Deployment, which is a
/// namespace's.
async fn owner(client: &Client, args: &KubernetesArgs) -> anyhow::Result<Option<Value>> {
    let name = format!("{}-{}", args.deployment_name, args.deployment_namespace);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind::<ClusterRole>());
    let found = api.get_opt(&name).await?;
    Ok(found.and_then(|role| {
        Some(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "name": name, "uid": role.metadata.uid?,
        }))
    }))
}

/// Fails as long as a service that a webhook calls has no endpoint that is ready.
async fn wait_for_service(client: &Client, wanted: &Value) -> anyhow::Result<()> {
    for webhook in items(&wanted["webhooks"]) {
        let service = &webhook["clientConfig"]["service"];
        let (Some(namespace), Some(name)) =
            (service["namespace"].as_str(), service["name"].as_str())
        else {
            continue;
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), namespace, &kind::<EndpointSlice>());
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let slices = api.list(&params).await?;
        let is_ready = slices
            .iter()
            .flat_map(|slice| items(&slice.data["endpoints"]))
            .any(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true));
        if !is_ready {
            bail!("service {namespace}/{name} has no endpoint yet");
        }
    }
    Ok(())
}

/// Whether everything that is wanted is in the current state.
fn has(current: &Value, wanted: &Value) -> bool {
    match (current, wanted) {
        (Value::Object(current), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| current.get(key).is_some_and(|current| has(current, value))),
        (Value::Array(current), Value::Array(wanted)) => {
            current.len() == wanted.len()
                && current
                    .iter()
                    .zip(wanted)
                    .all(|(current, wanted)| has(current, wanted))
        }
        (current, wanted) => current == wanted,
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_beside_the_wanted_does_not_matter() {
        let current = json!({"a": {"b": 1, "c": 2}, "d": [{"e": 1, "f": 2}]});
        assert!(has(&current, &json!({"a": {"b": 1}, "d": [{"e": 1}]})));
        assert!(!has(&current, &json!({"d": []})));
        assert!(!has(&current, &json!({"a": {"x": 1}})));
    }

    #[test]
    fn only_a_webhook_configuration_is_one() {
        let text = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: []\n";
        assert_eq!(
            read_configuration(text, "mine").unwrap()["metadata"]["name"],
            "mine"
        );
        assert!(read_configuration("kind: Service\n", "mine").is_err());
        assert!(read_configuration("", "mine").is_err());
    }
}
