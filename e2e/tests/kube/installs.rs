//! Installations as a whole: what Helm and `biremectl` bring into a cluster is what renders, object for object, and they leave
//! nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::mesh::eventually;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::component::{self, INJECTOR, log_of, start, write_kubeconfig};
use crate::objects::{self, Names};
use crate::{
    NAMESPACE, SOON, UMBRELLA, charts, containers, fresh, helm, injected_namespace, install,
};

const PROFILES: &[(&str, usize)] = &[
    ("default", 8),
    ("demo", 11),
    ("minimal", 1),
    ("production", 7),
    ("remote", 2),
    ("sds", 8),
    ("demo-auth", 11),
];

/// Values, and the Deployments that they take away from the default installation; what else they change is what renders.
const SWITCHES: &[(&str, &[&str])] = &[
    ("pilot: {enabled: false}", &["istio-pilot"]),
    ("security: {enabled: false}", &["istio-citadel"]),
    (
        "mixer: {enabled: false}",
        &["istio-policy", "istio-telemetry"],
    ),
    ("mixer: {policy: {enabled: false}}", &["istio-policy"]),
    ("mixer: {telemetry: {enabled: false}}", &["istio-telemetry"]),
    (
        "galley: {enabled: false}\nmixer: {enabled: false}",
        &["istio-galley", "istio-policy", "istio-telemetry"],
    ),
    (
        "sidecarInjectorWebhook: {enabled: false}",
        &["istio-sidecar-injector"],
    ),
    ("gateways: {enabled: false}", &["istio-ingressgateway"]),
    ("prometheus: {enabled: false}", &["prometheus"]),
    ("gateways: {istio-egressgateway: {enabled: true}}", &[]),
    ("gateways: {istio-ilbgateway: {enabled: true}}", &[]),
    ("grafana: {enabled: true}", &[]),
    ("tracing: {enabled: true}", &[]),
    ("istio_cni: {enabled: true}", &[]),
    ("global: {networkPolicy: {enabled: true}}", &[]),
    (
        "global: {defaultPodDisruptionBudget: {enabled: false}}",
        &[],
    ),
    ("global: {mtls: {enabled: true}}", &[]),
    ("pilot: {autoscaleEnabled: false}", &[]),
];

/// The names of what the umbrella chart renders.
fn rendered(values: &str) -> Names {
    let arguments = ["template", "istio", UMBRELLA.as_str(), "-f", "-"];
    objects::names(&helm(&arguments, values).unwrap())
}

fn deployments(names: &Names) -> Vec<&str> {
    names
        .iter()
        .filter_map(|name| name.strip_prefix("Deployment "))
        .collect()
}

/// Waits until the cluster holds these objects beside what was there before, and no others.
async fn holds(client: &Client, before: &Names, wanted: &Names, what: &str) {
    let mut found = Names::new();
    let settled = eventually(what, SOON, async || {
        found = objects::added(client, before).await;
        found == *wanted
    });
    if settled.await.is_err() {
        let missing: Vec<_> = wanted.difference(&found).collect();
        let left: Vec<_> = found.difference(wanted).collect();
        panic!("{what}: missing are {missing:?}, too many are {left:?}");
    }
}

/// The cluster without a mesh.
async fn bare() -> Client {
    let client = fresh().await;
    helm(&["uninstall", "istio", "--ignore-not-found"], "").unwrap();
    client
}

#[tokio::test]
async fn profiles_and_switches_install_upgrade_and_leave_nothing() {
    let client = bare().await;
    let before = objects::all(&client).await;
    for (profile, count) in PROFILES {
        let values = fs::read_to_string(charts().join(format!("profiles/{profile}.yaml"))).unwrap();
        install(&values);
        let wanted = rendered(&values);
        assert_eq!(deployments(&wanted).len(), *count, "{profile}: {wanted:?}");
        holds(&client, &before, &wanted, profile).await;
    }
    install("");
    let all = rendered("");
    holds(&client, &before, &all, "without values").await;
    for (values, gone) in SWITCHES {
        install(values);
        let wanted = rendered(values);
        assert_ne!(wanted, all, "{values} changes nothing");
        let left = deployments(&wanted);
        let missing = deployments(&all)
            .into_iter()
            .filter(|name| !left.contains(name));
        assert_eq!(missing.collect::<Vec<_>>(), *gone, "{values}");
        holds(&client, &before, &wanted, values).await;
        install("");
        holds(&client, &before, &all, &format!("{values} taken back")).await;
    }
    helm(&["uninstall", "istio"], "").unwrap();
    holds(&client, &before, &Names::new(), "nothing is left").await;
}

