//! Measures Pilot under load: a source of configuration, and simulated proxies on real ADS streams over loopback.
//!
//! `load --pilot PATH [--services N] [--endpoints N] [--virtual-services N] [--destination-rules N] [--proxies N] [--delta]` starts
//! `pilot-discovery`, lets all proxies subscribe to everything, changes one VirtualService and the endpoints of one service, and
//! prints what that took as one line of JSON. See `e2e/bench/pilot`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use prost::Message as _;
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use proto_component::drain::{self, Drain};
use proto_component::grpc::{self, ClientOptions, ServerOptions};
use proto_component::listen::Listener;
use proto_component::task;
use proto_mcp::metrics::McpMetrics;
use proto_mcp::snapshot::{Collection, Snapshot};
use proto_mcp::source::Source;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Proxies that share one connection of the client: Pilot sees a stream each.
const STREAMS: usize = 50;
/// When something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clock ticks of /proc a second.
const TICKS: f64 = 100.0;

#[derive(Clone, Debug, Parser)]
struct Args {
    /// The program.
    #[arg(long)]
    pilot: PathBuf,
    #[arg(long, default_value_t = 1000)]
    services: usize,
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    #[arg(long, default_value_t = 500)]
    virtual_services: usize,
    #[arg(long, default_value_t = 500)]
    destination_rules: usize,
    #[arg(long, default_value_t = 30)]
    proxies: usize,
    /// Increments instead of the state of the world.
    #[arg(long)]
    delta: bool,
}

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
fn namespace(index: usize) -> String {
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
fn snapshot(args: &Args, seconds: u64, shift: usize) -> Arc<Snapshot> {
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

/// How often each type has been answered, and when last.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    counts: [u32; 4],
    last: Option<Instant>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = stat
            .rsplit_once(") ")
            .context("stat")?
            .1
            .split(' ')
            .collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / TICKS)
    }

    fn memory(&self, key: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with(key))
            .context("status")?;
        let number = line.split_whitespace().nth(1).context("status")?;
        Ok(number.parse::<f64>()? / 1024.0)
    }
}

fn index_of(type_url: &str) -> Option<usize> {
    [CLUSTER, ENDPOINT, LISTENER, ROUTE]
        .iter()
        .position(|known| *known == type_url)
}

fn node(args: &Args, index: usize) -> Node {
    let namespace = namespace(index);
    let place = index % args.services * args.endpoints;
    let ip = format!(
        "11.{}.{}.{}",
        place / 62_500,
        place / 250 % 250,
        place % 250 + 1
    );
    Node {
        id: format!("sidecar~{ip}~s{index}-1.{namespace}~{namespace}.svc.cluster.local"),
        ..Node::default()
    }
}

/// One proxy: asks for everything, accepts everything, and tells how far it is.
async fn proxy(
    args: Args,
    index: usize,
    channel: Channel,
    progress: watch::Sender<Progress>,
) -> anyhow::Result<()> {
    let client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    if args.delta {
        follow_increments(&args, index, client, &progress).await
    } else {
        follow_world(&args, index, client, &progress).await
    }
}

