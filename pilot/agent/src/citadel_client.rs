//! Asks Citadel for a certificate: token and signing request in, key and chain out.
//!
//! The token is read anew for each request (it is short-lived), and so is the root certificate: whichever files are there at
//! the moment count.

use std::path::PathBuf;
use std::time::Duration;

use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto_component::grpc::{self, ClientOptions, InvalidTarget};
use proto_component::tls::{ClientTls, Pem, ServerIdentity, TlsError};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tonic::Request;

use crate::secret::{InvalidSecret, Workload};

const CALL_DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 1 << 20;

/// Where to ask, and as whom.
#[derive(Debug, Clone)]
pub struct CitadelClient {
    /// `HOST:PORT`.
    pub address: String,
    /// Name in the server's certificate; the address's host if empty.
    pub server_name: String,
    /// Root certificate that the server's must lead to.
    pub root_certificate: PathBuf,
    /// The service account's token.
    pub token: PathBuf,
    /// The identity that we expect to get; only a wish, Citadel decides by the token.
    pub identity: Option<String>,
    /// Lifetime to ask for.
    pub ttl: Duration,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The root certificate is not there (yet).
    #[error("read the root certificate {}: {error}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The token is not there (yet).
    #[error("read the token {}: {error}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The token cannot be sent.
    #[error("the token is not plain text")]
    TokenText,
    /// The root certificate is no good.
    #[error("verify citadel's certificate: {0}")]
    Tls(#[from] TlsError),
    /// The address is no good.
    #[error(transparent)]
    Address(#[from] InvalidTarget),
    /// No key or request could be made.
    #[error("make a signing request: {0}")]
    Request(#[from] rcgen::Error),
    /// Citadel did not answer, or refused.
    #[error("citadel: {}", describe(.0))]
    Citadel(#[from] tonic::Status),
    /// What Citadel sent is no good.
    #[error("citadel's answer: {0}")]
    Answer(#[from] InvalidSecret),
}

impl CitadelClient {
    /// Gets a new key certified.
    pub async fn fetch(&self) -> Result<Workload, FetchError> {
        let token = std::fs::read_to_string(&self.token).map_err(|error| FetchError::Token {
            path: self.token.clone(),
            error,
        })?;
        let roots = std::fs::read(&self.root_certificate).map_err(|error| FetchError::Root {
            path: self.root_certificate.clone(),
            error,
        })?;
        let key = KeyPair::generate()?;
        let csr = self.signing_request(&key)?;
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            ..IstioCertificateRequest::default()
        });
        let value = format!("Bearer {}", token.trim());
        let value = value.parse().map_err(|_| FetchError::TokenText)?;
        request.metadata_mut().insert("authorization", value);
        let mut client = self.client(roots)?;
        let answer = client.create_certificate(request).await?.into_inner();
        Ok(Workload::new(key.serialize_pem(), &answer.cert_chain)?)
    }

    fn signing_request(&self, key: &KeyPair) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(identity) = &self.identity {
            params
                .subject_alt_names
                .push(SanType::URI(identity.as_str().try_into()?));
        }
        params.serialize_request(key)?.pem()
    }

    /// A connection for one call: certificates are asked for once in hours.
    fn client(
        &self,
        roots: Vec<u8>,
    ) -> Result<IstioCertificateServiceClient<tonic::transport::Channel>, FetchError> {
        let pem = Pem {
            roots,
            ..Pem::default()
        };
        let mut tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])?;
        if !self.server_name.is_empty() {
            tls = tls.with_server_name(&self.server_name)?;
        }
        let options = ClientOptions {
            connect_timeout: CONNECT_DEADLINE,
            call_timeout: Some(CALL_DEADLINE),
            ..ClientOptions::default()
        };
        let channel = grpc::channel(&self.address, Some(tls), &options)?;
        Ok(IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }
}

/// A status with the causes that the transport hides in it.
fn describe(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
