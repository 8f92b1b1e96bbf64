//! The admission webhook: what the API server (or `biremectl`) asks before it keeps an object.
//!
//! `/admitpilot`, `/admitmixer` and `/validate` run the same check; the paths are Istio's. Only CREATE and UPDATE are
//! checked: whatever is there may be deleted.

use super::{Problem, object::check};
use crate::metrics::ValidationMetrics;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
};
use proto_mesh::Severity;
use std::sync::Arc;

/// Kubernetes does not store objects of more than about 1.5 MiB.
const LARGEST_REVIEW: usize = 4 << 20;

/// The webhook's pages.
pub fn router(metrics: ValidationMetrics) -> Router {
    Router::new()
        .route("/admitpilot", post(admit))
        .route("/admitmixer", post(admit))
        .route("/validate", post(admit))
        .route("/ready", get(async || "ready\n"))
        .layer(DefaultBodyLimit::max(LARGEST_REVIEW))
        .with_state(Arc::new(metrics))
}

async fn admit(
    State(metrics): State<Arc<ValidationMetrics>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if body.is_empty() {
        metrics.http_error(StatusCode::BAD_REQUEST);
        return (StatusCode::BAD_REQUEST, "no body found\n").into_response();
    }
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    if content_type != "application/json" {
        metrics.http_error(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let hint = "the content type must be application/json\n";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, hint).into_response();
    }
    Json(review(&body, &metrics).into_review()).into_response()
}

fn review(body: &[u8], metrics: &ValidationMetrics) -> AdmissionResponse {
    let request = serde_json::from_slice::<AdmissionReview<DynamicObject>>(body)
        .map_err(|error| error.to_string())
        .and_then(
            |review| -> Result<AdmissionRequest<DynamicObject>, String> {
                review.try_into().map_err(
                    |error: kube::core::admission::ConvertAdmissionReviewError| error.to_string(),
                )
            },
        );
    match request {
        Ok(request) => answer(&request, metrics),
        Err(error) => AdmissionResponse::invalid(format!("cannot read the review: {error}")),
    }
}

fn answer(
    request: &AdmissionRequest<DynamicObject>,
    metrics: &ValidationMetrics,
) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    let kind = &request.kind;
    let labels = [&kind.group, &kind.version, &request.resource.resource].map(String::as_str);
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        metrics.passed(labels);
        return response;
    }
    let object = request
        .object
        .as_ref()
        .and_then(|object| serde_json::to_value(object).ok());
    let Some(mut object) = object else {
        metrics.failed(labels, "yaml_decode_error");
        return response.deny("the review holds no object");
    };
    // An object that is being created may leave its namespace to the request.
    if let (Some(namespace), Some(metadata)) = (&request.namespace, object.get_mut("metadata"))
        && metadata
            .get("namespace")
            .is_none_or(serde_json::Value::is_null)
    {
        metadata["namespace"] = namespace.clone().into();
    }
    let outcome = check(&object);
    let text = |severity: Severity| -> Vec<String> {
        let of = outcome
            .issues
            .iter()
            .filter(|issue| issue.severity == severity);
        of.map(|issue| {
            let problem = Problem {
                path: issue.path.clone(),
                message: issue.message.clone(),
                line: 0,
                hint: issue.hint.clone(),
            };
            problem.to_string()
        })
        .collect()
    };
    let warnings = text(Severity::Warning);
    let mut response = if outcome.is_valid() {
        metrics.passed(labels);
        response
    } else {
        let reason = text(Severity::Error).join("\n");
        let why = match outcome.issues.first().map(|issue| issue.path.as_str()) {
            Some("kind" | "apiVersion") => "unknown_type",
            _ => "invalid_resource",
        };
        metrics.failed(labels, why);
        tracing::info!(target: "validation", kind = outcome.kind, namespace = outcome.namespace, name = outcome.name, reason, "object refused");
        let mut response = response.deny(reason);
        response.result.code = 422;
        response.result.reason = "Invalid".to_owned();
        response
    };
    response.warnings = (!warnings.is_empty()).then_some(warnings);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The answer, which is the same in both versions of a review.
    fn ask(operation: &str, object: &Value) -> Value {
        let answers = ["v1", "v1beta1"].map(|version| ask_in(version, operation, object));
        assert_eq!(answers[0], answers[1]);
        answers[0].clone()
    }

    fn ask_in(version: &str, operation: &str, object: &Value) -> Value {
        let version = format!("admission.k8s.io/{version}");
        let review = json!({
            "apiVersion": version, "kind": "AdmissionReview",
            "request": {
                "uid": "7", "operation": operation, "userInfo": {}, "name": "x", "namespace": "shop",
                "kind": {"group": "networking.istio.io", "version": "v1", "kind": "VirtualService"},
                "resource": {"group": "networking.istio.io", "version": "v1", "resource": "virtualservices"},
                "object": object, "oldObject": null,
            },
        });
        let metrics = ValidationMetrics::unregistered();
        let response = review_of(&review, &metrics).into_review();
        let answer = serde_json::to_value(response).unwrap();
        assert_eq!(answer["apiVersion"], version);
        answer["response"].clone()
    }

    fn review_of(value: &Value, metrics: &ValidationMetrics) -> AdmissionResponse {
        review(value.to_string().as_bytes(), metrics)
    }

    fn route(spec: &Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "x"}, "spec": spec,
        })
    }

    #[test]
    fn a_good_object_is_admitted_with_the_reviews_uid() {
        let good =
            route(&json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]}));
        let answer = ask("CREATE", &good);
        assert_eq!(
            (&answer["allowed"], &answer["uid"]),
            (&json!(true), &json!("7"))
        );
    }

    #[test]
    fn a_bad_object_is_refused_with_path_reason_and_hint() {
        let bad = route(&json!({"hosts": ["a"], "http": [{"rout": []}]}));
        let answer = ask("UPDATE", &bad);
        assert_eq!(answer["allowed"], false);
        assert_eq!(
            answer["status"]["message"],
            "spec.http[0].rout: unknown field; did you mean route?"
        );
        assert_eq!(ask("DELETE", &bad)["allowed"], true);
    }

    #[test]
    fn an_unreadable_review_is_refused_not_failed() {
        let metrics = ValidationMetrics::unregistered();
        assert!(!review(b"{}", &metrics).allowed);
        assert!(!review(b"nonsense", &metrics).allowed);
    }
}
