//! Galley with a real API server: `cargo test -p galley -- --ignored kubernetes`, with `KUBECONFIG` naming a cluster.

use super::*;
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams,
        TypeMeta,
    },
    core::GroupVersionKind,
};
use serde_json::json;

const NAMESPACE: &str = "galley-test";

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

async fn cluster() -> (Client, Api<DynamicObject>) {
    let client = Client::try_default().await.expect("a cluster");
    let namespaces: Api<DynamicObject> = Api::all_with(
        client.clone(),
        &resource("", "v1", "Namespace", "namespaces"),
    );
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let params = PatchParams::apply("galley-test");
    namespaces
        .patch(NAMESPACE, &params, &Patch::Apply(namespace))
        .await
        .unwrap();
    define(&client).await;
    // An old version: what is stored in one is read in another.
    let routes = resource(
        "networking.istio.io",
        "v1alpha3",
        "VirtualService",
        "virtualservices",
    );
    let api = Api::namespaced_with(client.clone(), NAMESPACE, &routes);
    (client, api)
}

/// Installs the definition of virtual services, and waits until they are served.
async fn define(client: &Client) {
    let output = Command::new(env!("CARGO_BIN_EXE_galley"))
        .arg("crds")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let definitions = proto::yaml::parse_documents(&text).into_iter();
    let mut definitions = definitions.map(|document| document.unwrap().value);
    let name = "virtualservices.networking.istio.io";
    let definition = definitions.find(|value| value["metadata"]["name"] == name);
    let kind = resource(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    );
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let params = PatchParams::apply("galley-test").force();
    let patch = Patch::Apply(definition.unwrap());
    api.patch(name, &params, &patch).await.unwrap();
    let is_served = async || {
        let version = "networking.istio.io/v1alpha3";
        client.list_api_group_resources(version).await.is_ok()
    };
    let waiting = async {
        while !is_served().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .expect("virtual services are served in time");
}

fn virtual_service(name: &str, host: &str) -> DynamicObject {
    DynamicObject {
        types: Some(TypeMeta {
            api_version: "networking.istio.io/v1alpha3".to_owned(),
            kind: "VirtualService".to_owned(),
        }),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: json!({"spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]}}),
    }
}

/// Creates it anew.
async fn create(routes: &Api<DynamicObject>, object: &DynamicObject) {
    let name = object.metadata.name.as_deref().unwrap();
    let _ = routes.delete(name, &DeleteParams::default()).await;
    routes.create(&PostParams::default(), object).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: KUBECONFIG"]
async fn objects_of_a_cluster_are_served_and_files_count_before_them() {
    let (_client, routes) = cluster().await;
    create(&routes, &virtual_service("reviews", "of-the-cluster")).await;

    let place = Place::new();
    let galley = place.start_with(&["--enable-kubernetes=true"]);
    let sink = place.sink(&[VIRTUAL_SERVICES]);
    let name = format!("{NAMESPACE}/reviews");
    let hosts = |state: &Collection| -> Vec<String> {
        let of = |resource: &Arc<proto::istio::mcp::v1alpha1::Resource>| {
            let body = resource.body.as_ref().unwrap();
            proto::any::unpack::<proto::istio::networking::v1alpha3::VirtualService>(body)
                .unwrap()
                .hosts
        };
        state.resources.get(&name).map(of).unwrap_or_default()
    };
    state(&sink, VIRTUAL_SERVICES, |state| {
        hosts(state) == ["of-the-cluster"]
    })
    .await;

    place.write(
        "a.yaml",
        &route("reviews", "of-a-file")
            .replace("namespace: shop", &format!("namespace: {NAMESPACE}")),
    );
    state(&sink, VIRTUAL_SERVICES, |state| {
        hosts(state) != ["of-the-cluster"]
    })
    .await;
    let rejected = place.json("/debug/rejected").await;
    assert!(rejected.to_string().contains("is defined at"), "{rejected}");
    place.remove("a.yaml");
    state(&sink, VIRTUAL_SERVICES, |state| {
        hosts(state) == ["of-the-cluster"]
    })
    .await;

    routes
        .delete("reviews", &DeleteParams::default())
        .await
        .unwrap();
    state(&sink, VIRTUAL_SERVICES, |state| hosts(state).is_empty()).await;
    drop(galley);
}

const NOWHERE: &str = "nowhere.galley-test.svc.cluster.local";
/// A service that every cluster has.
const KNOWN: &str = "kubernetes.default.svc.cluster.local";

#[tokio::test]
#[ignore = "needs a Kubernetes API server: KUBECONFIG"]
async fn files_are_analyzed_on_top_of_a_cluster() {
    let (_client, routes) = cluster().await;
    create(&routes, &virtual_service("lost", NOWHERE)).await;
    let place = Place::new();
    let is_lost = |files: &[&str]| {
        let flags = [
            "analyze",
            "--use-kube",
            "--namespace",
            NAMESPACE,
            "-o",
            "json",
        ];
        let output = galley(&[&flags, files].concat(), &place.path("config"));
        let messages: Value = serde_json::from_slice(&output.stdout).unwrap();
        let resource = format!("VirtualService lost.{NAMESPACE}");
        let mut messages = messages.as_array().unwrap().iter();
        messages.any(|message| message["resource"] == resource && message["code"] == "IST0101")
    };
    assert!(is_lost(&[]));
    let file = |name: &str, kind: &str, spec: Value| {
        let object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        });
        place.write(&format!("{kind}.yaml"), &object.to_string());
    };
    // A file adds the host.
    let ports = json!([{"number": 80, "name": "http", "protocol": "HTTP"}]);
    let entry = json!({"hosts": [NOWHERE], "ports": ports, "resolution": "DNS"});
    file("somewhere", "ServiceEntry", entry);
    assert!(!is_lost(&["ServiceEntry.yaml"]));
    // A file stands in for the cluster's object, for better or worse.
    file(
        "lost",
        "VirtualService",
        virtual_service("lost", KNOWN).data["spec"].clone(),
    );
    assert!(!is_lost(&["VirtualService.yaml"]));
    let wrong = virtual_service("lost", "other.galley-test.svc.cluster.local");
    file("lost", "VirtualService", wrong.data["spec"].clone());
    assert!(is_lost(&["ServiceEntry.yaml", "VirtualService.yaml"]));
    routes
        .delete("lost", &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: KUBECONFIG"]
async fn what_analysis_finds_is_in_the_status_of_the_objects() {
    let (_client, routes) = cluster().await;
    create(&routes, &virtual_service("noted", NOWHERE)).await;
    let place = Place::new();
    let galley = place.start_with(&["--enable-kubernetes=true", "--enableAnalysis=true"]);
    let until = async |is_good: &str, codes: &[&str]| {
        let end = Instant::now() + SOON;
        loop {
            let status = routes.get("noted").await.unwrap().data["status"].clone();
            let messages = status["validationMessages"].as_array();
            let found = messages.map(|messages| {
                let found = messages
                    .iter()
                    .map(|message| message["type"]["code"].as_str());
                found.map(Option::unwrap_or_default).collect::<Vec<_>>()
            });
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            let condition = conditions.find(|condition| condition["type"] == "PassedAnalysis");
            if found.as_deref() == Some(codes)
                && condition.is_some_and(|condition| condition["status"] == is_good)
            {
                return;
            }
            assert!(Instant::now() < end, "{status}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    until("False", &["IST0101"]).await;
    let mended = json!({"spec": virtual_service("noted", KNOWN).data["spec"]});
    let params = PatchParams::default();
    let patch = Patch::Merge(mended);
    routes.patch("noted", &params, &patch).await.unwrap();
    until("True", &[]).await;
    drop(galley);
    routes
        .delete("noted", &DeleteParams::default())
        .await
        .unwrap();
}

/// A kubeconfig of somebody else.
#[expect(
    clippy::disallowed_methods,
    reason = "a test has no command line of its own"
)]
fn kubeconfig_of(user: &str, folder: &Path) -> PathBuf {
    let own = std::env::var("KUBECONFIG").unwrap();
    let text = fs::read_to_string(own).unwrap();
    let mut documents = proto::yaml::parse_documents(&text).into_iter();
    let mut config = documents.next().unwrap().unwrap().value;
    config["users"][0]["user"]["as"] = json!(user);
    let file = folder.join("kubeconfig");
    fs::write(&file, config.to_string()).unwrap();
    file
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: KUBECONFIG"]
async fn analysis_tells_what_its_user_may_not_read() {
    const USER: &str = "galley-test-stranger";
    let (client, _routes) = cluster().await;
    let roles = "rbac.authorization.k8s.io";
    let objects = [
        (
            resource(roles, "v1", "ClusterRole", "clusterroles"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": USER},
                "rules": [{"apiGroups": ["networking.istio.io"], "resources": ["*"], "verbs": ["list"]}],
            }),
        ),
        (
            resource(roles, "v1", "ClusterRoleBinding", "clusterrolebindings"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": USER},
                "roleRef": {"apiGroup": roles, "kind": "ClusterRole", "name": USER},
                "subjects": [{"apiGroup": roles, "kind": "User", "name": USER}],
            }),
        ),
    ];
    for (kind, object) in objects {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        let params = PatchParams::apply("galley-test").force();
        api.patch(USER, &params, &Patch::Apply(object))
            .await
            .unwrap();
    }
    let place = Place::new();
    let file = kubeconfig_of(USER, &place.path("config"));
    let hidden = || {
        let flags = ["analyze", "--use-kube", "-A", "-o", "json", "--kubeconfig"];
        let flags = [&flags[..], &[file.to_str().unwrap()]].concat();
        let output = galley(&flags, &place.path("config"));
        let messages: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let hidden = messages
            .iter()
            .filter(|message| message["code"] == "IST0141");
        let kinds = hidden.map(|message| message["resource"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    let has = |hidden: &[String], kind: &str| hidden.iter().any(|known| known == kind);
    // The API server takes a moment to know the role.
    let end = Instant::now() + SOON;
    let mut seen = hidden();
    while has(&seen, "VirtualService") {
        assert!(Instant::now() < end, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen = hidden();
    }
    for kind in ["Pod", "Secret", "Deployment"] {
        assert!(has(&seen, kind), "{kind}: {seen:?}");
    }
}
