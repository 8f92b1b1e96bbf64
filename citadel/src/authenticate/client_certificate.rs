//! A caller that already has a certificate of ours: its SPIFFE identity is the one in it. The TLS handshake has verified
//! chain and validity before this stage.

use proto_mesh::spiffe::SpiffeId;

use super::{Authenticator, Credentials, Unauthenticated};
use crate::authorize;
use crate::pki::uri_sans;

/// The authenticator of client certificates.
#[derive(Debug, Default)]
pub struct ClientCertificate;

const CREDENTIAL: &str = "client certificate";

#[tonic::async_trait]
impl Authenticator for ClientCertificate {
    fn name(&self) -> &'static str {
        "ClientCertAuthenticator"
    }

    async fn authenticate(
        &self,
        credentials: &Credentials<'_>,
    ) -> Result<SpiffeId, Unauthenticated> {
        let certificate = credentials
            .certificate
            .ok_or(Unauthenticated::Missing(CREDENTIAL))?;
        let refused = |reason: String| Unauthenticated::Refused {
            credential: CREDENTIAL,
            reason,
        };
        let uris = uri_sans(certificate).map_err(|error| refused(error.to_string()))?;
        // SPIFFE: an X.509-SVID has exactly one URI name.
        let [uri] = uris.as_slice() else {
            return Err(refused(format!(
                "it has {} URI names, an identity has exactly one",
                uris.len()
            )));
        };
        authorize::from_uri(uri).map_err(|error| refused(error.to_string()))
    }
}
