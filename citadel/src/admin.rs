//! The operator's way in: a Unix socket in the data folder, which only its owner may open. What it does is what the commands
//! `certs`, `revoke`, `restore` and `rotate-root` ask for; there is no other way to any of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use proto_component::args::Address;
use proto_component::drain::Drain;
use proto_component::listen::{BindError, Listener};
use proto_component::{monitoring, task};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{MutexGuard, Notify};

use crate::kubernetes::SharedRevocations;
use crate::ledger::{Issued, Ledger, LedgerError};
use crate::revocation::{Revocations, RevokeError, Revoked, Target, normalized};
use crate::root::RootKeeper;
use crate::trust::{Trust, TrustError};

const LIST_LIMIT: usize = 100_000;

/// A certificate and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// What stands in the ledger.
    #[serde(flatten)]
    pub issued: Issued,
    /// Whether it is revoked.
    pub revoked: bool,
}

/// What a listing is to contain.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Listing {
    /// How many.
    pub limit: Option<usize>,
    /// Only of this identity.
    pub identity: Option<String>,
    /// Only this serial number.
    pub serial: Option<String>,
}

/// What the socket gives access to.
pub struct Admin {
    /// The book.
    pub ledger: Ledger,
    /// What is taken back.
    pub revocations: Revocations,
    /// Whom to tell of it.
    pub trust: Arc<Trust>,
    /// How other replicas learn of it, if there may be some.
    pub shared: Option<Arc<SharedRevocations>>,
    /// The root that can be rotated, and who does it.
    pub root: Option<(Arc<RootKeeper>, Arc<Notify>)>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Revoke(#[from] RevokeError),
    #[error("it is revoked, but nobody was told: {0}")]
    Trust(#[from] TrustError),
    #[error("it is done here; other replicas are told as soon as the API server takes it: {0}")]
    Others(String),
    #[error("this root is not ours to rotate: replace the plugged-in CA's files")]
    NoRoot,
    #[error("{0:#}")]
    Rotate(anyhow::Error),
}

/// Where the socket is.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

impl Admin {
    /// Serves on the socket in `data_dir` until the drain.
    pub async fn start(self, data_dir: &Path, drain: &Drain) -> Result<(), BindError> {
        let address = Address::Unix(socket(data_dir));
        // The folder is its owner's only, so the socket is too.
        let listener = Listener::bind(&address, "--data-dir").await?;
        let router = axum::Router::new()
            .route("/certs", get(list))
            .route("/verify", get(verify))
            .route("/revoke", post(revoke))
            .route("/restore", post(restore))
            .route("/rotate-root", post(rotate_root))
            .with_state(Arc::new(self));
        let (incoming, end) = (listener.plaintext(drain), drain.clone());
        task::spawn("admin", async move {
            monitoring::serve_http(incoming, router, async move { end.signaled().await }).await;
        });
        Ok(())
    }
}

impl Admin {
    /// What other replicas have done meanwhile waits until this is over.
    async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        match &self.shared {
            Some(shared) => Some(shared.turn().await),
            None => None,
        }
    }

    async fn tell_others(&self) -> Result<(), Refused> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let told = shared.push().await;
        told.map_err(|error| Refused::Others(format!("{error:#}")))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Revoke(RevokeError::UnknownSerial(_) | RevokeError::InvalidIdentity(_)) => {
                StatusCode::NOT_FOUND
            }
            Self::NoRoot | Self::Rotate(_) => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (code, self.to_string()).into_response()
    }
}

/// The book is on disk, and may be long.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(LedgerError::Closed.into()),
    }
}

async fn list(
    State(admin): State<Arc<Admin>>,
    Query(listing): Query<Listing>,
) -> Result<Json<Vec<Entry>>, Refused> {
    in_background(move || {
        let limit = listing.limit.unwrap_or(100).min(LIST_LIMIT);
        let found = match listing.serial {
            Some(serial) => admin
                .ledger
                .find(&normalized(&serial))?
                .into_iter()
                .collect(),
            None => admin.ledger.newest(limit, listing.identity.as_deref())?,
        };
        let entry = |issued: Issued| {
            let revoked = admin.revocations.is_revoked(&issued.serial);
            Ok(Entry {
                revoked: revoked.map_err(RevokeError::from)?,
                issued,
            })
        };
        let entries: Result<Vec<Entry>, Refused> = found.into_iter().map(entry).collect();
        Ok(Json(entries?))
    })
    .await
}

async fn verify(State(admin): State<Arc<Admin>>) -> Result<Json<usize>, Refused> {
    in_background(move || Ok(Json(admin.ledger.verify()?))).await
}

async fn revoke(
    State(admin): State<Arc<Admin>>,
    Json(target): Json<Target>,
) -> Result<Json<Vec<Revoked>>, Refused> {
    let _turn = admin.turn().await;
    let here = admin.clone();
    let revoked = in_background(move || {
        let now = OffsetDateTime::now_utc();
        let revoked = here.revocations.revoke(&target, &here.ledger, now)?;
        here.trust.refresh()?;
        tracing::warn!(target: "ca", ?target, certificates = revoked.len(), "revoked");
        Ok(revoked)
    })
    .await?;
    admin.tell_others().await?;
    Ok(Json(revoked))
}

async fn restore(
    State(admin): State<Arc<Admin>>,
    Json(identity): Json<String>,
) -> Result<Json<bool>, Refused> {
    let _turn = admin.turn().await;
    let here = admin.clone();
    let was_barred = in_background(move || {
        let was_barred = here.revocations.restore(&identity)?;
        tracing::warn!(target: "ca", identity, was_barred, "restored");
        Ok(was_barred)
    })
    .await?;
    admin.tell_others().await?;
    Ok(Json(was_barred))
}

async fn rotate_root(State(admin): State<Arc<Admin>>) -> Result<Json<()>, Refused> {
    let (root, rotator) = admin.root.clone().ok_or(Refused::NoRoot)?;
    let rotated = root.rotate(OffsetDateTime::now_utc()).await;
    rotated.map_err(Refused::Rotate)?;
    in_background(move || {
        admin.trust.refresh()?;
        rotator.notify_one();
        tracing::warn!(target: "ca", "the next self-signed root is made known");
        Ok(Json(()))
    })
    .await
}
