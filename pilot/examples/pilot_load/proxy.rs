//! A simulated proxy: asks for everything, accepts everything, and tells how far it is. Of responses it reads no more than it needs,
//! and what its acknowledgements repeat is encoded once for all proxies: what it costs is not Pilot's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::encoding::{DecodeContext, WireType, skip_field};
use prost::{DecodeError, Message};
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::Args;
use super::config::namespace;

/// The types in the order in which they are asked for.
const TYPES: [&str; 4] = [CLUSTER, ENDPOINT, LISTENER, ROUTE];
/// How long a proxy stays away at least.
const COME_BACK: Duration = Duration::from_millis(500);
const WORLD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const INCREMENTS: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// How often each type has been answered, and when last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) counts: [u32; 4],
    pub(super) last: Option<Instant>,
    /// Streams that ended.
    pub(super) ended: u32,
}

/// What both forms' responses have in common.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

/// A request of one of the forms.
trait Form: Message + 'static {
    const PATH: &'static str;
    /// An acknowledgement names what is followed again.
    const REPEATS_NAMES: bool;

    fn new(node: &Node, type_url: &str, names: &Names, nonce: &str) -> Self;
}

/// What is asked for of one type by name.
#[derive(Debug, Default)]
pub(super) struct Names {
    texts: Vec<String>,
    /// As the field of a request for the state of the world.
    encoded: Bytes,
}

impl Names {
    fn new(texts: Vec<String>) -> Self {
        let request = DiscoveryRequest {
            resource_names: texts.clone(),
            ..DiscoveryRequest::default()
        };
        Names {
            texts,
            encoded: request.encode_to_vec().into(),
        }
    }
}

/// What every proxy asks for, by type.
pub(super) fn asked(args: &Args) -> Arc<[Names; 4]> {
    let routes = Names::new(vec!["8080".to_owned()]);
    let endpoints = Names::new(clusters(args));
    Arc::new([Names::default(), endpoints, Names::default(), routes])
}

/// A request for the state of the world.
#[derive(Debug, Default)]
struct WorldRequest {
    /// All but the names.
    head: DiscoveryRequest,
    names: Bytes,
}

impl Message for WorldRequest {
    fn encode_raw(&self, to: &mut impl BufMut) {
        self.head.encode_raw(to);
        to.put_slice(&self.names);
    }

    fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.names.len()
    }

    /// Nobody reads one here.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        from: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, from, context)
    }

    fn clear(&mut self) {
        *self = WorldRequest::default();
    }
}

impl Form for WorldRequest {
    const PATH: &'static str = WORLD;
    const REPEATS_NAMES: bool = true;

    fn new(node: &Node, type_url: &str, names: &Names, nonce: &str) -> Self {
        let head = DiscoveryRequest {
            node: Some(node.clone()),
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        };
        WorldRequest {
            head,
            names: names.encoded.clone(),
        }
    }
}

impl Form for DeltaDiscoveryRequest {
    const PATH: &'static str = INCREMENTS;
    const REPEATS_NAMES: bool = false;

    fn new(node: &Node, type_url: &str, names: &Names, nonce: &str) -> Self {
        DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.texts.clone(),
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        }
    }
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

/// One proxy: like a real one it comes back when its stream ends.
pub(super) async fn run(
    args: Args,
    index: usize,
    asked: Arc<[Names; 4]>,
    channel: Channel,
    progress: watch::Sender<Progress>,
) {
    loop {
        let channel = channel.clone();
        let outcome = if args.delta {
            follow::<DeltaDiscoveryRequest>(&args, index, &asked, channel, &progress).await
        } else {
            follow::<WorldRequest>(&args, index, &asked, channel, &progress).await
        };
        if let Err(error) = outcome {
            tracing::warn!(target: "load", index, %error, "stream ended");
        }
        progress.send_modify(|progress| progress.ended += 1);
        tokio::time::sleep(COME_BACK + Duration::from_millis(index as u64 % 500)).await;
    }
}

async fn follow<F: Form>(
    args: &Args,
    index: usize,
    names: &[Names; 4],
    channel: Channel,
    progress: &watch::Sender<Progress>,
) -> anyhow::Result<()> {
    let node = node(args, index);
    let nothing = Names::default();
    let (requests, outgoing) = mpsc::channel(16);
    let ask = |kind: usize, names: &Names, nonce: &str| F::new(&node, TYPES[kind], names, nonce);
    requests.send(ask(0, &names[0], "")).await?;
    let mut responses = open::<F>(channel, ReceiverStream::new(outgoing)).await?;
    let mut has_asked = [true, false, false, false];
    while let Some(response) = responses.next().await {
        let response = response?;
        let kind = TYPES.iter().position(|known| *known == response.type_url);
        let kind = kind.context("a type that nobody asked for")?;
        let is_first = progress.borrow().counts[kind] == 0;
        if index == 0 && kind == 0 && is_first && F::REPEATS_NAMES {
            check(&names[1].texts, &response.resources)?;
        }
        let again = if F::REPEATS_NAMES {
            &names[kind]
        } else {
            &nothing
        };
        requests.send(ask(kind, again, &response.nonce)).await?;
        let next = kind + 1;
        if has_asked.get(next) == Some(&false) {
            has_asked[next] = true;
            requests.send(ask(next, &names[next], "")).await?;
        }
        progress.send_modify(|progress| {
            progress.counts[kind] += 1;
            progress.last = Some(Instant::now());
        });
    }
    Ok(())
}

async fn open<F: Form>(
    channel: Channel,
    requests: ReceiverStream<F>,
) -> anyhow::Result<Streaming<Response>> {
    let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    client.ready().await?;
    let codec = ProstCodec::<F, Response>::default();
    let path = PathAndQuery::from_static(F::PATH);
    let response = client
        .streaming(Request::new(requests), path, codec)
        .await?;
    Ok(response.into_inner())
}

/// The clusters whose endpoints are asked for.
fn clusters(args: &Args) -> Vec<String> {
    let mut clusters = Vec::new();
    for index in 0..args.services {
        let host = format!("s{index}.{}.svc.cluster.local", namespace(index));
        clusters.push(format!("outbound|8080||{host}"));
        if index < args.destination_rules {
            clusters.push(format!("outbound|8080|v1|{host}"));
            clusters.push(format!("outbound|8080|v2|{host}"));
        }
    }
    clusters
}

/// That Pilot has these clusters.
fn check(clusters: &[String], resources: &[Bytes]) -> anyhow::Result<()> {
    let mut known = std::collections::HashSet::new();
    for resource in resources {
        let any = prost_types::Any::decode(resource.clone())?;
        known.insert(Cluster::decode(any.value.as_ref())?.name);
    }
    match clusters.iter().find(|name| !known.contains(*name)) {
        Some(name) => bail!("Pilot has no cluster {name}"),
        None => Ok(()),
    }
}
