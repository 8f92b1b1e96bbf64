//! The mutating webhook: `POST /inject` with an `AdmissionReview` of a pod, answered with a JSON patch.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use prometheus::{IntCounter, Registry};
use serde_json::Value;

use crate::config::Settings;
use crate::pod::{self, InjectError};
use crate::policy::{self, Decision};

/// A pod is at most 1.5 MiB in etcd; a review holds it up to twice.
const LARGEST_REVIEW: usize = 4 << 20;

/// What the webhook counts, under Istio's names.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounter,
    success: IntCounter,
    failure: IntCounter,
    skip: IntCounter,
}

impl Metrics {
    /// Registers the counters.
    ///
    /// # Errors
    /// When a name is taken already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Metrics {
            requests: counter("sidecar_injection_requests_total", "Injection requests.")?,
            success: counter("sidecar_injection_success_total", "Pods injected.")?,
            failure: counter(
                "sidecar_injection_failure_total",
                "Pods that could not be injected.",
            )?,
            skip: counter("sidecar_injection_skip_total", "Pods left alone.")?,
        })
    }
}

/// What a request needs.
#[derive(Clone)]
pub struct Webhook {
    /// The settings in force.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Counters.
    pub metrics: Metrics,
}

/// The webhook's routes.
pub fn routes(webhook: Webhook) -> Router {
    Router::new()
        .route("/inject", post(review))
        .layer(DefaultBodyLimit::max(LARGEST_REVIEW))
        .with_state(webhook)
}

async fn review(
    State(webhook): State<Webhook>,
    headers: axum::http::HeaderMap,
    body: Bytes,
) -> Response {
    webhook.metrics.requests.inc();
    let media_type = headers
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if media_type.split(';').next().map(str::trim) != Some("application/json") {
        let message = format!("content type {media_type:?}; wanted application/json");
        return (axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into_response();
    }
    let request = serde_json::from_slice::<AdmissionReview<DynamicObject>>(&body)
        .map_err(|error| error.to_string())
        .and_then(|review| {
            TryInto::<AdmissionRequest<_>>::try_into(review).map_err(|error| error.to_string())
        });
    match request {
        Ok(request) => wire_form(webhook.answer(&request)).into_response(),
        Err(error) => {
            webhook.metrics.failure.inc();
            (
                axum::http::StatusCode::BAD_REQUEST,
                format!("no AdmissionReview of a pod: {error}"),
            )
                .into_response()
        }
    }
}

/// The review as API servers document it: the patch is base64 text, where kube would write an array of numbers.
fn wire_form(mut response: AdmissionResponse) -> Response {
    let patch = response.patch.take().map(|patch| BASE64.encode(patch));
    match serde_json::to_value(response.into_review()) {
        Ok(mut review) => {
            if let Some(patch) = patch {
                review["response"]["patch"] = Value::String(patch);
            }
            Json(review).into_response()
        }
        Err(error) => (
            axum::http::StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )
            .into_response(),
    }
}

impl Webhook {
    fn answer(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let _span = tracing::info_span!("review", namespace = request.namespace).entered();
        let response = AdmissionResponse::from(request);
        let namespace = request.namespace.as_deref().unwrap_or("default");
        let Some(object) = &request.object else {
            return response;
        };
        match serde_json::to_value(object).map_err(|error| error.to_string()) {
            Err(error) => self.refuse(response, &error),
            Ok(original) => match self.inject(&original, namespace) {
                Ok(None) => {
                    self.metrics.skip.inc();
                    response
                }
                Ok(Some(injected)) => match response
                    .with_patch(json_patch::diff(&original, &injected))
                {
                    Ok(response) => {
                        self.metrics.success.inc();
                        response
                    }
                    Err(error) => self.refuse(AdmissionResponse::from(request), &error.to_string()),
                },
                Err(error) => self.refuse(response, &error.to_string()),
            },
        }
    }

    fn inject(&self, pod: &Value, namespace: &str) -> Result<Option<Value>, InjectError> {
        let settings = self.settings.load();
        match policy::decide(&settings.inject, pod, namespace) {
            Decision::Skip(reason) => {
                tracing::debug!(namespace, pod = %pod["metadata"]["name"], reason, "pod left alone");
                Ok(None)
            }
            Decision::Inject => {
                pod::inject(&settings, pod, &pod::workload_of(pod, namespace)).map(Some)
            }
        }
    }

    fn refuse(&self, response: AdmissionResponse, error: &str) -> AdmissionResponse {
        self.metrics.failure.inc();
        tracing::warn!(error, "pod not injected");
        response.deny(format!("sidecar injection: {error}"))
    }
}
