//! SDS over its real Unix socket: what a proxy is sent when, in all three ways to ask.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto_component::drain::{self, Trigger};
use proto_component::grpc::ClientOptions;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::mpsc::Sender;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use crate::secret::Workload;

const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    cache: SecretCache,
    metrics: Metrics,
    socket: PathBuf,
    _trigger: Trigger,
    _folder: tempfile::TempDir,
}

async fn server() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("SDS");
    let cache = SecretCache::new(folder.path().join("credentials"));
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let (trigger, drain) = drain::channel();
    SecretDiscovery::new(cache.clone(), metrics.clone(), drain)
        .start(&socket)
        .await
        .unwrap();
    Server {
        cache,
        metrics,
        socket,
        _trigger: trigger,
        _folder: folder,
    }
}

impl Server {
    fn client(&self) -> SecretDiscoveryServiceClient<Channel> {
        let target = format!("unix://{}", self.socket.display());
        let channel = grpc::channel(&target, None, &ClientOptions::default()).unwrap();
        SecretDiscoveryServiceClient::new(channel)
    }

    async fn stream(&self) -> (Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
        let (sender, receiver) = mpsc::channel(4);
        let mut client = self.client();
        let answers = client.stream_secrets(ReceiverStream::new(receiver)).await;
        (sender, answers.unwrap().into_inner())
    }
}

/// A certificate of a new root, or of `root` if there is one.
fn workload(root: Option<&(KeyPair, CertificateParams)>) -> Workload {
    let made = root.is_none().then(new_root);
    let (root_key, params) = root.or(made.as_ref()).unwrap();
    let root = params.self_signed(root_key).unwrap();
    let issuer = Issuer::from_params(params, root_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::default()
        .signed_by(&key, &issuer)
        .unwrap();
    Workload::new(key.serialize_pem(), &[leaf.pem(), root.pem()]).unwrap()
}

fn new_root() -> (KeyPair, CertificateParams) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (KeyPair::generate().unwrap(), params)
}

fn ask(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: proto::type_url::SECRET.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn answer_to(
    response: &DiscoveryResponse,
    names: &[&str],
    error: Option<&str>,
) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: response.version_info.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: error.map(|message| proto::google::rpc::Status {
            message: message.to_owned(),
            ..Default::default()
        }),
        ..ask(names)
    }
}

async fn next<T>(answers: &mut Streaming<T>) -> T {
    let next = tokio::time::timeout(PATIENCE, answers.next()).await;
    next.expect("an answer in time")
        .expect("an open stream")
        .unwrap()
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    let unpack = |any| proto::any::unpack::<Secret>(any).unwrap();
    response.resources.iter().map(unpack).collect()
}

