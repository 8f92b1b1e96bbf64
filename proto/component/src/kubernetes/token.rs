//! Tokens of service accounts: the API server says whose one is (`TokenReview`), and that it was made out to our audience.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{
    Client,
    api::{Api, PostParams},
};

/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Real tokens are about 1 kB.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Asks the API server about tokens.
#[derive(Clone, Debug)]
pub struct TokenReviewer {
    reviews: Api<TokenReview>,
    audiences: Vec<String>,
}

impl TokenReviewer {
    /// Asks the API server behind `client` about tokens that are made out to one of `audiences`.
    pub fn new(client: Client, audiences: Vec<String>) -> Self {
        Self {
            reviews: Api::all(client),
            audiences,
        }
    }

    /// Whose token it is: `system:serviceaccount:NAMESPACE:ACCOUNT`, if it is a pod's.
    ///
    /// # Errors
    /// Why it counts for nothing.
    pub async fn subject(&self, token: &str) -> Result<String, String> {
        if token.len() > MAX_TOKEN {
            return Err(format!("longer than {MAX_TOKEN} bytes"));
        }
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
        reviewed_subject(&status, &self.audiences)
    }
}

/// Namespace and name of the service account that a token's subject names.
#[must_use]
pub fn service_account(subject: &str) -> Option<(&str, &str)> {
    let account = subject.strip_prefix("system:serviceaccount:")?;
    let (namespace, name) = account.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty()).then_some((namespace, name))
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

    #[test]
    fn subjects_of_pods_name_their_service_account() {
        assert_eq!(
            service_account("system:serviceaccount:n:s"),
            Some(("n", "s"))
        );
        for other in [
            "system:node:n",
            "system:serviceaccount:n",
            "system:serviceaccount::s",
            "",
        ] {
            assert_eq!(service_account(other), None, "{other}");
        }
    }
}
