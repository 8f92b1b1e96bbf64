//! Citadel's services over real TLS on port 0, and callers of all kinds.

use std::sync::Arc;
use std::time::Duration;

use citadel::authenticate::{Authenticator, ClientCertificate, KeyRing, Oidc, OidcSettings};
use citadel::authorize::Impersonators;
use citadel::ca::{CertificateAuthority as _, SelfSigned, TtlRules};
use citadel::ledger::Ledger;
use citadel::metrics::Metrics;
use citadel::pki::PrivateKey;
use citadel::revocation::Revocations;
use citadel::server::{
    CertificateService, MAX_MESSAGE, OwnCertificate, Rules, StreamLimits, TrustDiscovery,
    with_deadline,
};
use citadel::testing::{ISSUER, TokenIssuer, open_store, settings};
use citadel::trust::Trust;
use proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_ca_service_server::IstioCaServiceServer;
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
use tonic::{Request, Status};

pub(crate) const DAY: Duration = Duration::from_secs(86400);

pub(crate) struct Mesh {
    pub(crate) ca: Arc<SelfSigned>,
    pub(crate) ledger: Ledger,
    pub(crate) revocations: Revocations,
    pub(crate) trust: Arc<Trust>,
    pub(crate) metrics: Metrics,
    pub(crate) issuer: TokenIssuer,
    pub(crate) address: String,
    trigger: drain::Trigger,
    _folder: tempfile::TempDir,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.trigger.drain(Duration::ZERO);
    }
}

pub(crate) async fn mesh() -> Mesh {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(folder.path());
    let now = OffsetDateTime::now_utc();
    let ca = Arc::new(SelfSigned::open(&store, settings(), provider(), now).unwrap());
    let (ledger, writer) = Ledger::open(&store, DAY).unwrap();
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
        impersonators: Impersonators::parse(&["istio-system/node".to_owned()]).unwrap(),
    };
    let revocations = Revocations::open(&store).unwrap();
    let trust = Arc::new(Trust::new(ca.clone(), revocations.clone()).unwrap());
    let service = CertificateService::new(
        ca.clone(),
        authenticators(&issuer, &revocations),
        rules,
        ledger.clone(),
        revocations.clone(),
        metrics.clone(),
    );
    let own = OwnCertificate::new(ca.clone(), &["istio-citadel".to_owned()], DAY).unwrap();
    let listener = Listener::bind_text("127.0.0.1:0", "--grpc-port")
        .await
        .unwrap();
    let address = listener.address().to_string();
    let incoming = listener.tls(own.tls(), &drain);
    let legacy = IstioCaServiceServer::new(service.clone());
    let limits = StreamLimits {
        total: 4,
        of_one: 2,
    };
    let discovery = TrustDiscovery::new(service.clone(), trust.watch(), limits, drain.clone());
    let service =
        IstioCertificateServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE);
    let calls = tonic::service::Routes::new(service).add_service(legacy);
    let streams = tonic::service::Routes::new(SecretDiscoveryServiceServer::new(discovery));
    let streams = streams.into_axum_router().reset_fallback();
    let routes = with_deadline(calls).into_axum_router().merge(streams);
    let routes = tonic::service::Routes::from(routes);
    task::spawn("csr-server", async move {
        grpc::serve(incoming, routes, &ServerOptions::default(), None, drain).await
    });
    Mesh {
        ca,
        ledger,
        revocations,
        trust,
        metrics,
        issuer,
        address,
        trigger,
        _folder: folder,
    }
}

fn authenticators(issuer: &TokenIssuer, revocations: &Revocations) -> Vec<Box<dyn Authenticator>> {
    let keys = proto_mesh::jwt::KeySet::parse(issuer.jwks().as_bytes()).unwrap();
    let settings = OidcSettings {
        issuer: ISSUER.to_owned(),
        audiences: vec!["istio-ca".to_owned()],
        trust_domain: "cluster.local".to_owned(),
    };
    let oidc = Oidc::new(settings, Arc::new(KeyRing::fixed(keys)));
    vec![
        Box::new(ClientCertificate::new(revocations.clone())),
        Box::new(oidc),
    ]
}

impl Mesh {
    /// A channel with this client certificate, if it is not empty.
    pub(crate) fn channel(&self, chain: &str, key: &str) -> Channel {
        let pem = Pem {
            chain: chain.as_bytes().to_vec(),
            key: key.as_bytes().to_vec(),
            roots: self.ca.bundle().roots_pem().into_bytes(),
            ..Pem::default()
        };
        let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])
            .and_then(|tls| tls.with_server_name("istio-citadel"))
            .unwrap();
        grpc::channel(&self.address, Some(tls), &ClientOptions::default()).unwrap()
    }

    pub(crate) fn client(&self, chain: &str, key: &str) -> IstioCertificateServiceClient<Channel> {
        IstioCertificateServiceClient::new(self.channel(chain, key))
    }

    /// Asks with a client certificate.
    pub(crate) async fn ask_with(&self, chain: &str, key: &str) -> Result<Vec<String>, Status> {
        let request = IstioCertificateRequest {
            csr: csr().1,
            ..IstioCertificateRequest::default()
        };
        let answer = self.client(chain, key).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }

    pub(crate) async fn ask(
        &self,
        token: &str,
        csr: String,
        seconds: i64,
    ) -> Result<Vec<String>, Status> {
        let request = IstioCertificateRequest {
            csr,
            validity_duration: seconds,
            ..IstioCertificateRequest::default()
        };
        let request = with_token(Request::new(request), token);
        let answer = self.client("", "").create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }
}

pub(crate) fn csr() -> (PrivateKey, String) {
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

/// A request with a bearer token, if it is not empty.
pub(crate) fn with_token<T>(mut request: Request<T>, token: &str) -> Request<T> {
    if !token.is_empty() {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}