async fn follow_increments(
    args: &Args,
    index: usize,
    mut client: AggregatedDiscoveryServiceClient<Channel>,
    progress: &watch::Sender<Progress>,
) -> anyhow::Result<()> {
    let (requests, outgoing) = mpsc::channel(16);
    let (node, names) = (node(args, index), Names::new(args));
    let ask = |kind: &str, names: &[String]| DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: kind.to_owned(),
        resource_names_subscribe: names.to_vec(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(ask(CLUSTER, &[])).await?;
    let mut responses = client
        .delta_aggregated_resources(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    while let Some(response) = responses.next().await {
        let response = response?;
        let kind = index_of(&response.type_url).context("type")?;
        let first = progress.borrow().counts[kind] == 0;
        let accepted = DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            type_url: response.type_url,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(accepted).await?;
        match (kind, first) {
            (0, true) => requests.send(ask(ENDPOINT, &names.clusters)).await?,
            (1, true) => requests.send(ask(LISTENER, &[])).await?,
            (2, true) => requests.send(ask(ROUTE, &names.routes)).await?,
            _ => {}
        }
        note(progress, kind);
    }
    Ok(())
}

async fn follow_world(
    args: &Args,
    index: usize,
    mut client: AggregatedDiscoveryServiceClient<Channel>,
    progress: &watch::Sender<Progress>,
) -> anyhow::Result<()> {
    let (requests, outgoing) = mpsc::channel(16);
    let (node, names) = (node(args, index), Names::new(args));
    let ask = |kind: &str, names: &[String], nonce: &str| DiscoveryRequest {
        node: Some(node.clone()),
        type_url: kind.to_owned(),
        resource_names: names.to_vec(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(ask(CLUSTER, &[], "")).await?;
    let mut responses = client
        .stream_aggregated_resources(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    while let Some(response) = responses.next().await {
        let response = response?;
        let kind = index_of(&response.type_url).context("type")?;
        let first = progress.borrow().counts[kind] == 0;
        if index == 0 && kind == 0 && first {
            names.check(&response.resources)?;
        }
        let own: &[String] = match kind {
            1 => &names.clusters,
            3 => &names.routes,
            _ => &[],
        };
        let accepted = ask(&response.type_url, own, &response.nonce);
        requests.send(accepted).await?;
        match (kind, first) {
            (0, true) => requests.send(ask(ENDPOINT, &names.clusters, "")).await?,
            (1, true) => requests.send(ask(LISTENER, &[], "")).await?,
            (2, true) => requests.send(ask(ROUTE, &names.routes, "")).await?,
            _ => {}
        }
        note(progress, kind);
    }
    Ok(())
}

fn note(progress: &watch::Sender<Progress>, kind: usize) {
    progress.send_modify(|progress| {
        progress.counts[kind] += 1;
        progress.last = Some(Instant::now());
    });
}

/// What a proxy asks for by name.
struct Names {
    clusters: Vec<String>,
    routes: Vec<String>,
}

impl Names {
    fn new(args: &Args) -> Self {
        let mut clusters = Vec::new();
        for index in 0..args.services {
            let host = format!("s{index}.{}.svc.cluster.local", namespace(index));
            clusters.push(format!("outbound|8080||{host}"));
            if index < args.destination_rules {
                clusters.push(format!("outbound|8080|v1|{host}"));
                clusters.push(format!("outbound|8080|v2|{host}"));
            }
        }
        Names {
            clusters,
            routes: vec!["8080".to_owned()],
        }
    }

    /// That these are the clusters which Pilot has.
    fn check(&self, resources: &[prost_types::Any]) -> anyhow::Result<()> {
        let mut known = std::collections::HashSet::new();
        for any in resources {
            known.insert(Cluster::decode(any.value.as_ref())?.name);
        }
        match self.clusters.iter().find(|name| !known.contains(*name)) {
            Some(name) => bail!("Pilot has no cluster {name}"),
            None => Ok(()),
        }
    }
}

/// Waits until every proxy has got more of `kind` than before; the seconds that each took since `begun`.
async fn reached(
    all: &mut [watch::Receiver<Progress>],
    kind: usize,
    than: &[u32],
    begun: Instant,
) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(all.len());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for (progress, before) in all.iter_mut().zip(than) {
        let wait = progress.wait_for(|now| now.counts[kind] > *before);
        let now = *tokio::time::timeout_at(deadline, wait)
            .await
            .context("no push in time")??;
        seconds.push(
            now.last
                .unwrap_or(begun)
                .duration_since(begun)
                .as_secs_f64(),
        );
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

fn counts(all: &[watch::Receiver<Progress>], kind: usize) -> Vec<u32> {
    all.iter()
        .map(|progress| progress.borrow().counts[kind])
        .collect()
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0.0)
}

/// The source of the configuration, and its port.
async fn start_source(drain: &Drain) -> anyhow::Result<(Source, u16)> {
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

/// Pilot, ready, and the address of its xDS.
async fn start_pilot(args: &Args, folder: &Path, mcp: u16) -> anyhow::Result<(Process, String)> {
    let mesh = folder.join("mesh.yaml");
    let text = format!("configSources: [{{address: \"127.0.0.1:{mcp}\"}}]\n");
    std::fs::write(&mesh, text)?;
    let free = || {
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        socket.local_addr().map(|address| address.to_string())
    };
    let (xds, http, monitoring) = (free()?, free()?, free()?);
    let child = Command::new(&args.pilot)
        .args(["discovery", "--registries", "MCP", "--secureGrpcAddr", ""])
        .args(["--mtlsGrpcAddr", "", "--log_output_level", "default:error"])
        .arg("--meshConfig")
        .arg(&mesh)
        .args(["--grpcAddr", &xds, "--httpAddr", &http])
        .args(["--monitoringAddr", &monitoring])
        .stdout(Stdio::null())
        .spawn()
        .context("start pilot-discovery")?;
    let pilot = Process(child);
    wait_ready(&http).await?;
    Ok((pilot, xds))
}

/// Publishes `next` and waits until every proxy has got more of `kind`.
async fn change(
    pilot: &Process,
    source: &Source,
    next: Arc<Snapshot>,
    all: &mut [watch::Receiver<Progress>],
    kind: usize,
) -> anyhow::Result<serde_json::Value> {
    let (before, cpu) = (counts(all, kind), pilot.cpu()?);
    let begun = Instant::now();
    source.publish(next);
    let times = reached(all, kind, &before, begun).await?;
    // What comes after the last answer belongs to the change too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(json!({
        "cpu_s": pilot.cpu()? - cpu,
        "p50_s": percentile(&times, 50),
        "p99_s": percentile(&times, 99),
        "max_s": percentile(&times, 100),
    }))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    proto_component::tls::install_provider();
    let (_trigger, drain) = drain::channel();
    let (source, mcp) = start_source(&drain).await?;
    source.publish(snapshot(&args, 5, 0));
    let folder = std::env::temp_dir().join(format!("pilot-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (pilot, xds) = start_pilot(&args, &folder, mcp).await?;
    let idle = (pilot.cpu()?, pilot.memory("VmRSS")?);

    let begun = Instant::now();
    let mut all = Vec::new();
    let mut channel = None;
    for index in 0..args.proxies {
        if index % STREAMS == 0 {
            channel = Some(grpc::channel(&xds, None, &ClientOptions::default())?);
        }
        let (progress, follow) = watch::channel(Progress::default());
        all.push(follow);
        let channel = channel.clone().context("channel")?;
        task::spawn("proxy", proxy(args.clone(), index, channel, progress));
    }
    let full = reached(&mut all, 3, &vec![0; args.proxies], begun).await?;
    let cpu = pilot.cpu()? - idle.0;
    let loaded = pilot.memory("VmRSS")?;
    let route = change(&pilot, &source, snapshot(&args, 7, 0), &mut all, 3).await?;
    let endpoint = change(&pilot, &source, snapshot(&args, 7, 40_000), &mut all, 1).await?;
    let line = json!({
        "services": args.services, "endpoints": args.endpoints, "proxies": args.proxies, "delta": args.delta,
        "load": {"cpu_s": cpu, "cpu_s_per_proxy": cpu / args.proxies as f64, "wall_s": percentile(&full, 100)},
        "virtual_service": route, "endpoint": endpoint,
        "rss_mib": {"idle": idle.1, "loaded": loaded, "end": pilot.memory("VmRSS")?, "peak": pilot.memory("VmHWM")?},
    });
    #[allow(clippy::print_stdout, reason = "the result")]
    {
        println!("{line}");
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

async fn wait_ready(address: &str) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
            stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            if answer.contains(" 200 ") {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("Pilot is not ready in time")
}
