//! `denier`: always the same refusal.

use std::sync::Arc;
use std::time::Duration;

use proto::google::rpc::Status;
use serde::Deserialize;
use serde_json::Value as Json;

use super::{
    Adapter, AdapterConfig, AdapterError, BuildContext, CheckResult, QuotaRequest, QuotaResult,
    status,
};
use crate::config::params;
use crate::template::Values;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Params {
    #[serde(default)]
    status: Option<StatusParams>,
    #[serde(
        default = "default_duration",
        alias = "valid_duration",
        deserialize_with = "params::duration"
    )]
    valid_duration: Duration,
    #[serde(default = "default_use_count", alias = "valid_use_count")]
    valid_use_count: i32,
}

/// `google.rpc.Status`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct StatusParams {
    code: i32,
    message: String,
    /// May carry an answer for the proxy to give.
    details: Vec<Json>,
}

#[derive(Clone, Debug)]
struct Denier {
    result: CheckResult,
}

fn default_duration() -> Duration {
    Duration::from_secs(5)
}

fn default_use_count() -> i32 {
    1000
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    let status = match params.status {
        Some(status) => status.into_status()?,
        None => status(tonic::Code::FailedPrecondition, ""),
    };
    Ok(Box::new(Denier {
        result: CheckResult {
            status,
            valid_duration: params.valid_duration,
            valid_use_count: params.valid_use_count,
            outputs: Vec::new(),
        },
    }))
}

impl StatusParams {
    fn into_status(self) -> Result<Status, String> {
        let mut details = Vec::new();
        for (position, mut detail) in self.details.into_iter().enumerate() {
            let error = |problem: String| format!("status.details[{position}]: {problem}");
            let url = detail
                .as_object_mut()
                .and_then(|fields| fields.shift_remove("@type"));
            let Some(Json::String(url)) = url else {
                return Err(error("@type is needed".into()));
            };
            let message = proto::type_url::message_name(&url);
            let any = proto::json::any_from_value(message, &detail);
            details.push(any.map_err(|problem| error(problem.to_string()))?);
        }
        Ok(Status {
            code: self.code,
            message: self.message,
            details,
        })
    }
}

impl AdapterConfig for Denier {
    fn build(&self, _: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        Ok(Arc::new(self.clone()))
    }
}

impl Adapter for Denier {
    fn check(&self, _: &Values<'_>) -> Result<CheckResult, AdapterError> {
        Ok(self.result.clone())
    }

    // QUIRK: nothing is granted, yet the status is OK.
    fn allocate(&self, _: &Values<'_>, _: &QuotaRequest<'_>) -> Result<QuotaResult, AdapterError> {
        Ok(QuotaResult::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Payload;
    use serde_json::json;

    fn check(json: &Json) -> CheckResult {
        let context = BuildContext::default();
        let denier = configure(json).unwrap().build(&context).unwrap();
        let instance = Values {
            name: "n.instance.ns",
            payload: Payload::Nothing,
        };
        denier.check(&instance).unwrap()
    }

    #[test]
    fn the_refusal_is_as_configured() {
        let result = check(&json!({}));
        assert_eq!(result.status.code, 9);
        assert_eq!(result.valid_duration, Duration::from_secs(5));
        assert_eq!(result.valid_use_count, 1000);
        let detail = json!({
            "@type": "type.googleapis.com/istio.policy.v1beta1.DirectHttpResponse", "code": "Found", "body": "x"});
        let result =
            check(&json!({"status": {"code": 16, "message": "who?", "details": [detail]}}));
        assert_eq!(result.status.message, "who?");
        assert_eq!(result.status.details.len(), 1);
        assert!(configure(&json!({"status": {"code": 7, "oops": 1}})).is_err());
        assert!(configure(&json!({"status": {"details": [{}]}})).is_err());
    }
}
