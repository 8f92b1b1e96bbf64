//! What the charts' roles allow, against what components ask for.

use std::collections::BTreeSet;
use std::fs;

use e2e::mesh::eventually;
use serde_json::Value;

use crate::component::start;
use crate::{SOON, fresh, install};

#[tokio::test]
async fn roles_allow_what_components_ask_for() {
    let client = fresh().await;
    install("galley: {enableServiceDiscovery: true, enableAnalysis: true}");
    let components = [
        (
            "istio-galley",
            "galley",
            "--validation-port",
            "https-validation",
        ),
        (
            "istio-sidecar-injector",
            "sidecar-injector",
            "--port",
            "https-inject",
        ),
        ("istio-pilot", "pilot-discovery", "--grpcAddr", "grpc-xds"),
    ];
    let mut running = Vec::new();
    for (deployment, program, port_flag, port_name) in components {
        let flag = "--kubeconfig";
        running.push(start(&client, deployment, program, flag, port_flag, port_name).await);
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
        "istio-sidecar-injector patch mutatingwebhookconfigurations",
        "istio-sidecar-injector watch mutatingwebhookconfigurations",
        "istio-pilot watch services",
        "istio-pilot watch endpointslices",
        "istio-pilot watch pods",
        "istio-pilot watch nodes",
        "istio-pilot watch namespaces",
    ];
    let told = async || {
        let (asked, _) = audited();
        wanted.iter().all(|call| asked.contains(*call))
    };
    let outcome = eventually("every call", SOON, told).await;
    let (asked, refused) = audited();
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

/// What components asked the API server for, as `istio-galley watch services`: what was answered, and what was refused.
fn audited() -> (BTreeSet<String>, BTreeSet<String>) {
    let log = std::env::var_os("AUDIT_LOG").expect("$AUDIT_LOG; e2e/kube/run sets it");
    let text = fs::read_to_string(log).unwrap();
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
