//! The versions of a kind: what is written, or even stored, in one of them is read in every other, as what it is.

use std::collections::BTreeSet;

use e2e::mesh::eventually;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::{SOON, fresh, install};

const GROUP: &str = "networking.istio.io";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

#[tokio::test]
async fn what_is_stored_in_one_version_is_read_in_every_other() {
    let client = fresh().await;
    // Nobody else judges it.
    install("{galley: {enabled: false}, mixer: {enabled: false}}");
    versions_of_a_kind_have_one_schema(&client).await;
    let route = json!([{"destination": {"host": "b", "port": {"number": 80}}, "weight": 100}]);
    let spec = json!({"hosts": ["a"], "http": [{"route": route, "timeout": "3s"}]});
    for stored in VERSIONS {
        is_stored_as(&client, stored).await;
        for written in VERSIONS {
            let name = format!("{stored}-{written}");
            create(&client, written, &name, &spec).await;
            is_read_in_every_version(&client, &name, &spec).await;
        }
    }

    // Back to where the chart has it: what the other storage versions have left is read and changed as before.
    is_stored_as(&client, VERSIONS[0]).await;
    let changed = json!({"spec": {"hosts": ["c"]}});
    let mut new = spec.clone();
    new["hosts"] = json!(["c"]);
    for stored in VERSIONS {
        for written in VERSIONS {
            let name = format!("{stored}-{written}");
            is_read_in_every_version(&client, &name, &spec).await;
            let api = routes(&client, written);
            let (params, patch) = (PatchParams::default(), Patch::Merge(&changed));
            api.patch(&name, &params, &patch).await.unwrap();
            is_read_in_every_version(&client, &name, &new).await;
            api.delete(&name, &DeleteParams::default()).await.unwrap();
        }
    }
}

/// So that the API server needs nobody's help to convert between them.
async fn versions_of_a_kind_have_one_schema(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let ours = ListParams::default().labels("app=bireme-init");
    let definitions = definitions.list(&ours).await.unwrap().items;
    assert!(!definitions.is_empty());
    for definition in definitions {
        let (name, spec) = (definition.metadata.name.unwrap(), definition.spec);
        let strategy = spec.conversion.map(|conversion| conversion.strategy);
        assert_eq!(strategy.as_deref(), Some("None"), "{name}");
        let schemas = spec.versions.iter().map(|version| {
            assert!(version.served, "{name} {}", version.name);
            serde_json::to_string(&version.schema).unwrap()
        });
        let schemas: BTreeSet<String> = schemas.collect();
        assert_eq!(schemas.len(), 1, "{name}");
        let stored = spec.versions.iter().filter(|version| version.storage);
        assert_eq!(stored.count(), 1, "{name}");
    }
}

fn routes(client: &Client, version: &str) -> Api<DynamicObject> {
    let of = GroupVersionKind::gvk(GROUP, version, "VirtualService");
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&of))
}

/// Lets the API server keep virtual services in this version from now on.
async fn is_stored_as(client: &Client, version: &str) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = format!("virtualservices.{GROUP}");
    let hash = async || {
        let group = format!("{GROUP}/v1");
        let served = client.list_api_group_resources(&group).await;
        let mut served = served.unwrap().resources.into_iter();
        let found = served.find(|found| found.name == "virtualservices");
        found.and_then(|found| found.storage_version_hash)
    };
    let before = hash().await;
    let mut is_other = false;
    let written = eventually("another storage version", SOON, async || {
        let mut found = definitions.get(&name).await.unwrap();
        for each in &mut found.spec.versions {
            is_other |= each.storage && each.name != version;
            each.storage = each.name == version;
        }
        // Somebody may have written to it meanwhile.
        let params = PostParams::default();
        definitions.replace(&name, &params, &found).await.is_ok()
    });
    written.await.unwrap();
    let in_force = eventually("the storage version in force", SOON, async || {
        !is_other || hash().await != before
    });
    in_force.await.unwrap();
    let status = definitions.get(&name).await.unwrap().status;
    let stored = status.and_then(|status| status.stored_versions);
    let stored = stored.unwrap_or_default();
    assert!(stored.iter().any(|each| each == version), "{stored:?}");
}

async fn create(client: &Client, version: &str, name: &str, spec: &Value) {
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": format!("{GROUP}/{version}"), "kind": "VirtualService", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap();
    let params = PostParams::default();
    let made = routes(client, version).create(&params, &object).await;
    made.unwrap();
}

async fn is_read_in_every_version(client: &Client, name: &str, spec: &Value) {
    let mut seen = BTreeSet::new();
    for version in VERSIONS {
        let api = routes(client, version);
        let one = api.get(name).await.unwrap();
        let types = one.types.clone().unwrap();
        assert_eq!(types.api_version, format!("{GROUP}/{version}"), "{name}");
        assert_eq!(one.data["spec"], *spec, "{name} in {version}");
        let own = ListParams::default().fields(&format!("metadata.name={name}"));
        let listed = api.list(&own).await.unwrap();
        assert_eq!(listed.types.api_version, format!("{GROUP}/{version}"));
        assert_eq!(listed.items[0].data["spec"], *spec, "{name} in {version}");
        seen.insert((one.metadata.uid, one.metadata.resource_version));
    }
    assert_eq!(seen.len(), 1, "{name} is one object");
}
