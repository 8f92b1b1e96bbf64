//! Which certificate is shown in a handshake.

use super::secret::KeyPair;
use rustls::{
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// Chooses among a server's certificates by the name asked for; the first if none fits.
#[derive(Debug)]
pub(super) struct Certificates(pub(super) Vec<Arc<KeyPair>>);

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair")
            .field("subject", &self.details.subject)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |pair: &&Arc<KeyPair>| {
            hello.server_name().is_some_and(|name| {
                let parent = name.split_once('.').map(|(_, parent)| parent);
                pair.details.dns_sans.iter().any(|san| {
                    san == name
                        || san
                            .strip_prefix("*.")
                            .is_some_and(|suffix| Some(suffix) == parent)
                })
            })
        };
        self.0
            .iter()
            .find(fits)
            .or_else(|| self.0.first())
            .map(|pair| pair.key.clone())
    }
}

/// Shows the client's certificate to whoever asks.
#[derive(Debug)]
pub(super) struct ClientCertificate(pub(super) Arc<KeyPair>);

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
