//! Several replicas of a component, and the Lease between them: one does what must be done once, and when it goes another does.

use std::time::Duration;

use e2e::mesh::eventually;
use futures::future::join_all;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::component::{CITADEL, Component, GALLEY, INJECTOR, Kind, log_of, start_replica};
use crate::outage::{asked, injected, review};
use crate::{NAMESPACE, SOON, fresh, install, virtual_service};

/// A Lease that was given back is taken by the next who looks.
const HAND_OVER: Duration = Duration::from_secs(8);
/// One that was not has to end first.
const EXPIRY: Duration = Duration::from_secs(30);

#[tokio::test]
async fn one_replica_leads_and_when_it_goes_another_does() {
    let client = fresh().await;
    install("");
    join_all([&GALLEY, &INJECTOR, &CITADEL].map(|kind| succession(&client, kind))).await;
}

async fn succession(client: &Client, kind: &Kind) {
    let first = start_replica(client, kind, "first").await;
    leads(client, kind, &first, EXPIRY).await;
    let second = start_replica(client, kind, "second").await;
    let is_ready = eventually("the second replica", SOON, async || second.is_ready().await).await;
    assert!(is_ready.is_ok(), "{}", log_of(&second));
    assert!(
        !log_of(&second).contains("webhook registered"),
        "{}",
        log_of(&second)
    );
    answers(kind, &second);

    // It is told to end, as in a rolling update.
    drop(first);
    leads(client, kind, &second, HAND_OVER).await;
    its_work_is_done(client, kind, &second).await;

    // Its node vanishes.
    let third = start_replica(client, kind, "third").await;
    let is_ready = eventually("the third replica", SOON, async || third.is_ready().await).await;
    assert!(is_ready.is_ok(), "{}", log_of(&third));
    second.kill();
    leads(client, kind, &third, EXPIRY).await;
    its_work_is_done(client, kind, &third).await;
}

/// Whoever follows answers the API server as the leader does.
fn answers(kind: &Kind, follower: &Component) {
    match kind.deployment {
        "istio-sidecar-injector" => {
            let answer = injected(follower);
            assert_eq!(answer["response"]["patchType"], "JSONPatch", "{answer}");
        }
        "istio-galley" => {
            let bad = json!([{"destination": {"host": "a"}, "weight": -1}]);
            let bad = serde_json::to_value(virtual_service("bad", &bad)).unwrap();
            let answer = asked(follower, "/admitpilot", &review(&bad));
            let message = answer["response"]["status"]["message"].to_string();
            assert!(message.contains("the weight -1 is negative"), "{answer}");
        }
        _ => {}
    }
}

/// Waits until a replica holds its component's Lease.
async fn leads(client: &Client, kind: &Kind, replica: &Component, patience: Duration) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let mut holder = None;
    let is_so = eventually("the leader", patience, async || {
        let lease = leases.get_opt(kind.deployment).await.ok().flatten();
        holder = lease
            .and_then(|lease| lease.spec)
            .and_then(|spec| spec.holder_identity);
        holder.as_ref() == Some(&replica.name)
    });
    assert!(
        is_so.await.is_ok(),
        "{} does not lead, but {holder:?}: {}",
        replica.name,
        log_of(replica)
    );
}

/// Spoils what the leader keeps, and waits until it is as it was.
async fn its_work_is_done(client: &Client, kind: &Kind, leader: &Component) {
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let now = DeleteParams::default();
    let registered = async || {
        let found = mutating.get(kind.deployment).await.ok();
        let webhooks = found.and_then(|found| found.webhooks).unwrap_or_default();
        webhooks
            .iter()
            .any(|webhook| webhook.client_config.ca_bundle.is_some())
    };
    // It may not be there yet: whoever led before may have had no time.
    match kind.deployment {
        "istio-galley" => drop(validating.delete(kind.deployment, &now).await),
        "istio-citadel" => drop(config_maps.delete("istio-ca-root-cert", &now).await),
        _ => {
            let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
            let patch = Patch::Json::<()>(serde_json::from_value(patch).unwrap());
            drop(
                mutating
                    .patch(kind.deployment, &PatchParams::default(), &patch)
                    .await,
            );
        }
    }
    let outcome = eventually("the leader's work", SOON, async || match kind.deployment {
        "istio-galley" => validating
            .get_opt(kind.deployment)
            .await
            .is_ok_and(|found| found.is_some()),
        "istio-citadel" => config_maps
            .get_opt("istio-ca-root-cert")
            .await
            .is_ok_and(|found| found.is_some()),
        _ => registered().await,
    })
    .await;
    assert!(
        outcome.is_ok(),
        "{}: not done: {}",
        leader.name,
        log_of(leader)
    );
}
