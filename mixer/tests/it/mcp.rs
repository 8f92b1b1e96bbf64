//! Configuration over MCP, from the real source.

use std::sync::Arc;

use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto::istio::mixer::v1::ReportRequest;
use proto::istio::policy::v1beta1::Handler;
use proto_component::Process;
use proto_component::grpc::{ServerOptions, serve};
use proto_component::listen::Listener;
use proto_mcp::metrics::McpMetrics;
use proto_mcp::snapshot::{Collection, Snapshot};
use proto_mcp::source::Source;
use proto_mesh::attribute::Value;
use serde_json::{Value as Json, json};

use crate::server::{MANIFEST, TestServer, attributes, default_config, eventually, request};

/// A collection's resources by its name.
type Collections = Vec<(String, Vec<Arc<Resource>>)>;

/// A resource of a document.
fn resource(document: &Json, message: &str) -> Arc<Resource> {
    let text = |path: &str| document.pointer(path).unwrap().as_str().unwrap().to_owned();
    let body = proto::json::any_from_value(message, &document["spec"]).unwrap();
    Arc::new(Resource {
        metadata: Some(Metadata {
            name: format!("{}/{}", text("/metadata/namespace"), text("/metadata/name")),
            version: "1".into(),
            ..Metadata::default()
        }),
        body: Some(body),
    })
}

/// A resource that travels as its JSON.
fn loose(name: &str, body: &Json) -> Arc<Resource> {
    resource(
        &json!({"metadata": {"namespace": "istio-system", "name": name}, "spec": body}),
        "google.protobuf.Struct",
    )
}

/// The collections that every source has, from a text.
fn typed(text: &str) -> Collections {
    let kinds = [
        (
            "attributemanifest",
            "attributemanifests",
            "AttributeManifest",
        ),
        ("handler", "handlers", "Handler"),
        ("instance", "instances", "Instance"),
        ("rule", "rules", "Rule"),
    ];
    kinds
        .iter()
        .map(|(kind, plural, message)| {
            let documents = proto::yaml::parse_documents(text).into_iter();
            let resources = documents
                .map(|document| document.unwrap().value)
                .filter(|document| document["kind"] == *kind)
                .map(|document| resource(&document, &format!("istio.policy.v1beta1.{message}")));
            (
                format!("istio/policy/v1beta1/{plural}"),
                resources.collect(),
            )
        })
        .collect()
}

/// A Mixer that has its configuration from a source with these collections.
async fn start(process: &Process, collections: Collections) -> TestServer {
    let names: Vec<_> = collections.iter().map(|(name, _)| name.clone()).collect();
    let mut snapshot = Snapshot::new();
    for (name, resources) in collections {
        snapshot.insert(name, Arc::new(Collection::new(resources)));
    }
    let source = Source::new(
        names,
        McpMetrics::unregistered("test"),
        Arc::new(|_| Ok(())),
        process.drain.clone(),
    );
    source.publish(Arc::new(snapshot));
    let listener = Listener::bind_text("127.0.0.1:0", "test").await.unwrap();
    let port = listener.port().unwrap();
    let routes = tonic::service::Routes::new(source.service(1 << 24));
    let incoming = listener.plaintext(&process.drain);
    let drain = process.drain.clone();
    proto_component::task::spawn("source", async move {
        serve(incoming, routes, &ServerOptions::default(), None, drain).await
    });
    let folder = tempfile::tempdir().unwrap();
    TestServer::start_with(&format!("mcp://127.0.0.1:{port}"), folder).await
}

#[tokio::test]
async fn configuration_comes_over_mcp_and_a_bad_resource_does_no_harm() {
    let process = Process::detached("source");
    let mut collections = typed(&default_config());
    let wrong = Handler {
        compiled_adapter: "nothing".into(),
        ..Handler::default()
    };
    let metadata = Metadata {
        name: "istio-system/wrong".into(),
        version: "1".into(),
        ..Metadata::default()
    };
    collections[1].1.push(Arc::new(Resource {
        metadata: Some(metadata),
        body: Some(proto::any::pack(&wrong)),
    }));
    let server = start(&process, collections).await;
    let page = config_page(&server).await;
    assert_eq!(page["counts"]["rules"], 5);
    assert_eq!(page["counts"]["instances"], 9);
    assert_eq!(page["errors"].as_array().unwrap().len(), 1);
    let error = &page["errors"][0];
    assert_eq!(error["name"], "wrong.handler.istio-system");
    let known = "unknown adapter \"nothing\"; there are bypass, denier, fluentd, ";
    assert!(
        error.to_string().replace('\\', "").contains(known),
        "{error}"
    );
    // The source knows no pods and ends the stream over them; the next one does without.
    eventually("connected", || async {
        config_page(&server).await["source"]["mcp"]["is_connected"] == true
    })
    .await;
}

#[tokio::test]
async fn the_older_lines_kinds_come_over_mcp() {
    let process = Process::detached("source");
    let rule = r#"
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: deny, namespace: istio-system}
spec: {match: source.name == "evil", actions: [{handler: deny.denier, instances: [nothing.checknothing]}]}
"#;
    let mut collections = typed(&format!("{MANIFEST}---{rule}"));
    for (plural, name, spec) in [
        (
            "deniers",
            "deny",
            json!({"status": {"code": 7, "message": "no"}}),
        ),
        ("checknothings", "nothing", json!({})),
    ] {
        let name_of = format!("istio/config/v1alpha2/legacy/{plural}");
        collections.push((name_of, vec![loose(name, &spec)]));
    }
    let server = start(&process, collections).await;
    // The optional collections may come a moment later.
    eventually("the denier is in force", || {
        let mut client = server.client.clone();
        let evil = request(&attributes([("source.name", "evil".into())]));
        async move {
            let answer = client.check(evil).await.unwrap().into_inner();
            let status = answer.precondition.unwrap().status.unwrap();
            status.message == "deny.istio-system:no"
        }
    })
    .await;
}

#[tokio::test]
async fn pods_come_over_mcp_and_give_workloads_their_names() {
    let process = Process::detached("source");
    let mut collections = typed(&default_config());
    let pod = json!({
        "metadata": {"name": "web-5d8f-x", "namespace": "shop",
            "labels": {"app": "web", "version": "v7", "pod-template-hash": "5d8f"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8f", "controller": true}]},
        "spec": {"serviceAccountName": "web", "containers": []},
        "status": {"podIP": "10.1.0.1", "hostIP": "10.0.0.1"},
    });
    collections.push(("k8s/core/v1/pods".into(), vec![loose("web-5d8f-x", &pod)]));
    let server = start(&process, collections).await;
    eventually("requests of the pod are counted under its names", || {
        let mut client = server.client.clone();
        let message = request(&attributes([
            ("context.protocol", "http".into()),
            ("source.ip", Value::Bytes(vec![10, 1, 0, 1])),
        ]));
        let report = ReportRequest {
            attributes: message.attributes.into_iter().collect(),
            global_word_count: message.global_word_count,
            ..ReportRequest::default()
        };
        let server = &server;
        async move {
            client.report(report).await.unwrap();
            let counted = server.scrape().await;
            let names = r#"source_app="web",source_principal="unknown",source_version="v7",source_workload="web",source_workload_namespace="shop""#;
            counted.contains(names)
        }
    })
    .await;
}

async fn config_page(server: &TestServer) -> Json {
    serde_json::from_str(&server.page("/debug/config").await).unwrap()
}
