//! A pretended Citadel over real TLS: signs whatever it is asked for with its token or a certificate of its own, with lifetimes
//! of the test's choice.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret::Type,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use proto_component::drain::{self, Trigger};
use proto_component::grpc::{self, ServerOptions};
use proto_component::listen::{Listener, Peer};
use proto_component::task;
use proto_component::tls::{ClientAuth, Pem, ServerTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
};
use time::OffsetDateTime;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// The token that it takes.
pub(crate) const TOKEN: &str = "the-token";

/// The pretended Citadel.
pub(crate) struct Citadel {
    pub(crate) address: String,
    pub(crate) root_file: PathBuf,
    pub(crate) token_file: PathBuf,
    pub(crate) asked: Arc<AtomicUsize>,
    /// What it was asked for, in text.
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    /// Of each stream of what is to be trusted: whether it was by certificate.
    pub(crate) heard: Arc<Mutex<Vec<bool>>>,
    _trigger: Trigger,
}

#[derive(Clone)]
struct Service(Arc<Inner>);

struct Inner {
    key: KeyPair,
    params: CertificateParams,
    life: Duration,
    asked: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    heard: Arc<Mutex<Vec<bool>>>,
}

impl Citadel {
    /// Starts it; its files go to `folder`.
    pub(crate) async fn start(folder: &Path, life: Duration) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        let own = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let leaf = CertificateParams::new(names)
            .unwrap()
            .signed_by(&own, &Issuer::from_params(&params, &key))
            .unwrap();
        let pem = Pem {
            chain: leaf.pem().into_bytes(),
            key: own.serialize_pem().into_bytes(),
            roots: root.clone().into_bytes(),
            ..Pem::default()
        };
        let tls = ServerTls::from_pem(&pem, ClientAuth::Optional, &["h2"]).unwrap();
        let listener = Listener::bind_text("127.0.0.1:0", "--test").await.unwrap();
        let address = format!("localhost:{}", listener.port().unwrap());
        let (root_file, token_file) = (folder.join("root-cert.pem"), folder.join("token"));
        std::fs::write(&root_file, &root).unwrap();
        std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (requests, heard) = <(Arc<Mutex<Vec<String>>>, _)>::default();
        let service = Service(Arc::new(Inner {
            key,
            params,
            life,
            asked: asked.clone(),
            requests: requests.clone(),
            heard: Arc::clone(&heard),
        }));
        let (trigger, drain) = drain::channel();
        let incoming = listener.tls(tls, &drain);
        let discovery = SecretDiscoveryServiceServer::new(service.clone());
        let routes = tonic::service::Routes::new(IstioCertificateServiceServer::new(service));
        let routes = routes.add_service(discovery);
        task::spawn("citadel", async move {
            grpc::serve(incoming, routes, &ServerOptions::default(), None, drain).await
        });
        Self {
            address,
            root_file,
            token_file,
            asked,
            requests,
            heard,
            _trigger: trigger,
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let inner = &self.0;
        inner.asked.fetch_add(1, Ordering::SeqCst);
        inner.requests.lock().push(format!("{request:?}"));
        is_by_certificate(&request)?;
        let issuer = Issuer::from_params(&inner.params, &inner.key);
        let mut csr = CertificateSigningRequestParams::from_pem(&request.get_ref().csr).unwrap();
        csr.params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
        csr.params.not_after = OffsetDateTime::now_utc() + inner.life;
        let leaf = csr.signed_by(&issuer).unwrap();
        let root = inner.params.self_signed(&inner.key).unwrap();
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf.pem(), root.pem()],
        }))
    }
}

/// Whether a caller shows a certificate instead of the token; who shows neither is nobody.
fn is_by_certificate<T>(request: &Request<T>) -> Result<bool, Status> {
    let token = request.metadata().get("authorization");
    if token.and_then(|value| value.to_str().ok()) == Some(&format!("Bearer {TOKEN}")) {
        return Ok(false);
    }
    let peer = request.extensions().get::<Peer>();
    if peer.is_some_and(|peer| !peer.certificates.is_empty()) {
        return Ok(true);
    }
    Err(Status::unauthenticated("who are you?"))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let is_by_certificate = is_by_certificate(&request)?;
        let inner = &self.0;
        inner.heard.lock().push(is_by_certificate);
        let root = inner.params.self_signed(&inner.key).unwrap().pem();
        let context = CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineBytes(root.into_bytes())),
                ..DataSource::default()
            }),
            ..CertificateValidationContext::default()
        };
        let secret = Secret {
            name: "ROOTCA".to_owned(),
            r#type: Some(Type::ValidationContext(context)),
        };
        let answer = DiscoveryResponse {
            version_info: "1".to_owned(),
            resources: vec![proto::any::pack(&secret)],
            type_url: proto::type_url::SECRET.to_owned(),
            ..DiscoveryResponse::default()
        };
        let answers = tokio_stream::once(Ok(answer)).chain(tokio_stream::pending());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
