//! `ratings`: how many stars each reviewer gave.

use std::collections::BTreeMap;

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// The answer of `GET /ratings/{product}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ratings {
    /// The product asked for.
    pub id: u64,
    /// Stars, 1 to 5, by reviewer.
    pub ratings: BTreeMap<String, u8>,
}

/// The routes of the service.
pub fn routes() -> Router {
    Router::new().route(
        "/ratings/{product}",
        get(|Path(product): Path<u64>| async move { Json(ratings(product)) }),
    )
}

fn ratings(product: u64) -> Ratings {
    Ratings {
        id: product,
        ratings: BTreeMap::from([("Reviewer1".to_owned(), 5), ("Reviewer2".to_owned(), 4)]),
    }
}
