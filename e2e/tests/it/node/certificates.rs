//! Webhooks whose certificates are Citadel's, in Secrets that the kubelet brings into their pods: when Citadel makes them anew, the
//! webhooks serve the new ones, and nobody is started anew for it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::mesh::eventually;
use serde_json::json;

use super::{NAMESPACE, SOON, kubectl, pods_are_injected, run};

pub(super) const SETTINGS: &str = "sidecarInjectorWebhook.certificateSecret=istio.istio-sidecar-injector-service-account,\
    galley.certificateSecret=istio.istio-galley-service-account";
const WEBHOOKS: [&str; 2] = ["istio-sidecar-injector", "istio-galley"];

pub(super) async fn are_followed() {
    pods_are_injected("istio-init").await;
    // Those before them may still be on their way out.
    let settled = eventually("one pod for each webhook", SOON, async || {
        let all = WEBHOOKS.map(pods_of);
        all.iter().all(|pods| pods.lines().count() == 1)
    });
    settled.await.unwrap();
    let before = WEBHOOKS.map(pods_of);
    for webhook in WEBHOOKS {
        let first = secret_of(webhook);
        serves(webhook, &first).await;
        let name = format!("istio.{webhook}-service-account");
        kubectl(&["-n", NAMESPACE, "delete", "secret", &name]);
        let mut second = String::new();
        let made = eventually("another certificate", SOON, async || {
            second = secret_of(webhook);
            !second.is_empty() && second != first
        });
        made.await.unwrap();
        serves(webhook, &second).await;
    }
    pods_are_injected("istio-init").await;
    let route = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "bad"},
        "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}, "weight": -1}]}]},
    });
    let create = ["create", "--dry-run=server", "-f", "-"];
    let mut said = String::new();
    let refused = eventually("a route is refused", SOON, async || {
        let made = run(Path::new("kubectl"), &create, &route.to_string());
        said = made.map_or_else(|error| error, |_| "it is taken".to_owned());
        said.contains("the weight -1 is negative")
    });
    let refused = refused.await;
    assert!(refused.is_ok(), "{said}");
    assert_eq!(WEBHOOKS.map(pods_of), before, "nobody is started anew");
}

/// Names of a webhook's pods, and how often each was restarted.
fn pods_of(webhook: &str) -> String {
    let restarts = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{'\\n'}{end}";
    let all = kubectl(&["-n", NAMESPACE, "get", "pods", "-o", restarts]);
    let ours = all.lines().filter(|line| line.starts_with(webhook));
    ours.map(|line| format!("{line}\n")).collect()
}

/// The certificate in a webhook's Secret; empty if there is none.
fn secret_of(webhook: &str) -> String {
    let name = format!("istio.{webhook}-service-account");
    let get = ["-n", NAMESPACE, "get", "secret", &name, "-o"];
    let chain = r"jsonpath={.data.cert-chain\.pem}";
    let found = run(Path::new("kubectl"), &[&get[..], &[chain]].concat(), "");
    let chain = STANDARD.decode(found.unwrap_or_default()).unwrap();
    String::from_utf8(chain).unwrap()
}

/// Waits until whoever calls the webhook is shown this certificate.
async fn serves(webhook: &str, chain: &str) {
    let (leaf, _) = chain.split_once("-----END").unwrap();
    let get = ["-n", NAMESPACE, "get", "service", webhook, "-o"];
    let address = kubectl(&[&get[..], &["jsonpath={.spec.clusterIP}:443"]].concat());
    let show = ["s_client", "-connect", &address, "-showcerts"];
    let shown = eventually("the certificate is served", SOON, async || {
        let shown = run(Path::new("openssl"), &show, "");
        shown.is_ok_and(|shown| shown.contains(leaf))
    });
    shown.await.unwrap();
}