/// Each component's chart by itself, side by side in one namespace.
#[tokio::test]
async fn components_are_releases_of_their_own() {
    let client = bare().await;
    let before = objects::all(&client).await;
    let mut wanted = Names::new();
    let releases = ["galley", "pilot", "citadel", "mixer", "injector", "gateway"];
    for release in releases {
        let chart = charts().join(release).display().to_string();
        helm(&["dependency", "build", &chart], "").unwrap();
        helm(&["install", release, &chart], "").unwrap();
        let alone = helm(&["template", release, &chart], "").unwrap();
        let alone = objects::names(&alone);
        assert!(wanted.is_disjoint(&alone), "{release}: {alone:?}");
        wanted.extend(alone);
        holds(&client, &before, &wanted, release).await;
    }
    // They know each other by the names that everybody knows.
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let mesh = config_maps.get("istio").await.unwrap().data.unwrap();
    let source = "address: istio-galley.istio-system.svc:9901";
    assert!(mesh["mesh"].contains(source), "{}", mesh["mesh"]);
    let injector = start(&client, &INJECTOR).await;
    let pods = injected_namespace(&client, "alone").await;
    let injected = eventually("a pod is injected", SOON, async || {
        containers(&pods).await.is_ok_and(|count| count == 2)
    });
    assert!(injected.await.is_ok(), "{}", log_of(&injector));
    drop(injector);
    helm(&["uninstall", "pilot"], "").unwrap();
    let left = objects::added(&client, &before).await;
    assert_eq!(deployments(&left).len(), 6, "{left:?}");
    for release in releases.into_iter().filter(|release| *release != "pilot") {
        helm(&["uninstall", release], "").unwrap();
    }
    let left = objects::added(&client, &before).await;
    assert!(deployments(&left).is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_commands_of_the_readme_install_the_mesh() {
    let client = fresh().await;
    for release in ["istio", "istio-init"] {
        helm(&["uninstall", release, "--ignore-not-found"], "").unwrap();
    }
    let project = charts().join("..");
    let readme = fs::read_to_string(project.join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Kubernetes\n\n```sh\n").unwrap();
    let (commands, _) = section.split_once("```").unwrap();
    // `helm` is the one that the other tests use.
    let script = format!("set -eu; helm() {{ \"$HELM\" \"$@\"; }}\n{commands}");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(&project)
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    let there = objects::all(&client).await;
    assert_eq!(deployments(&there).len(), 11, "{there:?}");
    let namespaces: Api<Namespace> = Api::all(client);
    let labels = namespaces.get("default").await.unwrap().metadata.labels;
    assert_eq!(labels.unwrap()["istio-injection"], "enabled");
    let unlabel = json!({"metadata": {"labels": {"istio-injection": null}}});
    namespaces
        .patch("default", &PatchParams::default(), &Patch::Merge(unlabel))
        .await
        .unwrap();
    for release in ["istio", "istio-init"] {
        helm(&["uninstall", release], "").unwrap();
    }
}

/// Runs `biremectl` over the charts, as the administrator or as `config` says: whether it was content, and what it printed.
fn biremectl(config: Option<&Path>, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(component::debug_folder().join("biremectl"));
    if let Some(config) = config {
        command.env("KUBECONFIG", config);
    }
    command.args(arguments).arg("--manifests").arg(charts());
    let output = command.output().unwrap();
    let text =
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), text)
}

fn good(arguments: &[&str]) -> String {
    let (is_good, text) = biremectl(None, arguments);
    assert!(is_good, "{arguments:?}: {text}");
    text
}

fn refused(config: Option<&Path>, arguments: &[&str], sentence: &str) {
    let (is_good, text) = biremectl(config, arguments);
    assert!(!is_good && text.contains(sentence), "{arguments:?}: {text}");
}

/// What the components write by themselves, as they would.
fn written() -> Vec<Value> {
    let of = |api_version: &str, kind: &str, namespace: &str, name: &str| {
        json!({
            "apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace},
        })
    };
    let secret = |namespace: &str, account: &str| {
        let mut secret = of("v1", "Secret", namespace, "istio.default");
        secret["type"] = json!("istio.io/key-and-cert");
        secret["metadata"]["annotations"] = json!({"istio.io/service-account.name": account});
        secret
    };
    let registration = "ValidatingWebhookConfiguration";
    let admission = "admissionregistration.k8s.io/v1";
    vec![
        secret("default", "default"),
        // Somebody else's of the same type, which is to stay.
        secret("kube-public", "somebody"),
        of("v1", "Secret", NAMESPACE, "istio-ca-secret"),
        of("v1", "ConfigMap", "default", "istio-ca-root-cert"),
        of("v1", "ConfigMap", NAMESPACE, "istio-ca-root-cert"),
        of("v1", "ConfigMap", NAMESPACE, "istio-ca-revocations"),
        of("coordination.k8s.io/v1", "Lease", NAMESPACE, "istio-galley"),
        of(
            "coordination.k8s.io/v1",
            "Lease",
            NAMESPACE,
            "istio-citadel",
        ),
        of(admission, registration, "", "istio-galley"),
    ]
}

async fn write(client: &Client, object: &Value) {
    let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    let types = object.types.clone().unwrap();
    let of = kube::core::GroupVersionKind::try_from(&types).unwrap();
    let resource = ApiResource::from_gvk(&of);
    let (name, namespace) = (
        object.metadata.name.clone(),
        object.metadata.namespace.clone(),
    );
    let api: Api<DynamicObject> = match namespace.filter(|namespace| !namespace.is_empty()) {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams::apply("test").force();
    api.patch(&name.unwrap(), &params, &Patch::Apply(&object))
        .await
        .unwrap();
}

#[tokio::test]
async fn biremectl_installs_verifies_upgrades_and_purges() {
    let client = bare().await;
    // What an earlier test has left of the mesh goes too.
    good(&["uninstall", "--purge"]);
    refused(None, &["upgrade"], "nothing is installed");
    let before = objects::all(&client).await;
    good(&["verify-install", "--pre-check"]);
    let demo = ["--set", "profile=demo"];
    let generated =
        |settings: &[&str]| objects::names(&good(&[&["manifest", "generate"], settings].concat()));
    good(&[&["manifest", "apply"], &demo[..]].concat());
    holds(&client, &before, &generated(&demo), "the demo profile").await;
    // Nothing runs here, and it says so.
    let verify = [&["verify-install"], &demo[..]].concat();
    let complaint = "✘ Deployment: istio-pilot.istio-system is there, but not available";
    refused(None, &verify, complaint);
    let praise = "✔ Service: istio-pilot.istio-system checked successfully";
    refused(None, &verify, praise);
    // Who may not install is told so before anything is changed.
    let folder = tempfile::tempdir().unwrap();
    let config = write_kubeconfig(&client, "istio-pilot-service-account", folder.path()).await;
    let minimal = ["--set", "profile=minimal"];
    let upgrade = [&["upgrade"], &minimal[..]].concat();
    refused(Some(&config), &upgrade, "you may not create namespaces");
    holds(
        &client,
        &before,
        &generated(&demo),
        "still the demo profile",
    )
    .await;
    // What is switched off goes.
    good(&upgrade);
    holds(&client, &before, &generated(&minimal), "the minimal one").await;
    for object in written() {
        write(&client, &object).await;
    }
    good(&["uninstall", "--purge"]);
    let left = Names::from(["Secret istio.default".to_owned()]);
    holds(&client, &before, &left, "nothing but somebody else's").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-public");
    let now = DeleteParams::default();
    secrets.delete("istio.default", &now).await.unwrap();
    holds(&client, &before, &Names::new(), "nothing at all").await;
}
