//! The CSR services (`istio.v1.auth.IstioCertificateService` and the older `IstioCAService`): authenticate, authorize, sign,
//! enter into the ledger, answer. Beside them [`discovery`] hands out what is to be trusted, to those whom the services know.

mod deadline;
mod discovery;
mod legacy;
mod own_certificate;

use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use proto_component::listen::Peer;
use proto_mesh::spiffe::SpiffeId;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use crate::authenticate::{Authenticator, Caller, Credentials, authenticate};
use crate::authorize::{Impersonators, authorize};
use crate::ca::{CertificateAuthority, SignError, SignRequest, TtlRules};
use crate::ledger::{Issued, Ledger};
use crate::metrics::Metrics;
use crate::pki::{Bundle, Certificate, San, SigningRequest, fingerprint, to_pem};
use crate::revocation::Revocations;

pub use deadline::with_deadline;
pub use discovery::{StreamLimits, TrustDiscovery};
pub use own_certificate::{OwnCertificate, OwnCertificateError};

/// A request is a key and a few names: anything bigger is no request.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// How long one call may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Calls at work at once; more wait.
const MAX_CALLS: usize = 256;
/// Calls that wait for their turn; more are told to come back. A whole cluster's agents may start at once, and one that is sent
/// away has its TLS handshake for nothing.
const MAX_WAITING: usize = 8192;
/// Istio's name of the field in a request's metadata.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// How the service works.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Lifetimes.
    pub ttl: TtlRules,
    /// Put the identity into the subject too.
    pub dual_use: bool,
    /// Who may ask for other identities than its own.
    pub impersonators: Impersonators,
}

/// The service; cheap to clone.
#[derive(Clone)]
pub struct CertificateService(Arc<Inner>);

struct Inner {
    ca: Arc<dyn CertificateAuthority>,
    authenticators: Vec<Box<dyn Authenticator>>,
    rules: Rules,
    ledger: Ledger,
    revocations: Revocations,
    metrics: Metrics,
    calls: Semaphore,
    waiting: Semaphore,
}

/// A call of either service, as far as they are alike.
struct Call<'a> {
    peer: Peer,
    bearer: Option<&'a str>,
    csr: &'a str,
    seconds: i64,
    /// The identity to certify instead of the caller's own.
    impersonated: Option<&'a str>,
}

impl CertificateService {
    /// A service that signs with `ca` for those that `authenticators` recognise.
    pub fn new(
        ca: Arc<dyn CertificateAuthority>,
        authenticators: Vec<Box<dyn Authenticator>>,
        rules: Rules,
        ledger: Ledger,
        revocations: Revocations,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            ca,
            authenticators,
            rules,
            ledger,
            revocations,
            metrics,
            calls: Semaphore::new(MAX_CALLS),
            waiting: Semaphore::new(MAX_WAITING),
        }))
    }

    /// Who opens a stream: known to the authenticators and of our mesh. It gets no certificate by that, so it may be revoked.
    async fn recognise<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        let _permit = self.0.permit().await?;
        let peer = peer(request);
        let caller = self.0.caller(&peer, bearer(request)).await?;
        self.0.acts_for(&caller, None, &peer)
    }
}

impl Inner {
    fn sign(
        &self,
        call: &Call<'_>,
        identity: &SpiffeId,
    ) -> Result<(Certificate, String), SignError> {
        let csr = SigningRequest::from_pem(call.csr).map_err(SignError::Csr)?;
        let ttl = self.rules.ttl.resolve(call.seconds)?;
        let sign = SignRequest {
            public_key: &csr.public_key,
            sans: &[San::Uri(identity.to_string())],
            ttl,
            dual_use: self.rules.dual_use,
        };
        let certificate = self.ca.sign(&sign, OffsetDateTime::now_utc())?;
        Ok((certificate, fingerprint(csr.public_key.der())))
    }

    /// Enters a certificate into the ledger, within the call's deadline.
    async fn enter(&self, issued: &Issued) -> Result<(), Status> {
        let outcome = tokio::time::timeout(CALL_DEADLINE, self.ledger.record(issued)).await;
        let reason = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the ledger does not answer".to_owned(),
        };
        tracing::error!(target: "ca", error = reason, "cannot record a certificate");
        Err(Status::unavailable(reason))
    }

    fn refused(&self, error: &SignError) -> Status {
        self.metrics
            .csr_sign_error
            .with_label_values(&[error.label()])
            .inc();
        match error {
            SignError::Csr(_) => {
                self.metrics.csr_parsing_error.inc();
                Status::invalid_argument(describe(error))
            }
            SignError::Ttl { .. } => Status::invalid_argument(describe(error)),
            SignError::NotReady { .. } | SignError::Generate(_) => {
                tracing::error!(target: "ca", error = describe(error), "cannot sign");
                Status::internal(describe(error))
            }
        }
    }
}

