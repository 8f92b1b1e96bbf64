//! Credentials of gateways: who is served them, and who is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use pilot::config::Update;
use pilot::model::Credential;
use pilot::xds::authenticate::Authenticator;
use proto::envoy::config::core::v3::Node;
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use proto::envoy::service::discovery::v3::DiscoveryResponse;
use proto::type_url::{CLUSTER, LISTENER, SECRET};
use proto_component::grpc::{ClientOptions, channel};
use proto_component::tls::{ClientAuth, ClientTls, Pem, ServerIdentity, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

use super::access::ApiServer;
use super::ads::Client;
use super::mesh::{Pilot, eventually};

const SHOP: &str = "kubernetes://shop";
const SHOP_ROOTS: &str = "kubernetes://shop-cacert";
const GATEWAY: &str = "---\napiVersion: networking.istio.io/v1alpha3\nkind: Gateway\nmetadata: {name: shop, namespace: istio-system}\nspec:\n  \
    selector: {istio: ingressgateway}\n  servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.test], \
    tls: {mode: MUTUAL, credentialName: shop}}]\n";

/// Who signs for the mesh.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Not that of what it issues, which would look self-signed.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let roots = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Authority { issuer, roots }
    }

    pub(crate) fn issue(&self, id: &str) -> Pem {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["pilot.test".to_owned()]).unwrap();
        let uri = id.to_owned().try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        Pem {
            chain: signed.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
            roots: self.roots.clone().into_bytes(),
            ..Pem::default()
        }
    }
}

fn gateway(namespace: &str) -> Node {
    let metadata =
        serde_json::json!({"LABELS": {"istio": "ingressgateway"}, "NAMESPACE": namespace});
    proto::json::from_value(&serde_json::json!({
        "id": format!("router~10.1.9.1~ingress-1.{namespace}~{namespace}.svc.cluster.local"),
        "metadata": metadata,
    }))
    .unwrap()
}

/// A proxy that shows the certificate of `id`.
pub(crate) async fn connect_as(authority: &Authority, port: u16, id: &str, node: Node) -> Client {
    let identity = ServerIdentity::Trusted;
    let tls = ClientTls::from_pem(&authority.issue(id), identity, &["h2"]).unwrap();
    let target = format!("127.0.0.1:{port}");
    let channel = channel(&target, Some(tls), &ClientOptions::default()).unwrap();
    Client::connect_to(channel, node).await
}

/// A gateway of `namespace` that shows the certificate of `id`.
async fn connect(authority: &Authority, port: u16, id: &str, namespace: &str) -> Client {
    connect_as(authority, port, id, gateway(namespace)).await
}

fn credentials(certificate: &str) -> Update {
    let shop = Credential {
        chain: certificate.into(),
        key: b"key".to_vec(),
        roots: b"roots".to_vec(),
        revoked: Vec::new(),
    };
    let all = BTreeMap::from([("shop".to_owned(), Arc::new(shop))]);
    Update::Credentials("istio-system".to_owned(), Arc::new(all))
}

/// True when a listener waits for a secret from the agent.
fn names_agent(listeners: &DiscoveryResponse) -> bool {
    let mut resources = listeners.resources.iter();
    resources.any(|any| any.value.windows(8).any(|part| part == b"sds-grpc"))
}

