//! The CSR service over real TLS on port 0: who gets which certificate, and who gets none.

use std::sync::Arc;
use std::time::Duration;

use citadel::authenticate::{
    Authenticator, ClientCertificate, KeyRing, KeySet, Oidc, OidcSettings,
};
use citadel::ca::{CertificateAuthority, SelfSigned, SelfSignedSettings, TtlRules};
use citadel::ledger::Ledger;
use citadel::metrics::Metrics;
use citadel::pki::{Bundle, PrivateKey, Validity, certificates_from_pem, uri_sans, verify_chain};
use citadel::server::{CertificateService, MAX_MESSAGE, OwnCertificate, Rules, with_deadline};
use citadel::testing::{ISSUER, TokenIssuer};
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use proto_component::drain::{self, Drain};
use proto_component::grpc::{self, ClientOptions, ServerOptions};
use proto_component::listen::Listener;
use proto_component::task;
use proto_component::tls::{ClientTls, Pem, ServerIdentity, provider};
use rcgen::{CertificateParams, SanType};
use time::OffsetDateTime;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const DAY: Duration = Duration::from_secs(86400);

struct Mesh {
    ca: Arc<SelfSigned>,
    ledger: Ledger,
    metrics: Metrics,
    issuer: TokenIssuer,
    address: String,
    trigger: drain::Trigger,
    _folder: tempfile::TempDir,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.trigger.drain(Duration::ZERO);
    }
}

async fn mesh() -> Mesh {
    let folder = tempfile::tempdir().unwrap();
    let database = sled::open(folder.path()).unwrap();
    let settings = SelfSignedSettings {
        organization: "cluster.local".to_owned(),
        ttl: DAY * 3650,
    };
    let now = OffsetDateTime::now_utc();
    let ca = Arc::new(SelfSigned::open(&database, settings, provider(), now).unwrap());
    let (ledger, writer) = Ledger::open(&database, DAY).unwrap();
    let (trigger, drain) = drain::channel();
    task::spawn("ledger", writer.run(Drain::never()));
    let issuer = TokenIssuer::new();
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let rules = Rules {
        trust_domain: "cluster.local".to_owned(),
        ttl: TtlRules {
            default: DAY,
            max: DAY * 90,
        },
        dual_use: false,
    };
    let service = CertificateService::new(
        ca.clone(),
        authenticators(&issuer),
        rules,
        ledger.clone(),
        metrics.clone(),
    );
    let own = OwnCertificate::new(ca.clone(), &["istio-citadel".to_owned()], DAY).unwrap();
    let listener = Listener::bind_text("127.0.0.1:0", "--grpc-port")
        .await
        .unwrap();
    let address = listener.address().to_string();
    let incoming = listener.tls(own.tls(), &drain);
    let service =
        IstioCertificateServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE);
    let routes = with_deadline(tonic::service::Routes::new(service));
    task::spawn("csr-server", async move {
        grpc::serve(incoming, routes, &ServerOptions::default(), None, drain).await
    });
    Mesh {
        ca,
        ledger,
        metrics,
        issuer,
        address,
        trigger,
        _folder: folder,
    }
}

fn authenticators(issuer: &TokenIssuer) -> Vec<Box<dyn Authenticator>> {
    let keys = KeySet::parse(issuer.jwks().as_bytes()).unwrap();
    let settings = OidcSettings {
        issuer: ISSUER.to_owned(),
        audiences: vec!["istio-ca".to_owned()],
        trust_domain: "cluster.local".to_owned(),
    };
    let oidc = Oidc::new(settings, Arc::new(KeyRing::fixed(keys)));
    vec![Box::new(ClientCertificate), Box::new(oidc)]
}

impl Mesh {
    fn client(&self, chain: &str, key: &str) -> IstioCertificateServiceClient<Channel> {
        let pem = Pem {
            chain: chain.as_bytes().to_vec(),
            key: key.as_bytes().to_vec(),
            roots: self.ca.bundle().roots_pem().into_bytes(),
        };
        let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])
            .and_then(|tls| tls.with_server_name("istio-citadel"))
            .unwrap();
        let channel = grpc::channel(&self.address, Some(tls), &ClientOptions::default()).unwrap();
        IstioCertificateServiceClient::new(channel)
    }

    async fn ask(&self, token: &str, csr: String, seconds: i64) -> Result<Vec<String>, Status> {
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: seconds,
            ..IstioCertificateRequest::default()
        });
        if !token.is_empty() {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let answer = self.client("", "").create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }
}

