//! Webhooks whose certificates are Citadel's: the API server believes them, and goes on doing so when the certificate changes, and
//! when the root does, without anybody being started anew.

use std::process::{Command, Stdio};

use e2e::mesh::eventually;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;

use crate::component::{CITADEL, Component, GALLEY, INJECTOR, Kind, log_of, start, write_secret};
use crate::{
    NAMESPACE, SOON, fresh, injected_namespace, install, virtual_service, virtual_services,
};

/// The Secrets that Citadel keeps for the webhooks' accounts.
const SETTINGS: &str =
    "sidecarInjectorWebhook: {certificateSecret: istio.istio-sidecar-injector-service-account}
galley: {certificateSecret: istio.istio-galley-service-account}";
const ROOT: &str = "istio-ca-secret";

#[tokio::test]
async fn webhooks_serve_what_citadel_gives_them_and_follow_its_changes() {
    let client = fresh().await;
    install(SETTINGS);
    let citadel = start(&client, &CITADEL).await;
    let mut webhooks = Vec::new();
    for kind in [&INJECTOR, &GALLEY] {
        let webhook = Webhook::start(&client, kind, &citadel).await;
        webhooks.push(webhook);
    }
    let pods = injected_namespace(&client, "certified").await;
    are_asked(&client, &pods, &webhooks).await;

    // The certificates are made anew.
    let mut before = Vec::new();
    for webhook in &webhooks {
        before.push(webhook.secret().await);
        let now = DeleteParams::default();
        webhook.secrets.delete(&webhook.name, &now).await.unwrap();
    }
    for (webhook, before) in webhooks.iter().zip(&before) {
        let after = webhook.changes(before, &citadel).await;
        assert_ne!(after[LEAF], before[LEAF]);
        assert_eq!(after[AUTHORITY], before[AUTHORITY]);
    }
    are_asked(&client, &pods, &webhooks).await;

    // And another root, as whoever has lost it would make one.
    drop(citadel);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let now = DeleteParams::default();
    secrets.delete(ROOT, &now).await.unwrap();
    let mut before = Vec::new();
    for webhook in &webhooks {
        before.push(webhook.secret().await);
    }
    let citadel = start(&client, &CITADEL).await;
    for (webhook, before) in webhooks.iter().zip(&before) {
        let after = webhook.changes(before, &citadel).await;
        assert_ne!(after[AUTHORITY], before[AUTHORITY]);
    }
    are_asked(&client, &pods, &webhooks).await;
}

const LEAF: &str = "cert-chain.pem";
const AUTHORITY: &str = "root-cert.pem";
type Files = std::collections::BTreeMap<String, ByteString>;

/// A component that serves a webhook with a certificate of Citadel's.
struct Webhook {
    client: Client,
    component: Component,
    secrets: Api<Secret>,
    /// Its Secret's name.
    name: String,
}

impl Webhook {
    async fn start(client: &Client, kind: &Kind, citadel: &Component) -> Self {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
        let name = format!("istio.{}-service-account", kind.deployment);
        // Until then the node would not start the pod.
        let made = eventually("the account's Secret", SOON, async || {
            let found = secrets.get_opt(&name).await.unwrap();
            found.is_some()
        });
        assert!(made.await.is_ok(), "{}", log_of(citadel));
        let component = start(client, kind).await;
        Self {
            client: client.clone(),
            component,
            secrets,
            name,
        }
    }

    async fn secret(&self) -> Files {
        let found = self.secrets.get_opt(&self.name).await.unwrap();
        found.and_then(|found| found.data).unwrap_or_default()
    }

    /// Waits until Citadel has put something else into the Secret, and brings it to the component, as the node does.
    async fn changes(&self, before: &Files, citadel: &Component) -> Files {
        let mut after = Files::new();
        let changed = eventually("another certificate", SOON, async || {
            after = self.secret().await;
            after.contains_key(LEAF) && after != *before
        });
        assert!(changed.await.is_ok(), "{}", log_of(citadel));
        let folder = self.component.folder.join("certs");
        write_secret(&self.client, &self.name, &folder).await;
        after
    }

    /// Waits until it serves the certificate of the Secret, and the API server is told to believe that Secret's root.
    async fn is_in_force(&self, bundle: impl AsyncFn() -> Option<ByteString>) {
        let files = self.secret().await;
        let leaf = String::from_utf8(files[LEAF].0.clone()).unwrap();
        let (leaf, _) = leaf.split_once("-----END").unwrap();
        let in_force = eventually("the certificate in force", SOON, async || {
            served(self.component.port).contains(leaf)
                && bundle().await.as_ref() == Some(&files[AUTHORITY])
        });
        assert!(in_force.await.is_ok(), "{}", log_of(&self.component));
    }
}

/// The certificate that is shown at a port.
fn served(port: u16) -> String {
    let address = format!("127.0.0.1:{port}");
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-showcerts"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The API server asks the webhooks, at their names, and believes them.
async fn are_asked(client: &Client, pods: &Api<Pod>, webhooks: &[Webhook]) {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let bundle = async || {
        let found = mutating.get(INJECTOR.deployment).await.ok()?;
        found.webhooks?.first()?.client_config.ca_bundle.clone()
    };
    webhooks[0].is_in_force(bundle).await;
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let bundle = async || {
        let found = validating.get_opt(GALLEY.deployment).await.ok()??;
        found.webhooks?.first()?.client_config.ca_bundle.clone()
    };
    webhooks[1].is_in_force(bundle).await;

    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "example.com/web:1"}]},
    }))
    .unwrap();
    // The API server learns of the registration a moment later; the webhook's failure is the pod's.
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let injected = eventually("a pod is injected", SOON, async || {
        let made = pods.create(&dry, &pod).await.ok().and_then(|pod| pod.spec);
        made.is_some_and(|spec| spec.containers.len() == 2)
    });
    assert!(injected.await.is_ok(), "{}", log_of(&webhooks[0].component));
    let bad = json!([{"destination": {"host": "a"}, "weight": -1}]);
    let bad = virtual_service("bad", &bad);
    let routes = virtual_services(client);
    let refused = eventually("a route is refused", SOON, async || {
        let refusal = routes.create(&dry, &bad).await.err();
        refusal.is_some_and(|error| error.to_string().contains("the weight -1 is negative"))
    });
    assert!(refused.await.is_ok(), "{}", log_of(&webhooks[1].component));
}
