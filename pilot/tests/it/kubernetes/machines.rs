//! Machines that register themselves with one of two replicas: what is written into the cluster, what the other replica makes of it,
//! and what becomes of entries that nobody keeps any more.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use pilot::registry::registration::HEALTH;
use pilot::registry::registration::cluster::{self, Options};

use super::super::credentials::{Authority, connect_as, start_with};
use super::super::registration::{CLUSTER, CONFIG, GROUP, MACHINE, OWNER, PROBE, machine, web};
use super::*;

const SHOP: &str = "shop";
const NAME: &str = "legacy-10.7.0.7";
const AGE: Duration = Duration::from_secs(1800);

fn all(client: &Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("networking.istio.io", "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, plural);
    Api::namespaced_with(client.clone(), SHOP, &resource)
}

/// The kinds, the namespace and the group.
async fn fill(client: &Client) -> (Api<DynamicObject>, String) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/bireme-init/files/crds.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let kinds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for document in proto::yaml::parse_documents(&text) {
        let kind = document.unwrap().value;
        let plural = kind["spec"]["names"]["plural"].as_str().unwrap_or_default();
        if ["workloadentries", "workloadgroups"].contains(&plural) {
            let name = kind["metadata"]["name"].as_str().unwrap().to_owned();
            apply(&kinds, &name, kind).await;
        }
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP}});
    apply(&namespaces, SHOP, space).await;
    let entries = all(client, "WorkloadEntry", "workloadentries");
    let groups = all(client, "WorkloadGroup", "workloadgroups");
    let are_served = async {
        let params = ListParams::default();
        while entries.list(&params).await.is_err() || groups.list(&params).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, are_served).await.unwrap();
    let group: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "metadata": {"name": "legacy"},
        "spec": {"template": {"serviceAccount": "legacy"}},
    }))
    .unwrap();
    let group = groups.create(&PostParams::default(), &group).await.unwrap();
    (entries, group.metadata.uid.unwrap())
}

/// The entry, once it is as wanted.
async fn becomes(
    entries: &Api<DynamicObject>,
    name: &str,
    is_so: impl Fn(Option<&Value>) -> bool,
) -> Value {
    let mut last = None;
    let waiting = async {
        loop {
            let found = entries.get_opt(name).await.unwrap();
            last = found.map(|found| serde_json::to_value(found).unwrap());
            if is_so(last.as_ref()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(outcome.is_ok(), "{name}: {last:?}");
    last.unwrap_or_default()
}

async fn replica(authority: &Authority, client: &Client, name: &str) -> (Pilot, u16) {
    let (pilot, port) = start_with(authority, &format!("{CONFIG}{GROUP}{PROBE}")).await;
    let options = Options {
        replica: name.to_owned(),
        grace: Duration::from_millis(100),
        max_age: Some(AGE),
    };
    let discovery = Arc::clone(&pilot.discovery);
    cluster::start(client.clone(), discovery, options, pilot.drain.clone());
    (pilot, port)
}

/// An entry as a replica has left it that is no more.
async fn left_behind(entries: &Api<DynamicObject>, name: &str, annotations: &[(&str, &str)]) {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    let entry = serde_json::from_value(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": name, "annotations": annotations}, "spec": {"address": "10.7.0.8"},
    }));
    let params = PostParams::default();
    entries.create(&params, &entry.unwrap()).await.unwrap();
}

async fn what_nobody_keeps_is_taken_away(entries: &Api<DynamicObject>) {
    let now = k8s_openapi::jiff::Timestamp::now();
    let ago = |age: Duration| (now - age).to_string();
    let group = ("istio.io/autoRegistrationGroup", "legacy");
    let (old, recent) = (ago(AGE * 2), ago(AGE));
    left_behind(entries, "by-hand", &[]).await;
    left_behind(
        entries,
        "alive",
        &[group, ("istio.io/connectedAt", &recent)],
    )
    .await;
    left_behind(entries, "dead", &[group, ("istio.io/connectedAt", &old)]).await;
    left_behind(
        entries,
        "gone",
        &[group, ("istio.io/disconnectedAt", &recent)],
    )
    .await;
    becomes(entries, "dead", |entry| entry.is_none()).await;
    becomes(entries, "gone", |entry| entry.is_none()).await;
    for name in ["by-hand", "alive"] {
        becomes(entries, name, |entry| entry.is_some()).await;
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: KUBECONFIG"]
async fn machines_are_in_the_cluster_and_known_to_every_replica() {
    let client = Client::try_default().await.expect("a cluster");
    let (entries, group) = fill(&client).await;
    let authority = Authority::new();
    let (first, port) = replica(&authority, &client, "first").await;
    let (second, _) = replica(&authority, &client, "second").await;
    let mut web = ads::Client::connect_as(&second, web()).await;
    web.ask(ENDPOINT, &[CLUSTER], "", None).await;

    let agent = connect_as(&authority, port, OWNER, machine(SHOP)).await;
    agent.ask(ENDPOINT, &[CLUSTER], "", None).await;
    let entry = becomes(&entries, NAME, |entry| entry.is_some()).await;
    let meta = &entry["metadata"];
    assert_eq!(meta["ownerReferences"][0]["uid"], json!(group), "{entry}");
    assert_eq!(meta["labels"], json!({"app": "legacy"}));
    assert_eq!(entry["spec"]["address"], MACHINE);
    let annotation = |entry: &Value, name: &str| {
        let found = &entry["metadata"]["annotations"][format!("istio.io/{name}")];
        found.as_str().map(str::to_owned)
    };
    assert_eq!(
        annotation(&entry, "workloadController").as_deref(),
        Some("first")
    );
    assert_eq!(
        annotation(&entry, "autoRegistrationGroup").as_deref(),
        Some("legacy")
    );
    assert!(annotation(&entry, "connectedAt").is_some());
    let condition = |entry: Option<&Value>| {
        let found = &entry?["status"]["conditions"][0];
        (found["type"] == "Healthy").then(|| (found["status"].clone(), found["message"].clone()))
    };
    for (error, addresses, status) in [
        (None, &[MACHINE][..], "True"),
        (Some("503 from /healthz"), &[], "False"),
        (None, &[MACHINE], "True"),
    ] {
        agent.ask(HEALTH, &[], "", error).await;
        web.endpoints_become(CLUSTER, addresses).await;
        let wanted = (json!(status), json!(error.unwrap_or_default()));
        becomes(&entries, NAME, |entry| {
            condition(entry) == Some(wanted.clone())
        })
        .await;
    }

    // Gone from one replica, and at once at the other.
    let (third, port) = replica(&authority, &client, "third").await;
    let again = connect_as(&authority, port, OWNER, machine(SHOP)).await;
    again.ask(HEALTH, &[], "", None).await;
    let is_with = |entry: Option<&Value>, replica: &str| {
        let found = entry.and_then(|entry| annotation(entry, "workloadController"));
        found.as_deref() == Some(replica)
    };
    becomes(&entries, NAME, |entry| is_with(entry, "third")).await;
    drop(agent);
    drop(again);
    web.endpoints_become(CLUSTER, &[]).await;
    becomes(&entries, NAME, |entry| entry.is_none()).await;

    what_nobody_keeps_is_taken_away(&entries).await;
    drop((first, third));
    let (params, everything) = (DeleteParams::default(), ListParams::default());
    let groups = all(&client, "WorkloadGroup", "workloadgroups");
    for api in [entries, groups] {
        api.delete_collection(&params, &everything).await.unwrap();
    }
}
