//! Secret discovery of one resource, `ROOTCA`: what everybody is to believe, pushed to every agent as soon as it changes.
//!
//! Nothing of it is secret, but each stream costs something: it is for those whom the CSR services know, and how many may
//! listen is bounded, altogether and for each identity.

mod seats;

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret::Type,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use proto_component::drain::Drain;
use proto_mesh::spiffe::SpiffeId;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::{CALL_DEADLINE, CertificateService};
use crate::trust::Anchors;

use seats::{Seat, Seats};

pub use seats::StreamLimits;

/// Name of the resource, as proxies ask for it.
const ROOT_CA: &str = "ROOTCA";

/// The service.
pub struct TrustDiscovery {
    callers: CertificateService,
    anchors: watch::Receiver<Arc<Anchors>>,
    seats: Seats,
    drain: Drain,
}

/// One stream's state.
struct Session {
    requests: Streaming<DiscoveryRequest>,
    anchors: watch::Receiver<Arc<Anchors>>,
    drain: Drain,
    /// The version sent last.
    sent: String,
    is_subscribed: bool,
    nonce: u64,
    _seat: Seat,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl TrustDiscovery {
    /// A service of `anchors` for those whom `callers` knows.
    pub fn new(
        callers: CertificateService,
        anchors: watch::Receiver<Arc<Anchors>>,
        limits: StreamLimits,
        drain: Drain,
    ) -> Self {
        Self {
            callers,
            anchors,
            seats: Seats::new(limits),
            drain,
        }
    }

    async fn recognise<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        tokio::time::timeout(CALL_DEADLINE, self.callers.recognise(request))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the call took too long")))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for TrustDiscovery {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let identity = self.recognise(&request).await?;
        let seat = self.seats.take(identity)?;
        let session = Session {
            requests: request.into_inner(),
            anchors: self.anchors.clone(),
            drain: self.drain.clone(),
            sent: String::new(),
            is_subscribed: false,
            nonce: 0,
            _seat: seat,
        };
        let answers = futures::stream::unfold(session, |mut session| async {
            let answer = session.next().await?;
            Some((answer, session))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("use StreamSecrets"))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        self.recognise(&request).await?;
        check(request.get_ref())?;
        let anchors = self.anchors.borrow().clone();
        Ok(Response::new(response(&anchors, String::new())))
    }
}

impl Session {
    /// The next answer; none at the end of the stream.
    async fn next(&mut self) -> Option<Result<DiscoveryResponse, Status>> {
        loop {
            let anchors = self.anchors.borrow_and_update().clone();
            if self.is_subscribed && anchors.version != self.sent {
                self.sent.clone_from(&anchors.version);
                self.nonce += 1;
                return Some(Ok(response(&anchors, self.nonce.to_string())));
            }
            tokio::select! {
                request = self.requests.next() => match request {
                    Some(Ok(request)) => {
                        if let Err(status) = check(&request) {
                            return Some(Err(status));
                        }
                        if let Some(error) = request.error_detail {
                            tracing::warn!(target: "ca", error = error.message, "an agent refuses what it is to trust");
                        }
                        self.is_subscribed = true;
                    }
                    Some(Err(_)) | None => return None,
                },
                changed = self.anchors.changed() => if changed.is_err() { return None },
                () = self.drain.signaled() => return None,
            }
        }
    }
}

fn check(request: &DiscoveryRequest) -> Result<(), Status> {
    if !request.type_url.is_empty() && request.type_url != proto::type_url::SECRET {
        let text = format!("{} is not served here", request.type_url);
        return Err(Status::invalid_argument(text));
    }
    if request.resource_names.iter().any(|name| name != ROOT_CA) {
        let text = format!("only the secret {ROOT_CA} is served here");
        return Err(Status::invalid_argument(text));
    }
    Ok(())
}

fn response(anchors: &Anchors, nonce: String) -> DiscoveryResponse {
    let inline = |text: &str| DataSource {
        specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())),
        ..DataSource::default()
    };
    let context = CertificateValidationContext {
        trusted_ca: Some(inline(&anchors.roots)),
        crl: (!anchors.crls.is_empty()).then(|| inline(&anchors.crls)),
        // There are no lists for the authorities above ours.
        only_verify_leaf_cert_crl: true,
        ..CertificateValidationContext::default()
    };
    let secret = Secret {
        name: ROOT_CA.to_owned(),
        r#type: Some(Type::ValidationContext(context)),
    };
    DiscoveryResponse {
        version_info: anchors.version.clone(),
        resources: vec![proto::any::pack(&secret)],
        type_url: proto::type_url::SECRET.to_owned(),
        nonce,
        ..DiscoveryResponse::default()
    }
}
