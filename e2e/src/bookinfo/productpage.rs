//! `productpage`: the page a browser sees, made of what `details` and `reviews` say.

use std::sync::Arc;

use axum::extract::{Form, Path, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use super::client::ServiceClient;
use super::details::Details;
use super::page::{self, Page};
use super::reviews::Reviews;

/// The header by which the services know who is signed in; routes may match it.
pub const END_USER: &str = "end-user";

/// Where the other services answer.
#[derive(Clone)]
pub struct ProductPage {
    /// `http://details:9080`.
    pub details: String,
    /// `http://reviews:9080`.
    pub reviews: String,
    /// To call them.
    pub client: ServiceClient,
}

/// An entry of `GET /api/v1/products`.
#[derive(Debug, Serialize)]
struct Product {
    id: u64,
    title: &'static str,
}

#[derive(Debug, Deserialize)]
struct Login {
    username: String,
}

/// The routes of the service.
pub fn routes(service: ProductPage) -> Router {
    Router::new()
        .route("/", get(|| async { Redirect::to("/productpage") }))
        .route("/productpage", get(product_page))
        .route("/login", post(login))
        .route("/logout", get(logout))
        .route(
            "/api/v1/products",
            get(|| async {
                Json([Product {
                    id: 0,
                    title: page::TITLE,
                }])
            }),
        )
        .route("/api/v1/products/{product}", get(product_details))
        .route("/api/v1/products/{product}/reviews", get(product_reviews))
        .with_state(Arc::new(service))
}

async fn product_page(
    State(service): State<Arc<ProductPage>>,
    mut headers: HeaderMap,
) -> Html<String> {
    let user = signed_in_user(&headers);
    identify(&mut headers, user.as_deref());
    let (details, reviews) =
        tokio::join!(service.details(0, &headers), service.reviews(0, &headers));
    Html(
        Page {
            user,
            details,
            reviews,
        }
        .render(),
    )
}

async fn product_details(
    State(service): State<Arc<ProductPage>>,
    Path(product): Path<u64>,
    headers: HeaderMap,
) -> Response {
    answer(service.details(product, &headers).await)
}

async fn product_reviews(
    State(service): State<Arc<ProductPage>>,
    Path(product): Path<u64>,
    headers: HeaderMap,
) -> Response {
    answer(service.reviews(product, &headers).await)
}

async fn login(Form(login): Form<Login>) -> Response {
    let name: String = login
        .username
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(32)
        .collect();
    (
        cookie(&format!("session={name}; Path=/; HttpOnly; SameSite=Lax")),
        Redirect::to("/productpage"),
    )
        .into_response()
}

async fn logout() -> Response {
    (
        cookie("session=; Path=/; Max-Age=0"),
        Redirect::to("/productpage"),
    )
        .into_response()
}

impl ProductPage {
    async fn details(&self, product: u64, headers: &HeaderMap) -> anyhow::Result<Details> {
        self.client
            .get(&format!("{}/details/{product}", self.details), headers)
            .await
            .inspect_err(log)
    }

    async fn reviews(&self, product: u64, headers: &HeaderMap) -> anyhow::Result<Reviews> {
        self.client
            .get(&format!("{}/reviews/{product}", self.reviews), headers)
            .await
            .inspect_err(log)
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "inspect_err hands out a reference"
)]
fn log(error: &anyhow::Error) {
    tracing::warn!(error = format!("{error:#}"), "call failed");
}

fn answer<T: Serialize>(result: anyhow::Result<T>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => (
            StatusCode::BAD_GATEWAY,
            Json(serde_json::json!({ "error": format!("{error:#}") })),
        )
            .into_response(),
    }
}

fn cookie(text: &str) -> [(http::HeaderName, HeaderValue); 1] {
    [(
        SET_COOKIE,
        HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("session=")),
    )]
}

fn signed_in_user(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get(COOKIE)?.to_str().ok()?;
    let user = cookies
        .split(';')
        .find_map(|cookie| cookie.trim().strip_prefix("session="))?;
    let known = !user.is_empty() && user.chars().all(|letter| letter.is_ascii_alphanumeric());
    known.then(|| user.to_owned())
}

fn identify(headers: &mut HeaderMap, user: Option<&str>) {
    headers.remove(END_USER);
    if let Some(user) = user.and_then(|user| HeaderValue::from_str(user).ok()) {
        headers.insert(END_USER, user);
    }
}
