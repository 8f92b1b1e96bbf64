//! Configuration over MCP, from the real source.

use std::sync::Arc;

use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto::istio::policy::v1beta1::Handler;
use proto_component::Process;
use proto_component::grpc::{ServerOptions, serve};
use proto_component::listen::Listener;
use proto_mcp::metrics::McpMetrics;
use proto_mcp::snapshot::{Collection, Snapshot};
use proto_mcp::source::Source;

use crate::server::{TestServer, default_config, eventually};

/// A resource of a document.
fn resource(document: &serde_json::Value, message: &str) -> Arc<Resource> {
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

#[tokio::test]
async fn configuration_comes_over_mcp_and_a_bad_resource_does_no_harm() {
    let process = Process::detached("source");
    let mut snapshot = Snapshot::new();
    let mut names = Vec::new();
    for (kind, plural, message) in [
        (
            "attributemanifest",
            "attributemanifests",
            "AttributeManifest",
        ),
        ("handler", "handlers", "Handler"),
        ("instance", "instances", "Instance"),
        ("rule", "rules", "Rule"),
    ] {
        let message = format!("istio.policy.v1beta1.{message}");
        let documents = proto::yaml::parse_documents(&default_config());
        let mut resources: Vec<_> = documents
            .into_iter()
            .map(|document| document.unwrap().value)
            .filter(|document| document["kind"] == kind)
            .map(|document| resource(&document, &message))
            .collect();
        if kind == "handler" {
            let wrong = Handler {
                compiled_adapter: "nothing".into(),
                ..Handler::default()
            };
            let metadata = Metadata {
                name: "istio-system/wrong".into(),
                version: "1".into(),
                ..Metadata::default()
            };
            resources.push(Arc::new(Resource {
                metadata: Some(metadata),
                body: Some(proto::any::pack(&wrong)),
            }));
        }
        let name = format!("istio/policy/v1beta1/{plural}");
        snapshot.insert(name.clone(), Arc::new(Collection::new(resources)));
        names.push(name);
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
    let server = TestServer::start_with(&format!("mcp://127.0.0.1:{port}"), folder).await;
    let page = config_page(&server).await;
    assert_eq!(page["counts"]["rules"], 5);
    assert_eq!(page["counts"]["instances"], 9);
    assert_eq!(page["errors"].as_array().unwrap().len(), 1);
    assert_eq!(page["errors"][0]["name"], "wrong.handler.istio-system");
    // The source knows no pods and ends the stream over them; the next one does without.
    eventually("connected", || async {
        config_page(&server).await["source"]["mcp"]["is_connected"] == true
    })
    .await;
}

async fn config_page(server: &TestServer) -> serde_json::Value {
    serde_json::from_str(&server.page("/debug/config").await).unwrap()
}
