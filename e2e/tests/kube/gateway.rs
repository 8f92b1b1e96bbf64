//! A gateway as Pilot sees one: a stream that it opens with its service account's token, and the secrets that it asks for.

use e2e::mesh::eventually;
use futures::channel::mpsc;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use proto::envoy::config::core::v3::{Node, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto::type_url::SECRET;
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use serde_json::json;
use tonic::{Request, Streaming};

use crate::component::{Component, log_of};
use crate::{NAMESPACE, SOON};

/// What the chart calls the gateway.
const NAME: &str = "istio-ingressgateway";
/// Requests that are not sent yet.
const REQUESTS: usize = 4;

/// Its stream.
pub(crate) struct Gateway {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Gateway {
    /// Opens the stream at the port that takes tokens; `root` vouches for Pilot.
    pub(crate) async fn connect(client: &Client, pilot: &Component, root: &str) -> Self {
        let token = token(client, NAMESPACE, &format!("{NAME}-service-account")).await;
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
    pub(crate) async fn is_served(&mut self, name: &str, chain: &str) {
        let id = format!("router~10.0.0.9~{NAME}-0.{NAMESPACE}~{NAMESPACE}.svc.cluster.local");
        let mut request = DiscoveryRequest {
            node: Some(Node {
                id,
                ..Node::default()
            }),
            type_url: SECRET.to_owned(),
            resource_names: vec![name.to_owned()],
            ..DiscoveryRequest::default()
        };
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