fn csr() -> (PrivateKey, String) {
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    // What the caller would like to be does not matter.
    let wish = "spiffe://cluster.local/ns/istio-system/sa/istio-pilot-service-account";
    params
        .subject_alt_names
        .push(SanType::URI(wish.try_into().unwrap()));
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

#[tokio::test]
async fn the_identity_is_the_tokens_and_never_the_requests() {
    let mesh = mesh().await;
    let (key, request) = csr();
    let token = mesh.issuer.token("default", "bookinfo-ratings");
    let chain = mesh.ask(&token, request, 0).await.unwrap();
    assert_eq!(chain.len(), 2, "leaf and root");
    let leaf = certificates_from_pem(&chain[0]).unwrap().remove(0);
    let identity = "spiffe://cluster.local/ns/default/sa/bookinfo-ratings";
    assert_eq!(uri_sans(&leaf).unwrap(), [identity]);
    let bundle = Bundle {
        intermediates: Vec::new(),
        roots: certificates_from_pem(&chain[1]).unwrap(),
    };
    verify_chain(&leaf, &bundle, &provider(), OffsetDateTime::now_utc()).unwrap();

    let entries = mesh.ledger.newest(10, None).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].identity, identity);
    assert_eq!(entries[0].authenticator, "KubeJWTAuthenticator");
    assert_eq!(mesh.metrics.success.get(), 1);

    // With that certificate, no token is needed.
    let (_, again) = csr();
    let request = IstioCertificateRequest {
        csr: again,
        ..IstioCertificateRequest::default()
    };
    let mut client = mesh.client(&chain[0], &key.to_pem());
    let answer = client
        .create_certificate(request)
        .await
        .unwrap()
        .into_inner();
    let leaf = certificates_from_pem(&answer.cert_chain[0])
        .unwrap()
        .remove(0);
    assert_eq!(uri_sans(&leaf).unwrap(), [identity]);
}

#[tokio::test]
async fn callers_without_a_good_token_are_unauthenticated() {
    let mesh = mesh().await;
    let claim = |name: &str, value: serde_json::Value| {
        let mut claims = TokenIssuer::claims("default", "a");
        claims[name] = value;
        mesh.issuer.sign(&claims)
    };
    for (what, token) in [
        ("no token", String::new()),
        ("wrong audience", claim("aud", "other".into())),
        ("expired", claim("exp", 1000.into())),
        ("foreign issuer", TokenIssuer::new().token("default", "a")),
        ("alg none", "eyJhbGciOiJub25lIn0.e30.".to_owned()),
    ] {
        let error = mesh.ask(&token, csr().1, 0).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{what}: {error}");
    }
    assert_eq!(mesh.metrics.authentication_failure.get(), 5);
    assert!(mesh.ledger.is_empty());
}

#[tokio::test]
async fn lifetimes_and_requests_are_checked() {
    let mesh = mesh().await;
    let token = mesh.issuer.token("default", "a");
    for (seconds, want) in [(0, DAY), (600, Duration::from_secs(600)), (-1, DAY)] {
        let chain = mesh.ask(&token, csr().1, seconds).await.unwrap();
        let leaf = certificates_from_pem(&chain[0]).unwrap().remove(0);
        let left = Validity::of(&leaf).unwrap().not_after - OffsetDateTime::now_utc();
        assert!(
            left <= want && left > want - Duration::from_secs(30),
            "{seconds}: {left}"
        );
    }
    let seconds = i64::try_from(DAY.as_secs() * 90 + 1).unwrap();
    let error = mesh.ask(&token, csr().1, seconds).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    for bad in [
        "",
        "hello",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        let error = mesh.ask(&token, bad.to_owned(), 0).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{bad:?}");
    }
    let weak = include_str!("../../testdata/csr/rsa-1024.pem").to_owned();
    let error = mesh.ask(&token, weak, 0).await.unwrap_err();
    assert!(error.message().contains("RSA of 1024 bits"), "{error}");
    let huge = mesh
        .ask(&token, "x".repeat(MAX_MESSAGE + 1), 0)
        .await
        .unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange);
    assert_eq!(mesh.ledger.len(), 3);
}

#[tokio::test]
async fn many_callers_at_once_are_all_recorded() {
    let mesh = mesh().await;
    let token = mesh.issuer.token("default", "a");
    let calls = (0..40).map(|_| mesh.ask(&token, csr().1, 0));
    for outcome in futures::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(mesh.ledger.len(), 40);
}
