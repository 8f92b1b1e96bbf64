//! The charts and the components with a real Kubernetes API server: `e2e/test.sh kube`. Components run as processes here, each
//! with the arguments that the chart gives its container and with the chart's own service account, so what they may do is
//! what the chart's roles allow.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod certificates;
mod component;
mod gateway;
mod ingress;
mod installs;
mod leader;
mod machine;
mod objects;
mod outage;
mod pods;
mod roles;
mod versions;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use component::{GALLEY, INJECTOR, log_of, start};
use e2e::mesh::eventually;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

const NAMESPACE: &str = "istio-system";
const SOON: Duration = Duration::from_secs(60);
fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm")
}

/// Runs Helm with `values` as its standard input.
fn helm(arguments: &[&str], values: &str) -> Result<String, String> {
    let program = std::env::var_os("HELM").expect("$HELM names a Helm; e2e/helm.sh prints one");
    let mut child = Command::new(program)
        .args(arguments)
        .args(["-n", NAMESPACE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A Helm that has no use for values does not read them.
    let _ = child.stdin.take().unwrap().write_all(values.as_bytes());
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// The umbrella chart with everything that it depends on, for a Helm that wants `helm dependency build`.
static UMBRELLA: LazyLock<String> = LazyLock::new(|| {
    let path = charts().join("bireme").display().to_string();
    helm(&["dependency", "build", &path], "").unwrap();
    path
});

fn install(values: &str) {
    let arguments = [
        "upgrade",
        "istio",
        UMBRELLA.as_str(),
        "--install",
        "-f",
        "-",
    ];
    helm(&arguments, values).unwrap();
}

/// The cluster with the mesh's kinds, without the registration and the endpoints of components that an earlier test has taken
/// along.
async fn fresh() -> Client {
    let client = Client::try_default().await.unwrap();
    let registrations: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let params = DeleteParams::default();
    // Most often there is none.
    let _ = registrations.delete("istio-galley", &params).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let ours = ListParams::default().labels("here=yes");
    slices.delete_collection(&params, &ours).await.unwrap();
    let definitions = charts().join("bireme-init").display().to_string();
    let arguments = [
        "upgrade",
        "istio-init",
        &definitions,
        "--install",
        "--create-namespace",
    ];
    helm(&arguments, "").unwrap();
    client
}

fn virtual_services(client: &Client) -> Api<DynamicObject> {
    let of = GroupVersionKind::gvk("networking.istio.io", "v1", "VirtualService");
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&of))
}

fn virtual_service(name: &str, route: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name}, "spec": {"hosts": ["a"], "http": [{"route": route}]},
    }))
    .unwrap()
}

#[tokio::test]
async fn the_api_server_itself_refuses_what_the_contract_does_not_have() {
    let client = fresh().await;
    install("sidecarInjectorWebhook: {enabled: false}");
    let api = virtual_services(&client);
    let strict = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply("test")
    };
    for (route, sentence) in [
        (
            json!([{"destination": {"host": "a", "weights": 3}}]),
            "weights",
        ),
        (
            json!([{"destination": {"host": "a"}, "weight": "much"}]),
            "weight",
        ),
        (json!([{"destination": {"host": 7}}]), "expected string"),
    ] {
        let object = virtual_service("bad", &route);
        let error = api
            .patch("bad", &strict, &Patch::Apply(&object))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(sentence), "{error}");
    }
}

