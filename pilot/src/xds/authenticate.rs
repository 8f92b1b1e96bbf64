//! Who opens a stream: whoever shows a certificate of the mesh, or a service account's token, is of the namespace that it names.
//! Without TLS nobody is believed.

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use proto_component::kubernetes::token::{TokenReviewer, service_account};
use proto_component::listen::Peer;
use proto_mesh::spiffe::SpiffeId;

use crate::model::Mesh;

/// What a stream brings to prove who opens it.
#[derive(Clone, Default)]
pub struct Evidence {
    /// There is TLS, on which this certificate was shown.
    peer: Option<Peer>,
    token: Option<String>,
}

impl Evidence {
    /// What came with a request.
    #[must_use]
    pub fn of(extensions: &Extensions, headers: &HeaderMap) -> Self {
        let peer = extensions.get::<Peer>().filter(|peer| peer.is_tls).cloned();
        // A token that has come in the clear may be anybody's.
        let header = peer.as_ref().and_then(|_| headers.get(AUTHORIZATION));
        let token = header
            .and_then(|header| header.to_str().ok())
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim().to_owned());
        Evidence { peer, token }
    }
}

/// Tells who opens a stream.
#[derive(Clone, Debug, Default)]
pub struct Authenticator {
    /// Who tells whose tokens are; none: tokens prove nothing.
    pub reviewer: Option<TokenReviewer>,
}

impl Authenticator {
    /// The namespace that `evidence` proves; none if it proves nothing.
    ///
    /// # Errors
    /// When it is there and bad, or where it must be there.
    pub async fn namespace(
        &self,
        evidence: &Evidence,
        mesh: &Mesh,
    ) -> Result<Option<String>, String> {
        let Some(peer) = &evidence.peer else {
            return Ok(None);
        };
        if let Some(id) = &peer.spiffe_id {
            let id: SpiffeId = id
                .parse()
                .map_err(|error| format!("client certificate: {error}"))?;
            let mut domains = mesh.trust_domains();
            if !domains.any(|domain| domain == id.trust_domain()) {
                return Err(format!("client certificate of another mesh: {id}"));
            }
            return Ok(Some(id.namespace().to_owned()));
        }
        match (&self.reviewer, &evidence.token) {
            (None, _) => Ok(None),
            (Some(_), None) => Err("no client certificate and no bearer token".to_owned()),
            (Some(reviewer), Some(token)) => {
                let subject = reviewer.subject(token).await;
                let subject = subject.map_err(|reason| format!("bearer token: {reason}"))?;
                let (namespace, _) = service_account(&subject)
                    .ok_or_else(|| format!("bearer token: {subject} is no service account"))?;
                Ok(Some(namespace.to_owned()))
            }
        }
    }
}