impl Inner {
    /// Who calls.
    async fn caller(&self, peer: &Peer, bearer: Option<&str>) -> Result<Caller, Status> {
        let credentials = Credentials {
            certificate: peer.certificates.first(),
            bearer,
        };
        let outcome = authenticate(&self.authenticators, &credentials).await;
        outcome.map_err(|reasons| {
            self.metrics.authentication_failure.inc();
            tracing::warn!(target: "ca", reasons, peer = ?peer.remote, "caller not authenticated");
            Status::unauthenticated(format!("request authenticate failure: {reasons}"))
        })
    }

    /// The identity that a caller acts for: its own, or the one that it asks for and may have.
    fn acts_for(
        &self,
        caller: &Caller,
        wanted: Option<&str>,
        peer: &Peer,
    ) -> Result<SpiffeId, Status> {
        let rules = &self.rules;
        let outcome = authorize(caller, wanted, &rules.trust_domain, &rules.impersonators);
        outcome.map_err(|denied| {
            self.metrics.id_extraction_error.inc();
            tracing::warn!(target: "ca", %denied, peer = ?peer.remote, "caller not authorized");
            Status::permission_denied(denied.to_string())
        })
    }

    /// A turn to work; the call's own deadline bounds the wait.
    async fn permit(&self) -> Result<SemaphorePermit<'_>, Status> {
        let full = |_| Status::resource_exhausted("too many requests at once, retry");
        let _place = self.waiting.try_acquire().map_err(full)?;
        let permit = self.calls.acquire().await;
        // It is closed never.
        permit.map_err(|error| Status::unavailable(error.to_string()))
    }

    fn check_barred(&self, identity: &SpiffeId) -> Result<(), Status> {
        let identity = identity.to_string();
        match self.revocations.is_barred(&identity) {
            Ok(false) => Ok(()),
            Ok(true) => {
                tracing::warn!(target: "ca", identity, "a revoked identity asks for a certificate");
                Err(Status::permission_denied(format!("{identity} is revoked")))
            }
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    /// The whole way from a call to a certificate.
    async fn issue(&self, call: &Call<'_>) -> Result<(Certificate, Arc<Bundle>), Status> {
        let _permit = self.permit().await?;
        self.metrics.csr.inc();
        let caller = self.caller(&call.peer, call.bearer).await?;
        let identity = self.acts_for(&caller, call.impersonated, &call.peer)?;
        self.check_barred(&identity)?;
        // Of before the signature: a root that is introduced meanwhile does no harm, one that is missing would.
        let bundle = self.ca.bundle();
        let (certificate, key_fingerprint) = self
            .sign(call, &identity)
            .map_err(|error| self.refused(&error))?;
        let issued = Issued {
            serial: certificate.serial.clone(),
            identity: identity.to_string(),
            issued_at: OffsetDateTime::now_utc(),
            not_before: certificate.validity.not_before,
            not_after: certificate.validity.not_after,
            authenticator: caller.authenticator.to_owned(),
            peer: call.peer.remote.map(|address| address.to_string()),
            key_fingerprint,
        };
        // What is not in the book was not issued.
        self.enter(&issued).await?;
        // Somebody may have revoked the identity meanwhile, too early to see this certificate in the book.
        self.check_barred(&identity)?;
        self.metrics.success.inc();
        tracing::debug!(target: "ca", identity = issued.identity, serial = issued.serial, "issued");
        Ok((certificate, bundle))
    }
}

impl<'a> Call<'a> {
    fn new<T>(request: &'a Request<T>, csr: &'a str, seconds: i64) -> Self {
        Self {
            peer: peer(request),
            bearer: bearer(request),
            csr,
            seconds,
            impersonated: None,
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let message = request.get_ref();
        let mut call = Call::new(&request, &message.csr, message.validity_duration);
        call.impersonated = impersonated(message)?;
        let (certificate, bundle) = self.0.issue(&call).await?;
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: chain(&certificate, &bundle),
        }))
    }
}

/// The identity that a caller asks for in the place of its own.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<&str>, Status> {
    let field = request
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.fields.get(IMPERSONATED));
    match field.map(|value| &value.kind) {
        None => Ok(None),
        Some(Some(Kind::StringValue(identity))) => {
            Ok(Some(identity.as_str()).filter(|identity| !identity.is_empty()))
        }
        Some(_) => Err(Status::invalid_argument(format!(
            "metadata.{IMPERSONATED} is not text"
        ))),
    }
}

/// Leaf, intermediates, and the roots as the last entry.
fn chain(certificate: &Certificate, bundle: &Bundle) -> Vec<String> {
    let mut chain = vec![certificate.pem.clone()];
    chain.extend(bundle.intermediates.iter().map(to_pem));
    chain.push(bundle.roots_pem());
    chain
}

fn peer<T>(request: &Request<T>) -> Peer {
    request.extensions().get().cloned().unwrap_or_default()
}

fn bearer<T>(request: &Request<T>) -> Option<&str> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

/// An error with all its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
