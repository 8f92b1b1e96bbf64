//! A caller that already has a certificate of ours: its SPIFFE identity is the one in it. The TLS handshake has verified
//! chain and validity before this stage; whether it is revoked, or has ended since on a connection that stayed open, is looked
//! up here.

use proto_mesh::spiffe::SpiffeId;
use time::OffsetDateTime;

use super::{Authenticator, Credentials, Unauthenticated};
use crate::authorize;
use crate::pki::{Validity, serial_of, uri_sans};
use crate::revocation::Revocations;

/// The authenticator of client certificates.
pub struct ClientCertificate {
    revocations: Revocations,
}

impl ClientCertificate {
    /// An authenticator that refuses what is in `revocations`.
    pub fn new(revocations: Revocations) -> Self {
        Self { revocations }
    }
}

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
        let serial = serial_of(certificate).map_err(|error| refused(error.to_string()))?;
        let life = Validity::of(certificate).map_err(|error| refused(error.to_string()))?;
        if !life.contains(OffsetDateTime::now_utc()) {
            return Err(refused("it is not valid any more".to_owned()));
        }
        match self.revocations.is_revoked(&serial) {
            Ok(false) => {}
            Ok(true) => return Err(refused("it is revoked".to_owned())),
            Err(error) => return Err(refused(error.to_string())),
        }
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
