//! The calling side: whom we trust, who the server must be, and our own certificate if it asks.

use super::{Pem, PemFiles, TlsError, certified_key, provider, root_store, subject_uris};
use arc_swap::ArcSwap;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
    sign::SingleCertAndKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// Who the server must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerIdentity {
    /// The name dialled (or the one given with [`ClientTls::with_server_name`]) is in its certificate.
    Name,
    /// One of these URIs (SPIFFE ids) or DNS names is in its certificate.
    AnyOf(Vec<String>),
    /// Its chain leads to a trust anchor; the name does not matter.
    Trusted,
}

/// A client's TLS; clones share certificate and trust anchors, which may be replaced at any time.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ArcSwap<ClientConfig>>,
    shape: Shape,
    server_name: Option<ServerName<'static>>,
}

#[derive(Clone)]
struct Shape {
    identity: ServerIdentity,
    alpn: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    identity: ServerIdentity,
    provider: Arc<CryptoProvider>,
}

impl ClientTls {
    /// From files, which are followed; the chain and key files are needed only where the server asks for a certificate.
    pub fn from_files(
        files: PemFiles,
        identity: ServerIdentity,
        alpn: &[&str],
    ) -> Result<Self, TlsError> {
        let tls = Self::build(&files.read()?, &files.place(), identity, alpn)?;
        let shape = tls.shape.clone();
        super::follow(files, &tls.config, move |pem, place| {
            shape.config(pem, place)
        });
        Ok(tls)
    }

    /// From PEM text in memory (an empty chain: no client certificate); replace it with [`ClientTls::replace`].
    pub fn from_pem(pem: &Pem, identity: ServerIdentity, alpn: &[&str]) -> Result<Self, TlsError> {
        Self::build(pem, "memory", identity, alpn)
    }

    /// Other certificates from the next connection on.
    pub fn replace(&self, pem: &Pem) -> Result<(), TlsError> {
        self.config
            .store(Arc::new(self.shape.config(pem, "memory")?));
        Ok(())
    }

    /// Uses this name (SNI, verification) instead of the host dialled.
    pub fn with_server_name(mut self, name: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| TlsError::Roots(format!("server name `{name}`: {error}")))?;
        self.server_name = Some(name);
        Ok(self)
    }

    /// The name to use for a host that is dialled.
    pub fn server_name(&self, host: &str) -> std::io::Result<ServerName<'static>> {
        if let Some(name) = &self.server_name {
            return Ok(name.clone());
        }
        ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))
    }

    /// A connector with the certificates of this moment.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.config.load_full())
    }

    fn build(
        pem: &Pem,
        place: &str,
        identity: ServerIdentity,
        alpn: &[&str],
    ) -> Result<Self, TlsError> {
        let shape = Shape {
            identity,
            alpn: alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
        };
        let config = shape.config(pem, place)?;
        Ok(Self {
            config: Arc::new(ArcSwap::from_pointee(config)),
            shape,
            server_name: None,
        })
    }
}

impl Shape {
    fn config(&self, pem: &Pem, place: &str) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let verifier = Verifier {
            roots: root_store(&pem.roots, place)?,
            identity: self.identity.clone(),
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = if pem.chain.is_empty() {
            builder.with_no_client_auth()
        } else {
            let key = certified_key(pem, place)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        };
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }
}

impl Verifier {
    fn check_identity(
        &self,
        leaf: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        dialled: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        match &self.identity {
            ServerIdentity::Trusted => Ok(()),
            ServerIdentity::Name => verify_server_name(parsed, dialled),
            ServerIdentity::AnyOf(names) => {
                let uris = subject_uris(leaf.as_ref());
                let matches = names.iter().any(|name| {
                    uris.contains(name)
                        || ServerName::try_from(name.as_str())
                            .is_ok_and(|name| verify_server_name(parsed, &name).is_ok())
                });
                if matches {
                    Ok(())
                } else {
                    Err(CertificateError::NotValidForName.into())
                }
            }
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        self.check_identity(end_entity, &parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
