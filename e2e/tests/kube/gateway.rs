//! A gateway as Pilot sees one, or somebody who says that it is one: a stream that it opens with its service account's token, and
//! the secrets that it asks for.

use e2e::mesh::eventually;
use futures::channel::mpsc;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret as KubeSecret, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use proto::envoy::config::core::v3::{Node, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto::type_url::{CLUSTER, SECRET};
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use serde_json::json;
use tonic::{Code, Request, Streaming};

use crate::component::{Component, log_of};
use crate::{NAMESPACE, SOON};

/// The account that the chart gives the gateway.
const ACCOUNT: &str = "istio-ingressgateway-service-account";
const NAME: &str = "istio-ingressgateway";
/// Requests that are not sent yet.
const REQUESTS: usize = 4;

/// Its stream.
pub(crate) struct Gateway {
    pub(crate) requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Gateway {
    async fn connect(client: &Client, pilot: &Component, root: &str, account: &str) -> Self {
        let token = token(client, NAMESPACE, account).await;
        Self::open(pilot, root, &token).await
    }

    /// Opens the stream as whoever has the token, at the port that takes tokens; `root` vouches for Pilot.
    pub(crate) async fn open(pilot: &Component, root: &str, token: &str) -> Self {
        let pem = Pem {
            roots: root.as_bytes().to_vec(),
            ..Pem::default()
        };
        let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])
            .and_then(|tls| tls.with_server_name(&format!("istio-pilot.{NAMESPACE}.svc")))
            .unwrap();
        let address = format!("127.0.0.1:{}", pilot.other_ports[2]);
        let channel = grpc::channel(&address, Some(tls), &ClientOptions::default()).unwrap();
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let mut request = Request::new(receiver);
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let mut service = AggregatedDiscoveryServiceClient::new(channel);
        let opened = service.stream_aggregated_resources(request).await;
        let responses = opened
            .unwrap_or_else(|error| panic!("{error}: {}", log_of(pilot)))
            .into_inner();
        Self {
            requests,
            responses,
        }
    }

    /// Asks for a secret until its certificate chain is this.
    async fn is_served(&mut self, name: &str, chain: &str) {
        let mut request = request(SECRET, &[name]);
        let served = async {
            loop {
                self.requests.try_send(request.clone()).unwrap();
                let response = self.responses.message().await.unwrap().unwrap();
                if chain_of(&response).is_some_and(|found| found == chain) {
                    return;
                }
                request.version_info = response.version_info;
                request.response_nonce = response.nonce;
            }
        };
        let served = tokio::time::timeout(SOON, served).await;
        served.unwrap_or_else(|_| panic!("{name} is not {chain}"));
    }

    /// Asks for a secret, and for something else that comes at once: the secret does not come before it.
    async fn is_not_served(&mut self, name: &str) {
        for request in [request(SECRET, &[name]), request(CLUSTER, &[])] {
            self.requests.try_send(request).unwrap();
        }
        let response = tokio::time::timeout(SOON, self.responses.message()).await;
        let response = response.expect("an answer in time").unwrap().unwrap();
        assert_eq!(response.type_url, CLUSTER, "{name} is served");
    }

    /// Waits until Pilot ends the stream, because the gateway may read more or less than before.
    async fn is_to_come_back(&mut self) {
        let ended = async {
            loop {
                match self.responses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ends without a reason"),
                    Err(status) => return status.code(),
                }
            }
        };
        let code = tokio::time::timeout(SOON, ended).await;
        assert_eq!(code.expect("an end in time"), Code::Unavailable);
    }
}

/// Gateways that show their token are served the Secret that they ask for, and the next one when it changes. Another account of its
/// namespace is not, whatever it calls itself, until it may read Secrets.
pub(crate) async fn have_their_secrets(client: &Client, pilot: &Component, root: &str) {
    let secrets: Api<KubeSecret> = Api::namespaced(client.clone(), NAMESPACE);
    let apply = PatchParams::apply("test").force();
    let write = async |chain: &str| {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge"},
            "stringData": {"tls.crt": chain, "tls.key": "key"}, "type": "Opaque",
        });
        let secret = Patch::Apply(&secret);
        secrets.patch("edge", &apply, &secret).await.unwrap();
    };
    write("first").await;
    let other = "default";
    let mut impostor = Gateway::connect(client, pilot, root, other).await;
    impostor.is_not_served("kubernetes://edge").await;
    let mut gateway = Gateway::connect(client, pilot, root, ACCOUNT).await;
    gateway.is_served("kubernetes://edge", "first").await;
    write("second").await;
    gateway.is_served("kubernetes://edge", "second").await;
    impostor.is_not_served("kubernetes://edge").await;

    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), NAMESPACE);
    let binding = serde_json::from_value(json!({
        "metadata": {"name": "other-sds"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "istio-ingressgateway-sds"},
        "subjects": [{"kind": "ServiceAccount", "name": other, "namespace": NAMESPACE}],
    }));
    let params = PostParams::default();
    bindings.create(&params, &binding.unwrap()).await.unwrap();
    impostor.is_to_come_back().await;
    let mut reader = Gateway::connect(client, pilot, root, other).await;
    reader.is_served("kubernetes://edge", "second").await;
    let now = DeleteParams::default();
    secrets.delete("edge", &now).await.unwrap();
    bindings.delete("other-sds", &now).await.unwrap();
}

fn request(type_url: &str, names: &[&str]) -> DiscoveryRequest {
    let id = format!("router~10.0.0.9~{NAME}-0.{NAMESPACE}~{NAMESPACE}.svc.cluster.local");
    let node = Node {
        id,
        ..Node::default()
    };
    DiscoveryRequest {
        node: Some(node),
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..DiscoveryRequest::default()
    }
}

fn chain_of(response: &DiscoveryResponse) -> Option<String> {
    let secret: Secret = proto::any::unpack(response.resources.first()?).unwrap();
    let Type::TlsCertificate(certificate) = secret.r#type? else {
        return None;
    };
    match certificate.certificate_chain?.specifier? {
        Specifier::InlineBytes(bytes) => String::from_utf8(bytes).ok(),
        Specifier::InlineString(text) => Some(text),
        _ => None,
    }
}

/// A token of a service account for the control plane.
pub(crate) async fn token(client: &Client, namespace: &str, account: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let wanted: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": ["istio-ca"]}})).unwrap();
    let (params, mut token) = (PostParams::default(), None);
    let made = eventually("a token", SOON, async || {
        let made = accounts.create_token_request(account, &params, &wanted);
        let status = made.await.ok().and_then(|made| made.status);
        token = status.map(|status| status.token);
        token.is_some()
    });
    made.await.unwrap();
    token.unwrap()
}
