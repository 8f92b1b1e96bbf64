//! Asks Citadel for a certificate: token and signing request in, key and chain out. Where there is no good token (any more) the
//! certificate in use speaks for itself, as long as it is valid.
//!
//! The token is read anew for each request (it is short-lived), and so is the root certificate: whichever files are there at
//! the moment count.

use std::path::PathBuf;
use std::time::Duration;

use pem_rfc7468::LineEnding;
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto_component::grpc::{self, ClientOptions, InvalidTarget};
use proto_component::tls::{ClientTls, Pem, ServerIdentity, TlsError};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request};
use zeroize::Zeroizing;

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

impl FetchError {
    /// The certificate in use, if this says that the token counts for nothing and the certificate still does.
    pub(crate) fn other_proof<'a>(&self, current: Option<&'a Workload>) -> Option<&'a Workload> {
        let is_token_bad = match self {
            Self::Token { .. } | Self::TokenText => true,
            Self::Citadel(status) => status.code() == Code::Unauthenticated,
            _ => false,
        };
        current.filter(|workload| is_token_bad && !workload.remaining().is_zero())
    }
}

impl CitadelClient {
    /// Gets a new key certified; `current` is the certificate in use.
    pub async fn fetch(&self, current: Option<&Workload>) -> Result<Workload, FetchError> {
        let by_token = self.fetch_as(None).await;
        match by_token
            .as_ref()
            .err()
            .and_then(|error| error.other_proof(current))
        {
            // The first reason says more: why there is no token.
            Some(workload) => self.fetch_as(Some(workload)).await.or(by_token),
            None => by_token,
        }
    }

    /// Asks with the token, or with the certificate in use.
    async fn fetch_as(&self, current: Option<&Workload>) -> Result<Workload, FetchError> {
        let key = Zeroizing::new(KeyPair::generate()?);
        let csr = self.signing_request(&key)?;
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            ..IstioCertificateRequest::default()
        });
        self.sign(&mut request, current)?;
        let channel = self.channel(current, Some(CALL_DEADLINE))?;
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let answer = client.create_certificate(request).await?.into_inner();
        let key = pem_rfc7468::encode_string("PRIVATE KEY", LineEnding::LF, key.serialized_der())
            .expect("a key is short enough to be written as text");
        Ok(Workload::new(key, &answer.cert_chain)?)
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

    /// Puts the token on a request that is not made with the certificate in use.
    pub(crate) fn sign<T>(
        &self,
        request: &mut Request<T>,
        current: Option<&Workload>,
    ) -> Result<(), FetchError> {
        if current.is_none() {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", self.bearer()?);
        }
        Ok(())
    }

    fn bearer(&self) -> Result<MetadataValue<Ascii>, FetchError> {
        let token = std::fs::read_to_string(&self.token).map_err(|error| FetchError::Token {
            path: self.token.clone(),
            error,
        })?;
        let value = format!("Bearer {}", token.trim());
        value.parse().map_err(|_| FetchError::TokenText)
    }

    /// A connection of its own: certificates are asked for once in hours. `current` is shown as a client certificate.
    pub(crate) fn channel(
        &self,
        current: Option<&Workload>,
        call_timeout: Option<Duration>,
    ) -> Result<Channel, FetchError> {
        let roots = std::fs::read(&self.root_certificate).map_err(|error| FetchError::Root {
            path: self.root_certificate.clone(),
            error,
        })?;
        let (chain, key) = current.map(Workload::pem).unwrap_or_default();
        let pem = Pem {
            chain: chain.as_bytes().to_vec(),
            key: key.as_bytes().to_vec(),
            roots,
            ..Pem::default()
        };
        let mut tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])?;
        if !self.server_name.is_empty() {
            tls = tls.with_server_name(&self.server_name)?;
        }
        let options = ClientOptions {
            connect_timeout: CONNECT_DEADLINE,
            call_timeout,
            ..ClientOptions::default()
        };
        Ok(grpc::channel(&self.address, Some(tls), &options)?)
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
