//! Who is calling? [`Authenticator`]s are tried in order; the first that recognises the caller wins.
//!
//! Follows Istio: a verified client certificate first, then a bearer token. Identities come from here only, never from a
//! signing request.

mod client_certificate;
mod jwks;
mod jwks_fetch;
mod kube_jwt;
mod oidc;

use proto_mesh::spiffe::SpiffeId;
use rustls_pki_types::CertificateDer;

pub use client_certificate::ClientCertificate;
pub use jwks::{InvalidJwks, JwksSource, KeyRing};
pub use kube_jwt::KubeJwt;
pub use oidc::{Oidc, OidcSettings};

/// What a call brings to prove who sends it.
#[derive(Debug, Clone, Default)]
pub struct Credentials<'a> {
    /// The leaf of a client certificate that the TLS handshake has verified against our roots.
    pub certificate: Option<&'a CertificateDer<'static>>,
    /// The token of `authorization: Bearer …`.
    pub bearer: Option<&'a str>,
}

/// Real tokens are about 1 kB.
const MAX_TOKEN: usize = 16 * 1024;
const TOKEN: &str = "bearer token";

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub identity: SpiffeId,
    /// Which authenticator says so.
    pub authenticator: &'static str,
}

/// Why an authenticator does not recognise a caller.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// The credential that this authenticator looks at is not there.
    #[error("no {0}")]
    Missing(&'static str),
    /// It is there, and bad.
    #[error("{credential} refused: {reason}")]
    Refused {
        /// Which credential.
        credential: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl<'a> Credentials<'a> {
    /// The token, if it is there and not too long to be one.
    fn token(&self) -> Result<&'a str, Unauthenticated> {
        let token = self.bearer.ok_or(Unauthenticated::Missing(TOKEN))?;
        if token.len() > MAX_TOKEN {
            return Err(refused_token(format!("longer than {MAX_TOKEN} bytes")));
        }
        Ok(token)
    }
}

fn refused_token(reason: String) -> Unauthenticated {
    Unauthenticated::Refused {
        credential: TOKEN,
        reason,
    }
}

/// One way to tell who calls.
#[tonic::async_trait]
pub trait Authenticator: Send + Sync {
    /// Its name in log and ledger.
    fn name(&self) -> &'static str;

    /// Recognises the caller, or says why not.
    async fn authenticate(
        &self,
        credentials: &Credentials<'_>,
    ) -> Result<SpiffeId, Unauthenticated>;
}

/// Tries `authenticators` in order. The error names what each of them missed.
pub async fn authenticate(
    authenticators: &[Box<dyn Authenticator>],
    credentials: &Credentials<'_>,
) -> Result<Caller, String> {
    let mut reasons = Vec::new();
    for authenticator in authenticators {
        match authenticator.authenticate(credentials).await {
            Ok(identity) => {
                return Ok(Caller {
                    identity,
                    authenticator: authenticator.name(),
                });
            }
            Err(reason) => reasons.push(reason.to_string()),
        }
    }
    Err(reasons.join("; "))
}

#[cfg(test)]
mod tests;
