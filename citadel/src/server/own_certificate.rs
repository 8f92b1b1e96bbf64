//! Citadel's own server certificate: minted by itself, minted anew a while before it ends or when the CA has changed; new
//! connections see it at once, old ones stay.

use std::sync::Arc;
use std::time::Duration;

use proto_component::drain::Drain;
use proto_component::tls::{ClientAuth, Pem, ServerTls, TlsError};
use time::OffsetDateTime;
use tokio::sync::Notify;
use zeroize::Zeroize as _;

use crate::ca::{CertificateAuthority, SignError, SignRequest};
use crate::pki::{InvalidKey, PrivateKey, San, to_pem};

/// Istio re-mints a minute before the end.
const BEFORE_END: Duration = Duration::from_secs(60);
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// The certificate in use, and how to make the next one.
pub struct OwnCertificate {
    ca: Arc<dyn CertificateAuthority>,
    sans: Vec<San>,
    ttl: Duration,
    tls: ServerTls,
    not_after: parking_lot::Mutex<OffsetDateTime>,
    wanted: Notify,
}

/// Why there is no server certificate.
#[derive(Debug, thiserror::Error)]
pub enum OwnCertificateError {
    /// No key.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The CA does not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The TLS library does not take it.
    #[error("use the server certificate")]
    Tls(#[from] TlsError),
}

impl OwnCertificate {
    /// Mints the first one for `hosts`.
    pub fn new(
        ca: Arc<dyn CertificateAuthority>,
        hosts: &[String],
        ttl: Duration,
    ) -> Result<Self, OwnCertificateError> {
        let sans: Vec<San> = hosts.iter().map(|host| San::from_host(host)).collect();
        let (mut pem, not_after) = mint(ca.as_ref(), &sans, ttl)?;
        // A client's certificate is optional, but verified against our roots if it is given.
        let tls = ServerTls::from_pem(&pem, ClientAuth::Optional, &["h2"]);
        pem.key.zeroize();
        let tls = tls?;
        Ok(Self {
            ca,
            sans,
            ttl,
            tls,
            not_after: parking_lot::Mutex::new(not_after),
            wanted: Notify::new(),
        })
    }

    /// TLS for the CSR port.
    pub fn tls(&self) -> ServerTls {
        self.tls.clone()
    }

    /// Asks for a new one now: the CA has changed.
    pub fn refresh(&self) {
        self.wanted.notify_one();
    }

    /// Replaces it before it ends, until the drain.
    pub async fn run(&self, drain: Drain) {
        loop {
            let left = *self.not_after.lock() - OffsetDateTime::now_utc();
            let left = Duration::try_from(left).unwrap_or_default();
            // A very short life is renewed at its half, not all the time.
            let wait = left.saturating_sub(BEFORE_END.min(left / 2));
            tokio::select! {
                () = tokio::time::sleep(wait.max(SHORTEST_WAIT)) => {}
                () = self.wanted.notified() => {}
                () = drain.signaled() => return,
            }
            if let Err(error) = self.renew() {
                tracing::error!(target: "ca", %error, "cannot renew the server certificate");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn renew(&self) -> Result<(), OwnCertificateError> {
        let (mut pem, not_after) = mint(self.ca.as_ref(), &self.sans, self.ttl)?;
        let replaced = self.tls.replace(&pem);
        pem.key.zeroize();
        replaced?;
        *self.not_after.lock() = not_after;
        tracing::info!(target: "ca", %not_after, "renewed the server certificate");
        Ok(())
    }
}

fn mint(
    ca: &dyn CertificateAuthority,
    sans: &[San],
    ttl: Duration,
) -> Result<(Pem, OffsetDateTime), OwnCertificateError> {
    let key = PrivateKey::generate()?;
    let request = SignRequest {
        public_key: &key.public()?,
        sans,
        ttl,
        dual_use: false,
    };
    let certificate = ca.sign(&request, OffsetDateTime::now_utc())?;
    let bundle = ca.bundle();
    let intermediates = bundle.intermediates.iter().map(to_pem);
    let chain: String = std::iter::once(certificate.pem)
        .chain(intermediates)
        .collect();
    let pem = Pem {
        chain: chain.into_bytes(),
        key: key.to_pem().as_bytes().to_vec(),
        roots: bundle.roots_pem().into_bytes(),
        // Who calls is known by name there, and looked up.
        crls: Vec::new(),
    };
    Ok((pem, certificate.validity.not_after))
}
