//! Who may read the Secrets of a namespace: those to whom the API server would give them itself (`SubjectAccessReview`). An account
//! that is merely of the namespace may not; the charts let those of gateways. What the API server said holds for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{
    Client,
    api::{Api, PostParams},
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a yes holds, as in Istio.
const YES_HOLDS: Duration = Duration::from_secs(60);
/// How long a no holds: a gateway may be there before its role.
const NO_HOLDS: Duration = Duration::from_secs(10);
/// Accounts whose answers are kept at most.
const KEPT: usize = 4096;

/// What the API server said of an account.
#[derive(Debug)]
struct Verdict {
    is_allowed: bool,
    until: Instant,
}

/// Asks the API server who may read Secrets.
#[derive(Clone, Debug)]
pub struct AccessReviewer {
    reviews: Api<SubjectAccessReview>,
    /// By the account's user name.
    known: Arc<Mutex<HashMap<String, Verdict>>>,
}

impl AccessReviewer {
    /// Asks the API server behind `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            reviews: Api::all(client),
            known: Arc::default(),
        }
    }

    /// Whether a service account may list the Secrets of its namespace.
    ///
    /// # Errors
    /// Why nobody knows.
    pub async fn may_read_secrets(&self, namespace: &str, account: &str) -> Result<bool, String> {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let is_fresh = |verdict: &&Verdict| Instant::now() < verdict.until;
        let known = self
            .known
            .lock()
            .get(&user)
            .filter(is_fresh)
            .map(|verdict| verdict.is_allowed);
        if let Some(is_allowed) = known {
            return Ok(is_allowed);
        }
        let (review, parameters) = (review(&user, namespace), PostParams::default());
        let answer = tokio::time::timeout(DEADLINE, self.reviews.create(&parameters, &review))
            .await
            .map_err(|_| "the API server does not answer".to_owned())?
            .map_err(|error| format!("the API server did not review it: {error}"))?;
        let is_allowed = answer.status.is_some_and(|status| status.allowed);
        self.keep(user, is_allowed);
        Ok(is_allowed)
    }

    /// Resolves once the API server says otherwise than it did `before`; while it says nothing, that holds.
    pub async fn changed(&self, namespace: &str, account: &str, before: bool) {
        loop {
            tokio::time::sleep(NO_HOLDS).await;
            let now = self.may_read_secrets(namespace, account).await;
            if now.is_ok_and(|now| now != before) {
                return;
            }
        }
    }

    fn keep(&self, user: String, is_allowed: bool) {
        let now = Instant::now();
        let holds = if is_allowed { YES_HOLDS } else { NO_HOLDS };
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.retain(|_, verdict| now < verdict.until);
        }
        if known.len() < KEPT {
            let until = now + holds;
            known.insert(user, Verdict { is_allowed, until });
        }
    }
}

/// The question about `user`, with the groups of which the API server has every service account.
fn review(user: &str, namespace: &str) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some("list".to_owned()),
                resource: Some("secrets".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}
