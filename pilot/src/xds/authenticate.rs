//! Who opens a stream: whoever shows a certificate of the mesh, or a service account's token, is the account that it names.
//! Without TLS nobody is believed.

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use proto_component::kubernetes::token::{TokenReviewer, service_account};
use proto_component::listen::Peer;
use proto_mesh::spiffe::SpiffeId;

use super::access::AccessReviewer;
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

/// The service account that opens a stream.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) namespace: String,
    account: String,
    access: Option<AccessReviewer>,
}

impl Caller {
    /// Whether it may read the Secrets of its namespace; where there is no API server, all of the namespace may. If nobody knows, it
    /// may not.
    pub(super) async fn may_read_secrets(&self) -> bool {
        let Some(access) = &self.access else {
            return true;
        };
        let (namespace, account) = (&self.namespace, &self.account);
        match access.may_read_secrets(namespace, account).await {
            Ok(true) => true,
            Ok(false) => {
                tracing::warn!(target: "ads", namespace, account, "calls itself a gateway and may not list the Secrets of its namespace: its agent's files count");
                false
            }
            Err(reason) => {
                tracing::warn!(target: "ads", namespace, account, error = reason, "nobody knows whether a gateway may read Secrets: it has none for now");
                false
            }
        }
    }

    /// Resolves once that is otherwise than `before`.
    pub(super) async fn access_changed(&self, before: bool) {
        match &self.access {
            Some(access) => access.changed(&self.namespace, &self.account, before).await,
            None => std::future::pending().await,
        }
    }
}

/// Tells who opens a stream.
#[derive(Clone, Debug, Default)]
pub struct Authenticator {
    /// Who tells whose tokens are; none: tokens prove nothing.
    pub reviewer: Option<TokenReviewer>,
    /// Who tells which accounts may read Secrets; none: all.
    pub access: Option<AccessReviewer>,
}

impl Authenticator {
    /// Whom `evidence` proves; none if it proves nothing.
    ///
    /// # Errors
    /// When it is there and bad, or where it must be there.
    pub(super) async fn caller(
        &self,
        evidence: &Evidence,
        mesh: &Mesh,
    ) -> Result<Option<Caller>, String> {
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
            return Ok(Some(self.account(id.namespace(), id.service_account())));
        }
        match (&self.reviewer, &evidence.token) {
            (None, _) => Ok(None),
            (Some(_), None) => Err("no client certificate and no bearer token".to_owned()),
            (Some(reviewer), Some(token)) => {
                let subject = reviewer.subject(token).await;
                let subject = subject.map_err(|reason| format!("bearer token: {reason}"))?;
                let (namespace, account) = service_account(&subject)
                    .ok_or_else(|| format!("bearer token: {subject} is no service account"))?;
                Ok(Some(self.account(namespace, account)))
            }
        }
    }

    fn account(&self, namespace: &str, account: &str) -> Caller {
        Caller {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            access: self.access.clone(),
        }
    }
}
