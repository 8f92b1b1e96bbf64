//! A caller with a service account token of the cluster: the API server says whose it is.

use proto_component::kubernetes::token::TokenReviewer;
use proto_mesh::spiffe::SpiffeId;

use super::{Authenticator, Credentials, Unauthenticated, refused_token};
use crate::authorize;

/// The authenticator of the cluster's own tokens.
pub struct KubeJwt {
    reviewer: TokenReviewer,
    trust_domain: String,
}

impl KubeJwt {
    /// An authenticator that asks the API server behind `client`.
    pub fn new(client: kube::Client, audiences: Vec<String>, trust_domain: String) -> Self {
        Self {
            reviewer: TokenReviewer::new(client, audiences),
            trust_domain,
        }
    }

    async fn review(&self, token: &str) -> Result<SpiffeId, String> {
        let subject = self.reviewer.subject(token).await?;
        authorize::from_subject(&self.trust_domain, &subject).map_err(|error| error.to_string())
    }
}

#[tonic::async_trait]
impl Authenticator for KubeJwt {
    fn name(&self) -> &'static str {
        "KubeJWTAuthenticator"
    }

    async fn authenticate(
        &self,
        credentials: &Credentials<'_>,
    ) -> Result<SpiffeId, Unauthenticated> {
        self.review(credentials.token()?)
            .await
            .map_err(refused_token)
    }
}