#[tokio::test]
async fn a_secret_is_withheld_until_it_is_there_then_pushed_and_rotated_on_the_same_stream() {
    let server = server().await;
    let mode = std::fs::metadata(&server.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (requests, mut answers) = server.stream().await;
    requests.send(ask(&["default"])).await.unwrap();
    let root = new_root();
    server.cache.set_workload(workload(Some(&root)));
    let first = next(&mut answers).await;
    let secret = secrets(&first).remove(0);
    assert_eq!(
        (first.type_url.as_str(), secret.name.as_str()),
        (proto::type_url::SECRET, "default")
    );
    assert!(matches!(secret.r#type, Some(Type::TlsCertificate(_))));
    requests
        .send(answer_to(&first, &["default"], None))
        .await
        .unwrap();

    // Rotation: pushed without being asked for.
    server.cache.set_workload(workload(Some(&root)));
    let second = next(&mut answers).await;
    assert_ne!(first.version_info, second.version_info);
    assert_ne!(first.nonce, second.nonce);
    requests
        .send(answer_to(&second, &["default"], Some("bad key")))
        .await
        .unwrap();

    // The change comes another way than the refusal: it must not overtake it.
    let refused = async {
        while server.metrics.push_errors.get() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, refused).await;
    outcome.expect("the refusal is counted");

    // What was refused is not sent again; the next one is.
    server.cache.set_workload(workload(Some(&root)));
    let third = next(&mut answers).await;
    assert_ne!(second.version_info, third.version_info);
    assert_eq!(server.metrics.push_errors.get(), 1);
    assert_eq!(server.metrics.pushes.get(), 3);
}

#[tokio::test]
async fn trust_anchors_are_pushed_only_when_they_change() {
    let server = server().await;
    let root = new_root();
    server.cache.set_workload(workload(Some(&root)));
    let (requests, mut answers) = server.stream().await;
    requests.send(ask(&["ROOTCA"])).await.unwrap();
    let first = next(&mut answers).await;
    assert!(matches!(
        secrets(&first)[0].r#type,
        Some(Type::ValidationContext(_))
    ));
    requests
        .send(answer_to(&first, &["ROOTCA"], None))
        .await
        .unwrap();
    // Same root, new leaf: nothing for this stream. Then another root.
    server.cache.set_workload(workload(Some(&root)));
    let other = workload(None);
    let want = other.roots().version;
    server.cache.set_workload(other);
    assert_eq!(next(&mut answers).await.version_info, want);
}

#[tokio::test]
async fn several_names_and_changes_of_mind_on_one_stream() {
    let server = server().await;
    server.cache.set_workload(workload(None));
    let (requests, mut answers) = server.stream().await;
    requests.send(ask(&["default", "missing"])).await.unwrap();
    let first = next(&mut answers).await;
    assert_eq!(secrets(&first).len(), 1);
    requests
        .send(answer_to(&first, &["ROOTCA"], None))
        .await
        .unwrap();
    let second = next(&mut answers).await;
    assert_eq!(secrets(&second)[0].name, "ROOTCA");
    requests
        .send(answer_to(&second, &["ROOTCA", "default"], None))
        .await
        .unwrap();
    assert_eq!(secrets(&next(&mut answers).await)[0].name, "default");
}

#[tokio::test]
async fn delta_streams_subscribe_and_unsubscribe() {
    let server = server().await;
    let root = new_root();
    server.cache.set_workload(workload(Some(&root)));
    let (sender, receiver) = mpsc::channel(4);
    let mut client = server.client();
    let answers = client.delta_secrets(ReceiverStream::new(receiver));
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let request = DeltaDiscoveryRequest {
        type_url: proto::type_url::SECRET.to_owned(),
        resource_names_subscribe: names(&["default", "ROOTCA"]),
        ..DeltaDiscoveryRequest::default()
    };
    sender.send(request.clone()).await.unwrap();
    let mut answers = answers.await.unwrap().into_inner();
    let first = next(&mut answers).await;
    assert_eq!(first.resources.len(), 2);
    let leave = DeltaDiscoveryRequest {
        // Asked for again: sent again, which shows that the request was taken in.
        resource_names_subscribe: names(&["default"]),
        resource_names_unsubscribe: names(&["ROOTCA"]),
        response_nonce: first.nonce.clone(),
        ..request.clone()
    };
    sender.send(leave).await.unwrap();
    assert_eq!(next(&mut answers).await.resources.len(), 1);
    server.cache.set_workload(workload(None));
    let second = next(&mut answers).await;
    let sent: Vec<&str> = second
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect();
    assert_eq!(sent, ["default"]);

    // A proxy that comes back with the version that it has is not sent it again, but the other one.
    let version = second.resources[0].version.clone();
    let (sender, receiver) = mpsc::channel(4);
    let mut client = server.client();
    let answers = client.delta_secrets(ReceiverStream::new(receiver));
    let mut again = request;
    again
        .initial_resource_versions
        .insert("default".to_owned(), version);
    sender.send(again).await.unwrap();
    let mut answers = answers.await.unwrap().into_inner();
    let third = next(&mut answers).await;
    assert_eq!(third.resources.len(), 1);
    assert_eq!(third.resources[0].name, "ROOTCA");
}

#[tokio::test]
async fn fetch_answers_once_and_bad_requests_are_refused() {
    let server = server().await;
    let mut client = server.client();
    let error = client.fetch_secrets(ask(&["default"])).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    server.cache.set_workload(workload(None));
    let response = client
        .fetch_secrets(ask(&["default"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(secrets(&response).len(), 1);
    let mut wrong = ask(&["default"]);
    wrong.type_url = proto::type_url::CLUSTER.to_owned();
    let error = client.fetch_secrets(wrong.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let (requests, mut answers) = server.stream().await;
    requests.send(wrong).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, answers.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::InvalidArgument);
    let many: Vec<String> = (0..=MAX_NAMES).map(|name| name.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = client.fetch_secrets(ask(&many)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
