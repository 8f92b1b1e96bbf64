//! A cluster with an installation in it: objects are applied on the API server's side, in an order in which nothing misses
//! another; what an earlier installation left over is taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{GroupVersionKind, Status};
use kube::{Client, ResourceExt as _, discovery};
use proto_component::backoff::Backoff;
use serde_json::{Value, json};
use tokio::time::Instant;

const MANAGER: &str = "biremectl";
/// Marks what was installed by `manifest apply`.
const MARK: &str = "operator.istio.io/managed";
const DEFINITION: &str = "CustomResourceDefinition";
/// How long definitions may take to be served.
const ESTABLISHED: Duration = Duration::from_secs(60);

/// The kinds that an installation consists of, in the order in which they are applied; configuration comes last.
const KINDS: &[(&str, &str, &str)] = &[
    ("apiextensions.k8s.io", "v1", DEFINITION),
    ("", "v1", "ServiceAccount"),
    ("", "v1", "Secret"),
    ("", "v1", "ConfigMap"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
    ("", "v1", "Service"),
    ("discovery.k8s.io", "v1", "EndpointSlice"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "DaemonSet"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    (
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
    ),
];

/// What the components themselves write, beside what is installed: group, version, kind, name.
const WRITTEN: &[(&str, &str, &str, &str)] = &[
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "istio-galley",
    ),
    ("", "v1", "ConfigMap", "istio-ca-root-cert"),
    ("", "v1", "ConfigMap", "istio-ca-revocations"),
    ("", "v1", "Secret", "istio-ca-secret"),
    ("coordination.k8s.io", "v1", "Lease", "istio-citadel"),
    ("coordination.k8s.io", "v1", "Lease", "istio-galley"),
    (
        "coordination.k8s.io",
        "v1",
        "Lease",
        "istio-sidecar-injector",
    ),
];

/// The type of the Secrets that Citadel writes for service accounts, and the annotation in which it names the account.
const WORKLOAD_SECRET: (&str, &str) = ("istio.io/key-and-cert", "istio.io/service-account.name");
/// What has pods, which end in their own time.
const WORKLOADS: &[&str] = &["Deployment", "DaemonSet"];
/// How long they may take.
const ENDED: Duration = Duration::from_secs(120);

/// The cluster.
pub(crate) struct Cluster {
    client: Client,
    is_dry_run: bool,
}

/// `Kind namespace/name`: what an object is called in messages, and in which order files are compared.
pub(crate) fn name_of(object: &Value) -> String {
    let metadata = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = metadata["namespace"]
        .as_str()
        .map(|namespace| format!("{namespace}/"));
    format!(
        "{} {}{}",
        text(&object["kind"]),
        namespace.unwrap_or_default(),
        text(&metadata["name"])
    )
}

impl Cluster {
    /// The cluster behind a client.
    pub(crate) fn new(client: Client, is_dry_run: bool) -> Self {
        Self { client, is_dry_run }
    }

    /// Brings the objects in, and takes away what was installed before and is not among them.
    pub(crate) async fn apply(
        &self,
        namespace: &str,
        mut objects: Vec<Value>,
    ) -> anyhow::Result<()> {
        let params = self.params();
        let space =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let spaces: Api<DynamicObject> =
            Api::all_with(self.client.clone(), &resource("", "v1", "Namespace"));
        spaces
            .patch(namespace, &params, &Patch::Apply(space))
            .await?;
        let rank = |object: &Value| {
            let known = KINDS.iter().position(|(.., kind)| object["kind"] == *kind);
            known.unwrap_or(KINDS.len())
        };
        objects.sort_by_key(rank);
        let mut wanted = BTreeSet::new();
        let mut resources = BTreeMap::new();
        for object in &mut objects {
            object["metadata"]["labels"][MARK] = json!("Reconcile");
            wanted.insert(name_of(object));
            let api = self.served_api_of(object, namespace, &mut resources).await;
            let what = || format!("apply {}", name_of(object));
            let (api, name) = api.with_context(what)?;
            // A certificate that is there stays: every render makes another.
            if object["kind"] == "Secret" && api.get_opt(&name).await?.is_some() {
                continue;
            }
            api.patch(&name, &params, &Patch::Apply(&object))
                .await
                .with_context(what)?;
            if object["kind"] == DEFINITION && !self.is_dry_run {
                self.established(&api, &name).await?;
            }
        }
        if self.is_dry_run {
            return Ok(());
        }
        self.prune(&wanted).await
    }

    fn params(&self) -> PatchParams {
        let mut params = PatchParams::apply(MANAGER).force();
        params.dry_run = self.is_dry_run;
        params
    }

    /// The API of an object's kind, and the object's name.
    async fn api_of(
        &self,
        object: &Value,
        namespace: &str,
        known: &mut BTreeMap<(String, String), (ApiResource, bool)>,
    ) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let key = (api_version.clone(), kind.clone());
        if !known.contains_key(&key) {
            let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
            let of = GroupVersionKind::gvk(group, version, &kind);
            let (resource, capabilities) = discovery::pinned_kind(&self.client, &of).await?;
            let is_namespaced = capabilities.scope == discovery::Scope::Namespaced;
            known.insert(key.clone(), (resource, is_namespaced));
        }
        let (resource, is_namespaced) = &known[&key];
        let place = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or(namespace);
        let api = if *is_namespaced {
            Api::namespaced_with(self.client.clone(), place, resource)
        } else {
            Api::all_with(self.client.clone(), resource)
        };
        Ok((api, text(&object["metadata"]["name"])))
    }

    /// The same once the kind is served: one whose definition was just brought in is a moment later.
    async fn served_api_of(
        &self,
        object: &Value,
        namespace: &str,
        known: &mut BTreeMap<(String, String), (ApiResource, bool)>,
    ) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let end = Instant::now() + ESTABLISHED;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let found = self.api_of(object, namespace, known).await;
            let is_awaited = is_configuration(object) && !self.is_dry_run && Instant::now() < end;
            if found.is_ok() || !is_awaited {
                return found;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn established(&self, api: &Api<DynamicObject>, name: &str) -> anyhow::Result<()> {
        let is_served = |object: &DynamicObject| {
            let conditions = object.data["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|condition| {
                condition["type"] == "Established" && condition["status"] == "True"
            })
        };
        until(
            ESTABLISHED,
            &format!("definition {name} is not served"),
            async || {
                Ok(api
                    .get_opt(name)
                    .await?
                    .is_some_and(|object| is_served(&object)))
            },
        )
        .await
    }

    /// Waits until every Deployment among the objects is available.
    pub(crate) async fn wait(&self, objects: &[Value], deadline: Duration) -> anyhow::Result<()> {
        for object in objects
            .iter()
            .filter(|object| object["kind"] == "Deployment")
        {
            let name = name_of(object);
            until(deadline, &format!("{name} is not available"), async || {
                Ok(self
                    .state_of(object)
                    .await?
                    .is_some_and(|is_ready| is_ready))
            })
            .await?;
        }
        Ok(())
    }

    /// Whether an object is there, and (a Deployment) whether its pods are.
    pub(crate) async fn state_of(&self, object: &Value) -> anyhow::Result<Option<bool>> {
        let (api, name) = match self.api_of(object, "default", &mut BTreeMap::new()).await {
            Ok(found) => found,
            // Its kind is not even known.
            Err(_) if is_configuration(object) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(found) = api.get_opt(&name).await? else {
            return Ok(None);
        };
        let conditions = found.data["status"]["conditions"].as_array();
        let is_available = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Available" && condition["status"] == "True");
        Ok(Some(object["kind"] != "Deployment" || is_available))
    }

    /// Deletes what is marked as installed and not wanted; definitions stay, and with them the users' configuration.
    async fn prune(&self, wanted: &BTreeSet<String>) -> anyhow::Result<()> {
        for (group, version, kind) in KINDS.iter().skip(1) {
            self.delete_marked(&resource(group, version, kind), Some(wanted))
                .await?;
        }
        for served in proto::kind::KINDS {
            let of = GroupVersionKind::gvk(served.group, served.versions[0], served.kind);
            let resource = ApiResource::from_gvk_with_plural(&of, served.plural);
            self.delete_marked(&resource, Some(wanted)).await?;
        }
        Ok(())
    }

    async fn delete_marked(
        &self,
        resource: &ApiResource,
        except: Option<&BTreeSet<String>>,
    ) -> anyhow::Result<()> {
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let marked = ListParams::default().labels(&format!("{MARK}=Reconcile"));
        let found = match all.list(&marked).await {
            Ok(found) => found,
            Err(kube::Error::Api(status)) if is_unknown(&status) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("list {}", resource.plural)),
        };
        for object in found {
            let mut value = serde_json::to_value(&object)?;
            value["kind"] = json!(resource.kind);
            if !except.is_some_and(|wanted| wanted.contains(&name_of(&value))) {
                // Where everything goes, they go after their pods.
                let is_awaited = except.is_none() && WORKLOADS.contains(&resource.kind.as_str());
                let params = match is_awaited {
                    true => DeleteParams::foreground(),
                    false => DeleteParams::default(),
                };
                self.delete(resource, &object, &params).await?;
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        resource: &ApiResource,
        object: &DynamicObject,
        params: &DeleteParams,
    ) -> anyhow::Result<()> {
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), &namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        };
        match api.delete(&object.name_any(), params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error)
                .with_context(|| format!("delete {} {}", resource.kind, object.name_any())),
        }
    }

    /// Takes away everything that `apply` installed; with `purge` also the definitions, with all configuration, and what the
    /// components wrote themselves.
    pub(crate) async fn remove(&self, purge: bool) -> anyhow::Result<()> {
        // Webhooks first: nobody answers them any more in a moment.
        for (group, version, kind) in KINDS.iter().skip(1).rev() {
            self.delete_marked(&resource(group, version, kind), None)
                .await?;
        }
        if purge {
            self.workloads_end().await?;
        }
        for (group, version, kind, name) in WRITTEN {
            if !purge && *kind != "ValidatingWebhookConfiguration" {
                continue;
            }
            let named = ListParams::default().fields(&format!("metadata.name={name}"));
            self.delete_selected(&resource(group, version, kind), &named, |_| true)
                .await?;
        }
        if purge {
            let secrets = ListParams::default().fields(&format!("type={}", WORKLOAD_SECRET.0));
            self.delete_selected(&resource("", "v1", "Secret"), &secrets, is_citadels)
                .await?;
            let ours = ListParams::default().labels("app=bireme-init");
            let definitions = resource("apiextensions.k8s.io", "v1", DEFINITION);
            self.delete_selected(&definitions, &ours, |_| true).await?;
            let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &definitions);
            let is_gone = async || Ok(all.list(&ours).await?.items.is_empty());
            until(ENDED, "definitions are not gone", is_gone).await?;
        }
        Ok(())
    }

    /// Waits for the end of the pods: they would write anew what is taken away.
    async fn workloads_end(&self) -> anyhow::Result<()> {
        for kind in WORKLOADS {
            let all: Api<DynamicObject> =
                Api::all_with(self.client.clone(), &resource("apps", "v1", kind));
            let marked = ListParams::default().labels(&format!("{MARK}=Reconcile"));
            let otherwise = format!("pods of a {kind} have not ended");
            let is_gone = async || Ok(all.list(&marked).await?.items.is_empty());
            until(ENDED, &otherwise, is_gone).await?;
        }
        Ok(())
    }

    async fn delete_selected(
        &self,
        resource: &ApiResource,
        selected: &ListParams,
        is_ours: impl Fn(&DynamicObject) -> bool,
    ) -> anyhow::Result<()> {
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let found = all.list(selected).await?.into_iter();
        for object in found.filter(is_ours) {
            self.delete(resource, &object, &DeleteParams::default())
                .await?;
        }
        Ok(())
    }
}

/// Whether an object is of a kind that we define ourselves.
fn is_configuration(object: &Value) -> bool {
    let version = object["apiVersion"].as_str();
    version.is_some_and(|version| version.contains("istio.io"))
}

/// Whether Citadel wrote a Secret of its type: it is called as the account that it names.
fn is_citadels(secret: &DynamicObject) -> bool {
    let account = secret.annotations().get(WORKLOAD_SECRET.1);
    account.is_some_and(|account| secret.name_any() == format!("istio.{account}"))
}

fn is_unknown(status: &Status) -> bool {
    status.code == 404
}

fn resource(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Asks until the answer is yes.
async fn until(
    limit: Duration,
    otherwise: &str,
    ask: impl AsyncFn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + limit;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    while !ask().await? {
        if Instant::now() >= end {
            bail!("{otherwise} after {} s", limit.as_secs());
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    Ok(())
}
