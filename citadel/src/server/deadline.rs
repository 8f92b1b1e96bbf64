//! One deadline over a whole call, from its headers to its answer: a caller that sends its request slowly, or not at all, does
//! not hold a stream for ever.

use std::future::Future;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tonic::Status;
use tonic::service::Routes;

use super::CALL_DEADLINE;

/// Puts the deadline around every call of `routes`.
pub fn with_deadline(routes: Routes) -> Routes {
    let router = routes.into_axum_router();
    Routes::from(router.layer(from_fn(|request: Request, next: Next| {
        answer_in_time(next.run(request))
    })))
}

async fn answer_in_time(answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(CALL_DEADLINE, answer)
        .await
        .unwrap_or_else(|_| Status::deadline_exceeded("the call took too long").into_http::<Body>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_answered_at_the_deadline() {
        let answer = answer_in_time(std::future::pending()).await;
        let code = answer.headers().get("grpc-status").unwrap();
        assert_eq!(code, "4");
    }
}
