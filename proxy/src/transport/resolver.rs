//! Which certificate is shown in a handshake.

use super::secret::KeyPair;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// Chooses among a server's certificates by the name asked for, then by what the client can check; the first if none fits.
#[derive(Debug)]
pub(super) struct Certificates(pub(super) Vec<Arc<KeyPair>>);

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair")
            .field("subject", &self.details.subject)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// The certificate for `name` whose key can sign in one of `schemes` (any, if none are known).
    pub(super) fn choose(
        &self,
        name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<&Arc<KeyPair>> {
        let can_sign = |pair: &&Arc<KeyPair>| {
            schemes.is_empty() || pair.key.key.choose_scheme(schemes).is_some()
        };
        let named = || {
            self.0
                .iter()
                .filter(|pair| name.is_some_and(|name| serves(pair, name)))
        };
        named()
            .find(can_sign)
            .or_else(|| named().next())
            .or_else(|| self.0.iter().find(can_sign))
            .or_else(|| self.0.first())
    }
}

fn serves(pair: &KeyPair, name: &str) -> bool {
    let parent = name.split_once('.').map(|(_, parent)| parent);
    pair.details.dns_sans.iter().any(|san| {
        san.eq_ignore_ascii_case(name)
            || san
                .strip_prefix("*.")
                .zip(parent)
                .is_some_and(|(suffix, parent)| suffix.eq_ignore_ascii_case(parent))
    })
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
            .map(|pair| pair.key.clone())
    }
}

/// Shows the client's certificate to whoever asks.
#[derive(Debug)]
pub(super) struct ClientCertificate(pub(super) Arc<KeyPair>);

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
