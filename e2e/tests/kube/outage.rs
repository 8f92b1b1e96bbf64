//! The API server is away for a while: components go on with what they know, and catch up when it is back.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::mesh::eventually;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::component::{CITADEL, Component, GALLEY, INJECTOR, PILOT, log_of, start, start_with};
use crate::{SOON, fresh, install, virtual_service, virtual_services};

/// How long it is away.
const OUTAGE: Duration = Duration::from_secs(30);

/// The API server of `e2e/kube/run`, ended; started again by [`ApiServer::start`].
struct ApiServer {
    program: PathBuf,
    process: Option<Child>,
}

impl ApiServer {
    fn stop() -> Self {
        let program = std::env::var_os("API_SERVER").expect("$API_SERVER; e2e/kube/run sets it");
        let program = PathBuf::from(program);
        let pid = fs::read_to_string(program.with_extension("pid")).unwrap();
        let killed = Command::new("kill").args(["-9", pid.trim()]).status();
        assert!(killed.unwrap().success());
        Self {
            program,
            process: None,
        }
    }

    fn start(&mut self) {
        // It outlives this test; `e2e/kube/run` ends it.
        self.process = Some(Command::new(&self.program).spawn().unwrap());
    }
}

impl Drop for ApiServer {
    /// A test that failed leaves one for the others.
    fn drop(&mut self) {
        if self.process.is_none() {
            self.start();
        }
    }
}

#[tokio::test]
async fn components_go_on_without_the_api_server_and_catch_up() {
    let client = fresh().await;
    install("");
    let (galley, injector) = (
        start(&client, &GALLEY).await,
        start(&client, &INJECTOR).await,
    );
    let citadel = start(&client, &CITADEL).await;
    // There is no name server here.
    let served = format!("127.0.0.1:{}", galley.other_ports[0]);
    let edit = |text: &str| text.replace("istio-galley.istio-system.svc:9901", &served);
    let pilot = start_with(&client, &PILOT, "0", &edit).await;
    let all = [&galley, &injector, &citadel, &pilot];
    for component in all {
        let is_ready = eventually("readiness", SOON, async || component.is_ready().await).await;
        assert!(is_ready.is_ok(), "{}", log_of(component));
    }
    change(&client, "before", &pilot, &galley).await;

    let mut server = ApiServer::stop();
    let end = tokio::time::Instant::now() + OUTAGE;
    while tokio::time::Instant::now() < end {
        for component in all {
            assert!(component.is_ready().await, "{}", log_of(component));
        }
        assert!(knows_service(&pilot, "before").await, "{}", log_of(&pilot));
        assert!(knows_route(&galley, "before").await, "{}", log_of(&galley));
        assert_eq!(injected(&injector)["response"]["allowed"], true);
        let refused = asked(
            &galley,
            "/admitpilot",
            &review(&virtual_service(
                "bad",
                &json!([{"destination": {"host": "a"}, "weight": -1}]),
            )),
        );
        assert_eq!(refused["response"]["allowed"], false, "{refused}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    server.start();
    let version = async || client.apiserver_version().await.is_ok();
    eventually("the API server", SOON, version).await.unwrap();
    change(&client, "after", &pilot, &galley).await;

    // Who writes to the cluster leads again.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let space = serde_json::from_value(json!({"metadata": {"name": "after-the-outage"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &space)
        .await
        .unwrap();
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), "after-the-outage");
    let has_root = async || config_maps.get("istio-ca-root-cert").await.is_ok();
    let outcome = eventually("the root in a new namespace", SOON, has_root).await;
    assert!(outcome.is_ok(), "{}", log_of(&citadel));
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let patch = Patch::Json::<()>(serde_json::from_value(patch).unwrap());
    let params = PatchParams::default();
    mutating
        .patch(INJECTOR.deployment, &params, &patch)
        .await
        .unwrap();
    let outcome = eventually("the caBundle", SOON, async || {
        let found = mutating.get(INJECTOR.deployment).await.ok();
        let webhooks = found.and_then(|found| found.webhooks).unwrap_or_default();
        webhooks
            .iter()
            .any(|webhook| webhook.client_config.ca_bundle.is_some())
    })
    .await;
    assert!(outcome.is_ok(), "{}", log_of(&injector));
}

/// A service and a route of this name; waits until Pilot and Galley know them.
async fn change(client: &Client, name: &str, pilot: &Component, galley: &Component) {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let service = serde_json::from_value(
        json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
    )
    .unwrap();
    let params = PostParams::default();
    // A new API server has no addresses to give in its first moments.
    let created = eventually("the service's creation", SOON, async || {
        services.create(&params, &service).await.is_ok() || services.get(name).await.is_ok()
    });
    created.await.unwrap();
    let outcome = eventually("the service at Pilot", SOON, async || {
        knows_service(pilot, name).await
    })
    .await;
    assert!(outcome.is_ok(), "{}", log_of(pilot));
    let routes = virtual_services(client);
    let route = virtual_service(name, &json!([{"destination": {"host": name}}]));
    // The webhook is registered a moment later, and asks Galley then.
    let created = eventually("the route's admission", SOON, async || {
        routes.create(&params, &route).await.is_ok() || routes.get(name).await.is_ok()
    });
    created.await.unwrap();
    let outcome = eventually("the route at Galley", SOON, async || {
        knows_route(galley, name).await
    })
    .await;
    assert!(outcome.is_ok(), "{}", log_of(galley));
}

async fn knows_service(pilot: &Component, name: &str) -> bool {
    let host = format!("{name}.default.svc.cluster.local");
    let page = pilot.page("/debug/registryz").await;
    page.is_ok_and(|page| page.body.contains(&host))
}

async fn knows_route(galley: &Component, name: &str) -> bool {
    let path = "/debug/snapshot?collection=istio/networking/v1alpha3/virtualservices";
    let page = galley.page(path).await;
    page.is_ok_and(|page| page.body.contains(&format!("default/{name}")))
}

pub(crate) fn injected(injector: &Component) -> Value {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "example.com/web:1"}]},
    });
    asked(injector, "/inject", &review(&pod))
}

pub(crate) fn review(object: &impl serde::Serialize) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "operation": "CREATE", "namespace": "default", "object": object,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {},
        },
    })
}

/// Asks a webhook as the API server would.
pub(crate) fn asked(component: &Component, path: &str, review: &Value) -> Value {
    let url = format!("https://127.0.0.1:{}{path}", component.port);
    let output = Command::new("curl")
        .args([
            "-sk",
            "--max-time",
            "10",
            "-H",
            "content-type: application/json",
        ])
        .args(["-d", &review.to_string(), &url])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let text = String::from_utf8_lossy(&output.stdout);
        panic!("{path}: {error}: {text:?}: {}", log_of(component))
    })
}
