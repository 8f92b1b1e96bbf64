//! The serving side: our certificate, and what is asked of the client's.

use super::{
    Pem, PemFiles, TlsError, certified_key, provider,
    revocation::{Peers, Seat},
    revocation_lists, root_store,
};
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use webpki::{CertRevocationList, OwnedCertRevocationList};

/// What is asked of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate.
    None,
    /// A certificate is verified if there is one.
    Optional,
    /// No connection without a verified certificate.
    Required,
}

/// A server's TLS; clones share the certificate, which may be replaced at any time.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ArcSwap<ServerConfig>>,
    shape: Shape,
}

#[derive(Clone)]
struct Shape {
    client_auth: ClientAuth,
    alpn: Vec<Vec<u8>>,
    /// Clients that are connected, for revocation lists to close.
    peers: Arc<Peers>,
}

impl ServerTls {
    /// From files, which are followed. `alpn`: protocols in order of preference (`["h2"]`, `["h2", "http/1.1"]`).
    pub fn from_files(
        files: PemFiles,
        client_auth: ClientAuth,
        alpn: &[&str],
    ) -> Result<Self, TlsError> {
        let tls = Self::build(&files.read()?, &files.place(), client_auth, alpn)?;
        let shape = tls.shape.clone();
        super::follow(files, &tls.config, move |pem, place| {
            shape.config(pem, place)
        });
        Ok(tls)
    }

    /// From PEM text in memory; replace it with [`ServerTls::replace`].
    pub fn from_pem(pem: &Pem, client_auth: ClientAuth, alpn: &[&str]) -> Result<Self, TlsError> {
        Self::build(pem, "memory", client_auth, alpn)
    }

    /// Another certificate from the next connection on.
    pub fn replace(&self, pem: &Pem) -> Result<(), TlsError> {
        self.config
            .store(Arc::new(self.shape.config(pem, "memory")?));
        Ok(())
    }

    /// An acceptor with the certificate of this moment.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Takes a connection in on which a client has shown `chain`; none if it has shown nothing that could be revoked.
    pub(crate) fn enter(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Seat> {
        self.shape.peers.enter(chain)
    }

    fn build(
        pem: &Pem,
        place: &str,
        client_auth: ClientAuth,
        alpn: &[&str],
    ) -> Result<Self, TlsError> {
        let shape = Shape {
            client_auth,
            alpn: alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
            peers: Arc::default(),
        };
        let config = shape.config(pem, place)?;
        Ok(Self {
            config: Arc::new(ArcSwap::from_pointee(config)),
            shape,
        })
    }
}

impl Shape {
    fn config(&self, pem: &Pem, place: &str) -> Result<ServerConfig, TlsError> {
        let key: CertifiedKey = certified_key(pem, place)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?
            .with_client_cert_verifier(self.verifier(pem, place)?)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }

    fn verifier(&self, pem: &Pem, place: &str) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        if self.client_auth == ClientAuth::None {
            return Ok(Arc::new(NoClientAuth));
        }
        let roots = Arc::new(root_store(&pem.roots, place)?);
        let lists = revocation_lists(&pem.crls, place)?;
        // Before the new configuration is in force: a handshake by the former one still meets them when it enters.
        self.peers
            .revoke("client certificates", &parse(&lists, place)?);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .with_crls(lists)
            // There are no lists for the authorities above Citadel's, nor for others beside it.
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status();
        let builder = match self.client_auth {
            ClientAuth::Optional => builder.allow_unauthenticated(),
            ClientAuth::None | ClientAuth::Required => builder,
        };
        builder
            .build()
            .map_err(|error| TlsError::Roots(error.to_string()))
    }
}

fn parse(
    lists: &[CertificateRevocationListDer<'_>],
    place: &str,
) -> Result<Arc<[CertRevocationList<'static>]>, TlsError> {
    let parse = |list: &CertificateRevocationListDer<'_>| {
        OwnedCertRevocationList::from_der(list).map(CertRevocationList::from)
    };
    lists
        .iter()
        .map(parse)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::RevocationList {
            place: place.to_owned(),
            reason: error.to_string(),
        })
}
