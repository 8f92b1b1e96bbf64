//! `reviews`: what two readers thought. Version v1 shows no stars, v2 black ones, v3 red ones (from [`ratings`](super::ratings)).

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::client::ServiceClient;
use super::ratings::Ratings;

/// The answer of `GET /reviews/{product}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reviews {
    /// The product asked for.
    pub id: u64,
    /// The pod that answered.
    pub podname: String,
    /// What the readers wrote.
    pub reviews: Vec<Review>,
}

/// One reader's opinion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Review {
    /// Who wrote it.
    pub reviewer: String,
    /// What was written.
    pub text: String,
    /// Absent in v1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<Rating>,
}

/// The stars below a review, or why there are none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rating {
    /// The ratings service answered.
    Stars {
        /// 1 to 5.
        stars: u8,
        /// `black` or `red`.
        color: String,
    },
    /// It did not.
    Unavailable {
        /// What to tell the reader.
        error: String,
    },
}

/// What a version of the service does.
#[derive(Clone)]
pub struct ReviewsService {
    /// The colour of its stars; `None` asks for no ratings.
    pub star_color: Option<String>,
    /// Where `ratings` answers, `http://ratings:9080`.
    pub ratings: String,
    /// The name of this pod.
    pub pod: String,
    /// To call it.
    pub client: ServiceClient,
}

/// The routes of the service.
pub fn routes(service: ReviewsService) -> Router {
    Router::new()
        .route("/reviews/{product}", get(reviews))
        .with_state(Arc::new(service))
}

async fn reviews(
    State(service): State<Arc<ReviewsService>>,
    Path(product): Path<u64>,
    headers: HeaderMap,
) -> Json<Reviews> {
    let ratings = match &service.star_color {
        None => None,
        Some(color) => {
            let url = format!("{}/ratings/{product}", service.ratings);
            let ratings = service.client.get::<Ratings>(&url, &headers).await;
            if let Err(error) = &ratings {
                tracing::warn!(error = format!("{error:#}"), "no ratings");
            }
            Some((color.as_str(), ratings.ok()))
        }
    };
    let review = |reviewer: &str, text: &str| Review {
        reviewer: reviewer.to_owned(),
        text: text.to_owned(),
        rating: ratings
            .as_ref()
            .map(|(color, ratings)| rating(reviewer, color, ratings.as_ref())),
    };
    Json(Reviews {
        id: product,
        podname: service.pod.clone(),
        reviews: vec![
            review(
                "Reviewer1",
                "Mistaken for each other for a whole day, and not bored for a minute of it.",
            ),
            review(
                "Reviewer2",
                "Short, loud and kind. I would have liked one twin fewer.",
            ),
        ],
    })
}

fn rating(reviewer: &str, color: &str, ratings: Option<&Ratings>) -> Rating {
    match ratings.and_then(|ratings| ratings.ratings.get(reviewer)) {
        Some(stars) => Rating::Stars {
            stars: *stars,
            color: color.to_owned(),
        },
        None => Rating::Unavailable {
            error: "Ratings service is currently unavailable".into(),
        },
    }
}
