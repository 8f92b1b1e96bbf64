//! The configuration: services, VirtualServices and DestinationRules, over MCP.

use std::sync::Arc;

use anyhow::Context as _;
use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto_component::drain::Drain;
use proto_component::grpc::{self, ServerOptions};
use proto_component::listen::Listener;
use proto_component::task;
use proto_mcp::metrics::McpMetrics;
use proto_mcp::snapshot::{Collection, Snapshot};
use proto_mcp::source::Source;
use serde_json::json;

use super::Args;

fn resource(name: &str, spec: &serde_json::Value, kind: &str, version: u64) -> Arc<Resource> {
    let body = proto::json::any_from_value(kind, spec).expect("the bench writes what is right");
    Arc::new(Resource {
        metadata: Some(Metadata {
            name: name.to_owned(),
            version: version.to_string(),
            ..Metadata::default()
        }),
        body: Some(body),
    })
}

/// Namespaces of the services: four, as in a mesh of teams.
pub(super) fn namespace(index: usize) -> String {
    format!("team-{}", index % 4)
}

fn address(kind: usize, index: usize) -> String {
    format!("10.{kind}.{}.{}", index / 250, index % 250 + 1)
}

fn service(args: &Args, index: usize, shift: usize) -> Arc<Resource> {
    let namespace = namespace(index);
    let endpoints: Vec<_> = (0..args.endpoints)
        .map(|number| {
            let place = index * args.endpoints + number + if number == 0 { shift } else { 0 };
            json!({
                "address": format!("11.{}.{}.{}", place / 62_500, place / 250 % 250, place % 250 + 1),
                "labels": {"app": format!("s{index}"), "version": format!("v{}", number % 2 + 1), "security.istio.io/tlsMode": "istio"},
                "serviceAccount": format!("s{index}"),
                "locality": format!("r1/z{}", number % 3),
            })
        })
        .collect();
    let spec = json!({
        "hosts": [format!("s{index}.{namespace}.svc.cluster.local")],
        "addresses": [address(96, index)],
        "location": "MESH_INTERNAL", "resolution": "STATIC",
        "ports": [{"number": 8080, "name": "http", "protocol": "HTTP"}],
        "endpoints": endpoints,
    });
    let name = format!("{namespace}/s{index}");
    resource(
        &name,
        &spec,
        "istio.networking.v1alpha3.ServiceEntry",
        1 + shift as u64,
    )
}

fn virtual_service(index: usize, seconds: u64) -> Arc<Resource> {
    let host = format!("s{index}.{}.svc.cluster.local", namespace(index));
    let spec = json!({
        "hosts": [host],
        "http": [
            {"match": [{"headers": {"x-user": {"exact": "test"}}}], "route": [{"destination": {"host": host, "subset": "v2"}}]},
            {"timeout": format!("{seconds}s"), "route": [
                {"destination": {"host": host, "subset": "v1"}, "weight": 90},
                {"destination": {"host": host, "subset": "v2"}, "weight": 10}]},
        ],
    });
    let name = format!("{}/s{index}", namespace(index));
    resource(
        &name,
        &spec,
        "istio.networking.v1alpha3.VirtualService",
        seconds,
    )
}

fn destination_rule(index: usize) -> Arc<Resource> {
    let spec = json!({
        "host": format!("s{index}.{}.svc.cluster.local", namespace(index)),
        "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 100}}},
        "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}],
    });
    let name = format!("{}/s{index}", namespace(index));
    resource(&name, &spec, "istio.networking.v1alpha3.DestinationRule", 1)
}

/// The configuration, with the timeout of the first VirtualService and the first endpoint of the first service to choose.
pub(super) fn snapshot(args: &Args, seconds: u64, shift: usize) -> Arc<Snapshot> {
    let services =
        (0..args.services).map(|index| service(args, index, if index == 0 { shift } else { 0 }));
    let routes = (0..args.virtual_services)
        .map(|index| virtual_service(index, if index == 0 { seconds } else { 5 }));
    let rules = (0..args.destination_rules).map(destination_rule);
    let mut snapshot = Snapshot::new()
        .with(
            proto::kind::SYNTHETIC_SERVICE_ENTRIES,
            Collection::new(services),
        )
        .with(
            "istio/networking/v1alpha3/virtualservices",
            Collection::new(routes),
        )
        .with(
            "istio/networking/v1alpha3/destinationrules",
            Collection::new(rules),
        );
    for kind in proto::kind::KINDS {
        if snapshot.get(kind.collection).is_none() {
            snapshot.insert(kind.collection, Arc::new(Collection::new([])));
        }
    }
    Arc::new(snapshot)
}

/// The source of the configuration, and its port.
pub(super) async fn start_source(drain: &Drain) -> anyhow::Result<(Source, u16)> {
    let known = proto::kind::KINDS
        .iter()
        .map(|kind| kind.collection.to_owned());
    let known = known.chain([proto::kind::SYNTHETIC_SERVICE_ENTRIES.to_owned()]);
    let metrics = McpMetrics::register("bench", &prometheus::Registry::new())?;
    let source = Source::new(known, metrics, Arc::new(|_| Ok(())), drain.clone());
    let listener = Listener::bind_text("127.0.0.1:0", "--mcp").await?;
    let port = listener.port().context("port")?;
    let routes = tonic::service::Routes::new(source.service(usize::MAX));
    let (serving, incoming) = (drain.clone(), listener.plaintext(drain));
    task::spawn("mcp", async move {
        grpc::serve(incoming, routes, &ServerOptions::default(), None, serving).await
    });
    Ok((source, port))
}
