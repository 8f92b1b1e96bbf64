//! The CSR service (`istio.v1.auth.IstioCertificateService`): authenticate, authorize, sign, enter into the ledger, answer.

mod deadline;
mod own_certificate;

use std::sync::Arc;
use std::time::Duration;

use proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use proto_component::listen::Peer;
use proto_mesh::spiffe::SpiffeId;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::authenticate::{Authenticator, Credentials, authenticate};
use crate::authorize::authorize;
use crate::ca::{CertificateAuthority, SignError, SignRequest, TtlRules};
use crate::ledger::{Issued, Ledger};
use crate::metrics::Metrics;
use crate::pki::{Bundle, Certificate, San, SigningRequest, to_pem};

pub use deadline::with_deadline;
pub use own_certificate::{OwnCertificate, OwnCertificateError};

/// A request is a key and a few names: anything bigger is no request.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// How long one call may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Calls at work at once; more are told to come back.
const MAX_CALLS: usize = 256;

/// How the service works.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Lifetimes.
    pub ttl: TtlRules,
    /// Put the identity into the subject too.
    pub dual_use: bool,
}

/// The service.
pub struct CertificateService {
    ca: Arc<dyn CertificateAuthority>,
    authenticators: Vec<Box<dyn Authenticator>>,
    rules: Rules,
    ledger: Ledger,
    metrics: Metrics,
    calls: Semaphore,
}

impl CertificateService {
    /// A service that signs with `ca` for those that `authenticators` recognise.
    pub fn new(
        ca: Arc<dyn CertificateAuthority>,
        authenticators: Vec<Box<dyn Authenticator>>,
        rules: Rules,
        ledger: Ledger,
        metrics: Metrics,
    ) -> Self {
        Self {
            ca,
            authenticators,
            rules,
            ledger,
            metrics,
            calls: Semaphore::new(MAX_CALLS),
        }
    }

    fn sign(
        &self,
        request: &IstioCertificateRequest,
        identity: &SpiffeId,
    ) -> Result<(Certificate, String), SignError> {
        let csr = SigningRequest::from_pem(&request.csr).map_err(SignError::Csr)?;
        let ttl = self.rules.ttl.resolve(request.validity_duration)?;
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

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let Ok(_permit) = self.calls.try_acquire() else {
            return Err(Status::resource_exhausted(
                "too many requests at once, retry",
            ));
        };
        self.metrics.csr.inc();
        let peer = request
            .extensions()
            .get::<Peer>()
            .cloned()
            .unwrap_or_default();
        let credentials = Credentials {
            certificate: peer.certificates.first(),
            bearer: bearer(&request),
        };
        let caller = authenticate(&self.authenticators, &credentials)
            .await
            .map_err(|reasons| {
            self.metrics.authentication_failure.inc();
            tracing::warn!(target: "ca", reasons, peer = ?peer.remote, "caller not authenticated");
            Status::unauthenticated(format!("request authenticate failure: {reasons}"))
        })?;
        let identity = authorize(&caller, &self.rules.trust_domain).map_err(|denied| {
            self.metrics.id_extraction_error.inc();
            tracing::warn!(target: "ca", %denied, peer = ?peer.remote, "caller not authorized");
            Status::permission_denied(denied.to_string())
        })?;
        let request = request.get_ref();
        let (certificate, key_fingerprint) = self
            .sign(request, identity)
            .map_err(|error| self.refused(&error))?;
        let issued = Issued {
            serial: certificate.serial.clone(),
            identity: identity.to_string(),
            issued_at: OffsetDateTime::now_utc(),
            not_before: certificate.validity.not_before,
            not_after: certificate.validity.not_after,
            authenticator: caller.authenticator.to_owned(),
            peer: peer.remote.map(|address| address.to_string()),
            key_fingerprint,
        };
        // What is not in the book was not issued.
        self.enter(&issued).await?;
        self.metrics.success.inc();
        tracing::debug!(target: "ca", identity = issued.identity, serial = issued.serial, "issued");
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: chain(&certificate, &self.ca.bundle()),
        }))
    }
}

/// Leaf, intermediates, and the roots as the last entry.
fn chain(certificate: &Certificate, bundle: &Bundle) -> Vec<String> {
    let mut chain = vec![certificate.pem.clone()];
    chain.extend(bundle.intermediates.iter().map(to_pem));
    chain.push(bundle.roots_pem());
    chain
}

fn bearer<T>(request: &Request<T>) -> Option<&str> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

fn fingerprint(spki: &[u8]) -> String {
    Sha256::digest(spki)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
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
