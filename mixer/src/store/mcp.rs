//! Configuration over MCP. A collection with a resource that cannot be read is taken all the same: the others work, and what is
//! wrong shows in the log, the metrics and on `/debug/config`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use prost::Message as _;
use proto::istio::mcp::v1alpha1 as wire;
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::ClientTls;
use proto_component::{Process, process::Usage, task};
use proto_mcp::metrics::McpMetrics;
use proto_mcp::sink::{Sink, SinkOptions, SinkView, Subscription};
use proto_mcp::snapshot::Collection;
use proto_mesh::Metadata;
use tokio::sync::watch;

use super::decode::{self, Kind};
use crate::args::TlsArgs;
use crate::config::{FullName, ItemError, Resources, params};
use crate::pods::Pods;

/// The cluster's pods.
const PODS: &str = "k8s/core/v1/pods";
/// The older line's kinds that are named after an adapter or a template travel as their JSON, each in a collection of its own.
const LEGACY: &str = "istio/config/v1alpha2/legacy/";
const LEGACY_KINDS: [(&str, &str); 24] = [
    ("apikey", "apikeys"),
    ("authorization", "authorizations"),
    ("bypass", "bypasses"),
    ("checknothing", "checknothings"),
    ("denier", "deniers"),
    ("edge", "edges"),
    ("fluentd", "fluentds"),
    ("kubernetes", "kuberneteses"),
    ("kubernetesenv", "kubernetesenvs"),
    ("listchecker", "listcheckers"),
    ("listentry", "listentries"),
    ("logentry", "logentries"),
    ("memquota", "memquotas"),
    ("metric", "metrics"),
    ("noop", "noops"),
    ("opa", "opas"),
    ("prometheus", "prometheuses"),
    ("quota", "quotas"),
    ("redisquota", "redisquotas"),
    ("reportnothing", "reportnothings"),
    ("statsd", "statsds"),
    ("stdio", "stdios"),
    ("tracespan", "tracespans"),
    ("zipkin", "zipkins"),
];

/// Subscribes; the channel hears of every state once all collections have come.
pub(super) fn start(
    target: &str,
    tls: Option<&TlsArgs>,
    process: &Process,
    sender: watch::Sender<Option<Arc<Resources>>>,
    pods: Arc<ArcSwap<Pods>>,
) -> anyhow::Result<SinkView> {
    let tls = tls.map(client_tls).transpose()?;
    let channel = grpc::channel(target, tls, &ClientOptions::default())
        .map_err(|error| Usage(format!("--configStoreURL: {error}")))?;
    let options = SinkOptions {
        id: "mixer".into(),
        collections: required()
            .map(|kind| Subscription::required(kind.collection()))
            // Not every source has them. Without pods the workloads at the other end stay unknown.
            .chain(optional().map(|(_, collection)| Subscription::optional(collection)))
            .chain([Subscription::optional(PODS)])
            .collect(),
        ..SinkOptions::default()
    };
    let metrics = McpMetrics::register("mixer", &process.registry).context("register metrics")?;
    let sink = Sink::dial(channel, options, metrics, process.drain.clone());
    let view = sink.view();
    task::spawn("config-mcp", receive(sink, sender, pods));
    Ok(view)
}

fn required() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.is_typed())
}

/// Kinds that travel as their JSON, with their collections.
fn optional() -> impl Iterator<Item = (&'static str, String)> {
    let declared = Kind::ALL.into_iter().filter(|kind| !kind.is_typed());
    let declared = declared.map(|kind| (kind.name(), kind.collection().to_owned()));
    let legacy = LEGACY_KINDS
        .iter()
        .map(|(kind, plural)| (*kind, format!("{LEGACY}{plural}")));
    declared.chain(legacy)
}

fn client_tls(args: &TlsArgs) -> anyhow::Result<ClientTls> {
    args.source().context("TLS for mcps://")
}

async fn receive(
    sink: Sink,
    sender: watch::Sender<Option<Arc<Resources>>>,
    pods: Arc<ArcSwap<Pods>>,
) {
    let mut collections: BTreeMap<String, Arc<Collection>> = BTreeMap::new();
    while let Some(update) = sink.next().await {
        if update.collection == PODS {
            let index = read_pods(&update.state);
            tracing::debug!(target: "runtime", pods = index.len(), "pods in force");
            pods.store(Arc::new(index));
            update.ack();
            continue;
        }
        collections.insert(update.collection.clone(), update.state.clone());
        update.ack();
        if required().all(|kind| collections.contains_key(kind.collection())) {
            sender.send_replace(Some(Arc::new(read(&collections))));
        }
    }
}

/// Pods travel as `google.protobuf.Struct`s of their JSON; what is none is left out.
fn read_pods(collection: &Collection) -> Pods {
    let bodies = collection
        .resources
        .values()
        .filter_map(|resource| resource.body.as_ref());
    let pods: Vec<_> = bodies
        .filter_map(|body| prost_types::Struct::decode(body.value.as_ref()).ok())
        .map(|pod| params::to_json(Some(&pod)))
        .collect();
    Pods::new(pods.iter())
}

fn read(collections: &BTreeMap<String, Arc<Collection>>) -> Resources {
    let mut resources = Resources::default();
    for kind in required() {
        let Some(collection) = collections.get(kind.collection()) else {
            continue;
        };
        for resource in collection.resources.values() {
            add(&mut resources, kind, resource);
        }
    }
    for (kind, collection) in optional() {
        let Some(collection) = collections.get(&collection) else {
            continue;
        };
        for resource in collection.resources.values() {
            add_json(&mut resources, kind, resource);
        }
    }
    resources
}

fn metadata(resource: &wire::Resource) -> Metadata {
    let meta = resource.metadata.as_ref();
    meta.map(Metadata::from).unwrap_or_default()
}

fn add(resources: &mut Resources, kind: Kind, resource: &wire::Resource) {
    let meta = metadata(resource);
    let body = resource.body.as_ref();
    let message = body.map_or("", |body| proto::type_url::message_name(&body.type_url));
    if message != kind.message() {
        let problem = format!("carries {message:?} instead of {}", kind.message());
        let error = ItemError::new(&meta.full_name(), "", problem);
        resources.errors.push(error);
        return;
    }
    let bytes = body.map_or(&[][..], |body| &body.value);
    decode::add(resources, kind, kind.name(), &meta, bytes);
}

fn add_json(resources: &mut Resources, kind_name: &str, resource: &wire::Resource) {
    let meta = metadata(resource);
    let body = resource.body.as_ref();
    let spec = body.and_then(|body| prost_types::Struct::decode(body.value.as_ref()).ok());
    let name = FullName::new(&meta.name, kind_name, &meta.namespace);
    let spec = params::to_json(spec.as_ref());
    match decode::encode(kind_name, &spec) {
        Some(Ok((kind, bytes))) => decode::add(resources, kind, kind_name, &meta, &bytes),
        Some(Err((path, problem))) => {
            let error = ItemError::new(&name, format!("spec.{path}"), problem);
            resources.errors.push(error);
        }
        None => {}
    }
}
