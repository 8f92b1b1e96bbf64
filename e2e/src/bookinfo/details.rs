//! `details`: what is printed inside the cover.

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// The answer of `GET /details/{product}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// The product asked for.
    pub id: u64,
    /// Who wrote it.
    pub author: String,
    /// When it was first printed.
    pub year: u16,
    /// `paperback` or `hardcover`.
    #[serde(rename = "type")]
    pub binding: String,
    /// Number of pages.
    pub pages: u16,
    /// Who printed it.
    pub publisher: String,
    /// In which language.
    pub language: String,
    /// ISBN with ten digits.
    #[serde(rename = "ISBN-10")]
    pub isbn_10: String,
    /// ISBN with thirteen digits.
    #[serde(rename = "ISBN-13")]
    pub isbn_13: String,
}

/// The routes of the service.
pub fn routes() -> Router {
    Router::new().route(
        "/details/{product}",
        get(|Path(product): Path<u64>| async move { Json(details(product)) }),
    )
}

fn details(product: u64) -> Details {
    Details {
        id: product,
        author: "William Shakespeare".into(),
        year: 1595,
        binding: "paperback".into(),
        pages: 200,
        publisher: "PublisherA".into(),
        language: "English".into(),
        isbn_10: "1234567890".into(),
        isbn_13: "123-1234567890".into(),
    }
}
