//! A caller with a service account token of the cluster: the API server says whose it is (`TokenReview`), and that it was
//! made out to our audience.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use proto_mesh::spiffe::SpiffeId;

use super::{Authenticator, Credentials, Unauthenticated, refused_token};
use crate::authorize;

/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The authenticator of the cluster's own tokens.
pub struct KubeJwt {
    reviews: Api<TokenReview>,
    audiences: Vec<String>,
    trust_domain: String,
}

impl KubeJwt {
    /// An authenticator that asks the API server behind `client`.
    pub fn new(client: kube::Client, audiences: Vec<String>, trust_domain: String) -> Self {
        Self {
            reviews: Api::all(client),
            audiences,
            trust_domain,
        }
    }

    async fn review(&self, token: &str) -> Result<SpiffeId, String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let parameters = PostParams::default();
        let answer = tokio::time::timeout(DEADLINE, self.reviews.create(&parameters, &review))
            .await
            .map_err(|_| "the API server does not answer".to_owned())?
            .map_err(|error| format!("the API server did not review it: {error}"))?;
        let status = answer.status.unwrap_or_default();
        let subject = reviewed_subject(&status, &self.audiences)?;
        authorize::from_subject(&self.trust_domain, &subject).map_err(|error| error.to_string())
    }
}

/// Whose token it is, if the API server vouches for it and for one of our audiences.
fn reviewed_subject(status: &TokenReviewStatus, audiences: &[String]) -> Result<String, String> {
    if status.authenticated != Some(true) {
        let reason = status.error.as_deref().unwrap_or("not authenticated");
        return Err(reason.to_owned());
    }
    // An API server that knows nothing of audiences answers without any: such a token may be meant for anybody.
    let granted = status.audiences.as_deref().unwrap_or_default();
    if !granted.iter().any(|audience| audiences.contains(audience)) {
        return Err("for another audience".to_owned());
    }
    let user = status.user.as_ref().and_then(|user| user.username.clone());
    user.ok_or_else(|| "the API server names no user".to_owned())
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn status(authenticated: bool, audiences: &[&str]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(authenticated),
            audiences: Some(audiences.iter().map(ToString::to_string).collect()),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:n:s".to_owned()),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn only_an_authenticated_token_for_us_names_a_subject() {
        let ours = ["istio-ca".to_owned()];
        let subject = reviewed_subject(&status(true, &["istio-ca"]), &ours);
        assert_eq!(subject.as_deref(), Ok("system:serviceaccount:n:s"));
        assert!(reviewed_subject(&status(true, &["other"]), &ours).is_err());
        assert!(reviewed_subject(&status(true, &[]), &ours).is_err());
        assert!(reviewed_subject(&status(false, &["istio-ca"]), &ours).is_err());
        assert!(reviewed_subject(&TokenReviewStatus::default(), &ours).is_err());
    }
}