/// Names, and what is in them.
fn secrets(response: &DiscoveryResponse) -> Vec<(String, String)> {
    assert_eq!(response.type_url, SECRET);
    let text = |source: Option<proto::envoy::config::core::v3::DataSource>| {
        use proto::envoy::config::core::v3::data_source::Specifier;
        match source.and_then(|source| source.specifier) {
            Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let mut found: Vec<_> = response
        .resources
        .iter()
        .map(|any| {
            let secret: Secret = proto::any::unpack(any).unwrap();
            let content = match secret.r#type.unwrap() {
                Type::TlsCertificate(pair) => text(pair.certificate_chain),
                Type::ValidationContext(context) => text(context.trusted_ca),
                other => panic!("{other:?}"),
            };
            (secret.name, content)
        })
        .collect();
    found.sort();
    found
}

async fn start(authority: &Authority) -> (Pilot, u16) {
    start_with(authority, GATEWAY).await
}

/// A Pilot with a port for mutual TLS.
pub(crate) async fn start_with(authority: &Authority, yaml: &str) -> (Pilot, u16) {
    start_as(authority, yaml, Authenticator::default()).await
}

async fn start_as(authority: &Authority, yaml: &str, authenticator: Authenticator) -> (Pilot, u16) {
    let pilot = Pilot::start(yaml).await;
    let own = authority.issue("spiffe://cluster.local/ns/istio-system/sa/pilot");
    let tls = ServerTls::from_pem(&own, ClientAuth::Optional, &["h2"]).unwrap();
    let port = pilot.serve_tls(tls, authenticator).await;
    (pilot, port)
}

#[tokio::test]
async fn a_gateway_that_proves_its_namespace_is_served_its_credentials_and_their_renewal() {
    let authority = Authority::new();
    let (pilot, port) = start(&authority).await;
    let id = "spiffe://cluster.local/ns/istio-system/sa/ingress";
    let mut client = connect(&authority, port, id, "istio-system").await;
    // Nothing is known of the namespace yet: the listener waits for the agent, and the secret is not refused.
    client.ask(SECRET, &[SHOP, SHOP_ROOTS], "", None).await;
    let listeners = client.subscribe(LISTENER, &[]).await;
    assert!(names_agent(&listeners));
    eventually(|| {
        pilot
            .discovery
            .gateway_namespaces
            .borrow()
            .contains("istio-system")
    })
    .await;

    pilot.updates.send(credentials("first")).await.unwrap();
    let listeners = client.next().await;
    assert_eq!(listeners.type_url, LISTENER);
    assert!(!names_agent(&listeners));
    client.ask(LISTENER, &[], &listeners.nonce, None).await;
    let first = client.next().await;
    let all = |certificate: &str| {
        [(SHOP, certificate), (SHOP_ROOTS, "roots")]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
    };
    assert_eq!(secrets(&first), all("first"));
    let names = [SHOP, SHOP_ROOTS];
    client.ask(SECRET, &names, &first.nonce, None).await;

    pilot.updates.send(credentials("second")).await.unwrap();
    let second = client.next().await;
    assert_eq!(secrets(&second), all("second")[..1]);
}

#[tokio::test]
async fn nobody_else_is_served_them() {
    let authority = Authority::new();
    let (pilot, port) = start(&authority).await;
    pilot.updates.send(credentials("first")).await.unwrap();
    eventually(|| !pilot.discovery.current().push.credentials.is_empty()).await;
    let elsewhere = "spiffe://cluster.local/ns/other/sa/ingress";
    let others = [
        // In the clear anybody can say anything.
        Client::connect_as(&pilot, gateway("istio-system")).await,
        connect(&authority, port, elsewhere, "other").await,
    ];
    for mut client in others {
        let names = [SHOP, SHOP_ROOTS, "kubernetes-gateway://istio-system/shop"];
        client.ask(SECRET, &names, "", None).await;
        // Had the secrets been sent, they would be this.
        client.ask(CLUSTER, &[], "", None).await;
        assert_eq!(client.next().await.type_url, CLUSTER);
    }
    for (id, code) in [
        (elsewhere, tonic::Code::PermissionDenied),
        (
            "spiffe://another.mesh/ns/istio-system/sa/ingress",
            tonic::Code::Unauthenticated,
        ),
    ] {
        let mut liar = connect(&authority, port, id, "istio-system").await;
        liar.ask(SECRET, &[SHOP], "", None).await;
        assert_eq!(liar.refusal().await, code, "{id}");
    }
}

#[tokio::test]
async fn of_a_namespace_only_accounts_that_may_list_its_secrets_are_served_them() {
    let (authority, api) = (Authority::new(), ApiServer::default());
    api.allow("istio-system", "ingress");
    let authenticator = Authenticator {
        access: Some(api.reviewer()),
        ..Authenticator::default()
    };
    let (pilot, port) = start_as(&authority, GATEWAY, authenticator).await;
    pilot.updates.send(credentials("first")).await.unwrap();
    eventually(|| !pilot.discovery.current().push.credentials.is_empty()).await;
    let connect = async |account: &str| {
        let id = format!("spiffe://cluster.local/ns/istio-system/sa/{account}");
        connect(&authority, port, &id, "istio-system").await
    };
    let names = [SHOP, SHOP_ROOTS, "kubernetes-gateway://istio-system/shop"];

    let mut seller = connect("seller").await;
    seller.ask(SECRET, &names, "", None).await;
    // Its agent has what it may have, and Pilot does not even look at the namespace's Secrets for it.
    let listeners = seller.subscribe(LISTENER, &[]).await;
    assert!(names_agent(&listeners));
    assert!(pilot.discovery.gateway_namespaces.borrow().is_empty());

    let mut ingress = connect("ingress").await;
    ingress.ask(SECRET, &names, "", None).await;
    assert_eq!(secrets(&ingress.next().await).len(), names.len());
    let listeners = ingress.subscribe(LISTENER, &[]).await;
    assert!(!names_agent(&listeners));
    let followed = pilot.discovery.gateway_namespaces.borrow().clone();
    assert_eq!(followed, ["istio-system".to_owned()].into());

    // What has changed is for the one and not for the other.
    pilot.updates.send(credentials("second")).await.unwrap();
    assert_eq!(secrets(&ingress.next().await)[0].1, "second");
    seller.ask(SECRET, &names, "", None).await;
    seller.ask(CLUSTER, &[], "", None).await;
    assert_eq!(seller.next().await.type_url, CLUSTER);
}
