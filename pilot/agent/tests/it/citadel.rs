//! A pretended Citadel over real TLS: signs whatever it is asked for with its token or a certificate of its own, with lifetimes
//! of the test's choice.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
use tonic::{Request, Response, Status};

/// The token that it takes.
pub(crate) const TOKEN: &str = "the-token";

/// The pretended Citadel.
pub(crate) struct Citadel {
    pub(crate) address: String,
    pub(crate) root_file: PathBuf,
    pub(crate) token_file: PathBuf,
    pub(crate) asked: Arc<AtomicUsize>,
    _trigger: Trigger,
}

struct Service {
    key: KeyPair,
    params: CertificateParams,
    life: Duration,
    asked: Arc<AtomicUsize>,
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
        };
        let tls = ServerTls::from_pem(&pem, ClientAuth::Optional, &["h2"]).unwrap();
        let listener = Listener::bind_text("127.0.0.1:0", "--test").await.unwrap();
        let address = format!("localhost:{}", listener.port().unwrap());
        let (root_file, token_file) = (folder.join("root-cert.pem"), folder.join("token"));
        std::fs::write(&root_file, &root).unwrap();
        std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let service = Service {
            key,
            params,
            life,
            asked: asked.clone(),
        };
        let (trigger, drain) = drain::channel();
        let incoming = listener.tls(tls, &drain);
        let routes = tonic::service::Routes::new(IstioCertificateServiceServer::new(service));
        task::spawn("citadel", async move {
            grpc::serve(incoming, routes, &ServerOptions::default(), None, drain).await
        });
        Self {
            address,
            root_file,
            token_file,
            asked,
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
        self.asked.fetch_add(1, Ordering::SeqCst);
        let token = request.metadata().get("authorization");
        let peer = request.extensions().get::<Peer>();
        let has_certificate = peer.is_some_and(|peer| !peer.certificates.is_empty());
        let is_good =
            token.and_then(|value| value.to_str().ok()) == Some(&format!("Bearer {TOKEN}"));
        if !is_good && !has_certificate {
            return Err(Status::unauthenticated("who are you?"));
        }
        let issuer = Issuer::from_params(&self.params, &self.key);
        let mut csr = CertificateSigningRequestParams::from_pem(&request.get_ref().csr).unwrap();
        csr.params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
        csr.params.not_after = OffsetDateTime::now_utc() + self.life;
        let leaf = csr.signed_by(&issuer).unwrap();
        let root = self.params.self_signed(&self.key).unwrap();
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf.pem(), root.pem()],
        }))
    }
}