#[tokio::test]
async fn galleys_webhook_refuses_with_a_sentence_until_it_is_switched_off() {
    let client = fresh().await;
    install("");
    let registrations: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let is_registered = async || {
        registrations
            .get_opt("istio-galley")
            .await
            .unwrap()
            .is_some()
    };
    let galley = start(&client, &GALLEY).await;
    let registered = eventually("the webhook's registration", SOON, &is_registered).await;
    assert!(registered.is_ok(), "{}", log_of(&galley));
    let api = virtual_services(&client);
    let bad = virtual_service(
        "bad",
        &json!([{"destination": {"host": "a"}, "weight": -1}]),
    );
    // The API server learns of a registration a moment later.
    let mut said = String::new();
    for _ in 0..100 {
        match api.create(&PostParams::default(), &bad).await {
            Ok(_) => drop(api.delete("bad", &DeleteParams::default()).await),
            Err(error) => {
                said = error.to_string();
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        said.contains("spec.http[0].route[0].weight: the weight -1 is negative"),
        "{said}"
    );
    install("global: {configValidation: false}");
    drop(galley);
    let galley = start(&client, &GALLEY).await;
    let is_gone = async || !is_registered().await;
    let gone = eventually("the registration's end", SOON, &is_gone).await;
    assert!(gone.is_ok(), "{}", log_of(&galley));
    eventually("the object's admission", SOON, async || {
        api.create(&PostParams::default(), &bad).await.is_ok()
    })
    .await
    .unwrap();
    api.delete("bad", &DeleteParams::default()).await.unwrap();
    drop(galley);

    // It goes with the release, or nobody could change anything any more.
    install("");
    let galley = start(&client, &GALLEY).await;
    let registered = eventually("the webhook's registration", SOON, &is_registered).await;
    assert!(registered.is_ok(), "{}", log_of(&galley));
    drop(galley);
    helm(&["uninstall", "istio"], "").unwrap();
    let gone = eventually("the registration's end", SOON, &is_gone).await;
    gone.unwrap();
}

#[tokio::test]
async fn the_injectors_webhook_patches_pods_and_registers_itself() {
    let client = fresh().await;
    install("");
    let injector = start(&client, &INJECTOR).await;
    let registrations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let has_bundle = async || {
        let found = registrations.get("istio-sidecar-injector").await.ok();
        let webhooks = found.and_then(|found| found.webhooks).unwrap_or_default();
        webhooks
            .iter()
            .any(|webhook| webhook.client_config.ca_bundle.is_some())
    };
    eventually("the webhook's caBundle", SOON, &has_bundle)
        .await
        .unwrap();
    // Somebody takes it away: it comes back.
    let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let patch = Patch::Json::<()>(serde_json::from_value(patch).unwrap());
    registrations
        .patch("istio-sidecar-injector", &PatchParams::default(), &patch)
        .await
        .unwrap();
    eventually("the webhook's caBundle again", SOON, &has_bundle)
        .await
        .unwrap();

    let pods = injected_namespace(&client, "shop").await;
    let mut made = None;
    for _ in 0..100 {
        let found = admitted(&pods).await;
        if found.spec.as_ref().unwrap().containers.len() == 2 {
            made = Some(found);
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let made = serde_json::to_value(made.expect("no pod was injected")).unwrap();
    assert_eq!(made["spec"]["containers"][1]["name"], "istio-proxy");
    assert_eq!(
        made["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"],
        "/app-health/web/readyz"
    );
    let arguments = made["spec"]["containers"][1]["args"].to_string();
    assert!(
        arguments.contains("istio-pilot.istio-system.svc:15010"),
        "{arguments}"
    );

    // Another template, and the next pod follows it.
    let config = fs::read_to_string(injector.folder.join("inject-config/config")).unwrap();
    let changed = config.replace("policy: enabled", "policy: disabled");
    assert_ne!(config, changed);
    fs::write(injector.folder.join("inject-config/config"), changed).unwrap();
    eventually("the new policy", SOON, async || {
        admitted(&pods).await.spec.unwrap().containers.len() == 1
    })
    .await
    .unwrap();
}

/// A namespace whose pods are injected.
async fn injected_namespace(client: &Client, name: &str) -> Api<Pod> {
    let spaces: Api<Namespace> = Api::all(client.clone());
    let space = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"istio-injection": "enabled"}},
    });
    let params = PatchParams::apply("test").force();
    spaces
        .patch(name, &params, &Patch::Apply(space))
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    eventually("the default service account", SOON, async || {
        accounts.get("default").await.is_ok()
    })
    .await
    .unwrap();
    Api::namespaced(client.clone(), name)
}

/// How many containers a pod would have, or why it may not be.
async fn containers(pods: &Api<Pod>) -> Result<usize, kube::Error> {
    let pod = json!({
        "metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "example.com/web:1"}]},
    });
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = serde_json::from_value(pod).unwrap();
    let made = pods.create(&dry, &pod).await?;
    Ok(made.spec.unwrap().containers.len())
}

/// A pod as the API server takes it in; it is gone at once.
async fn admitted(pods: &Api<Pod>) -> Pod {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [{
            "name": "web", "image": "example.com/web:1", "readinessProbe": {"tcpSocket": {"port": 80}},
        }]},
    }))
    .unwrap();
    let found = pods.create(&PostParams::default(), &pod).await.unwrap();
    let now = DeleteParams::default().grace_period(0);
    pods.delete("web", &now).await.unwrap();
    found
}
