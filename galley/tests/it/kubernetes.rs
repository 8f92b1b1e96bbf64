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

#[tokio::test]
#[ignore = "needs a Kubernetes API server: KUBECONFIG"]
async fn objects_of_a_cluster_are_served_and_files_count_before_them() {
    let (_client, routes) = cluster().await;
    let _ = routes.delete("reviews", &DeleteParams::default()).await;
    let object = virtual_service("reviews", "of-the-cluster");
    routes
        .create(&PostParams::default(), &object)
        .await
        .unwrap();

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
