//! What the charts' roles allow, against what components ask for.

use std::collections::BTreeSet;
use std::fs;

use e2e::mesh::eventually;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::component::{CITADEL, GALLEY, INJECTOR, PILOT, start};
use crate::{NAMESPACE, SOON, fresh, install};

#[tokio::test]
async fn roles_allow_what_components_ask_for() {
    let client = fresh().await;
    // So that they are made anew.
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let (params, all) = (DeleteParams::default(), ListParams::default());
    leases.delete_collection(&params, &all).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    // Most often there is none.
    let _ = secrets.delete("istio-ca-secret", &params).await;
    // What others asked before, perhaps of an API server that had just begun.
    let before = audit_log().len();
    install("galley: {enableServiceDiscovery: true, enableAnalysis: true}");
    let registrations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let patch = Patch::Json::<()>(serde_json::from_value(patch).unwrap());
    // Most often somebody has written it.
    let _ = registrations
        .patch("istio-sidecar-injector", &PatchParams::default(), &patch)
        .await;
    let mut running = Vec::new();
    for kind in [&GALLEY, &INJECTOR, &PILOT, &CITADEL] {
        running.push(start(&client, kind).await);
    }
    // What each asks for when all is well, as its account, a verb and a resource.
    let wanted = [
        "istio-galley watch virtualservices",
        "istio-galley watch services",
        "istio-galley watch pods",
        "istio-galley watch endpointslices",
        "istio-galley watch ingresses",
        "istio-galley list deployments",
        "istio-galley list customresourcedefinitions",
        "istio-galley patch validatingwebhookconfigurations",
        "istio-galley watch validatingwebhookconfigurations",
        "istio-galley create leases",
        "istio-galley update leases",
        "istio-citadel update leases",
        "istio-citadel watch namespaces",
        "istio-citadel watch serviceaccounts",
        "istio-citadel patch configmaps",
        "istio-citadel create secrets",
        "istio-sidecar-injector update leases",
        "istio-sidecar-injector patch mutatingwebhookconfigurations",
        "istio-sidecar-injector watch mutatingwebhookconfigurations",
        "istio-pilot watch services",
        "istio-pilot watch endpointslices",
        "istio-pilot watch pods",
        "istio-pilot watch nodes",
        "istio-pilot watch namespaces",
    ];
    let told = async || {
        let (asked, _) = audited(before);
        wanted.iter().all(|call| asked.contains(*call))
    };
    let outcome = eventually("every call", SOON, told).await;
    let (asked, refused) = audited(before);
    let missing: Vec<_> = wanted
        .iter()
        .filter(|call| !asked.contains(**call))
        .collect();
    assert!(
        outcome.is_ok(),
        "missing: {missing:?}; refused: {refused:?}"
    );
    // Analysis reads Secrets only where it may: the chart does not allow it.
    let refused: Vec<_> = refused
        .iter()
        .filter(|call| !call.ends_with(" secrets"))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}

fn audit_log() -> String {
    let log = std::env::var_os("AUDIT_LOG").expect("$AUDIT_LOG; e2e/kube/run sets it");
    fs::read_to_string(log).unwrap()
}

/// What components asked the API server for after that much of the log, as `istio-galley watch services`: what was answered, and
/// what was refused.
fn audited(before: usize) -> (BTreeSet<String>, BTreeSet<String>) {
    let text = audit_log();
    let text = text.get(before..).unwrap_or_default();
    let (mut asked, mut refused) = (BTreeSet::new(), BTreeSet::new());
    // The last line may still be being written.
    for event in text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let account = user.rsplit(':').next().unwrap_or_default();
        let call = format!(
            "{} {} {}",
            account.trim_end_matches("-service-account"),
            event["verb"].as_str().unwrap_or_default(),
            event["objectRef"]["resource"].as_str().unwrap_or_default(),
        );
        match event["responseStatus"]["code"].as_u64() {
            Some(403) => refused.insert(call),
            Some(200..300) => asked.insert(call),
            _ => false,
        };
    }
    (asked, refused)
}
