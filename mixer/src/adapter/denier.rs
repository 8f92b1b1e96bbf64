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
    status: Json,
    #[serde(
        default = "default_duration",
        alias = "valid_duration",
        deserialize_with = "params::duration"
    )]
    valid_duration: Duration,
    #[serde(default = "default_use_count", alias = "valid_use_count")]
    valid_use_count: i32,
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
    let status = if params.status.is_null() {
        status(tonic::Code::FailedPrecondition, "")
    } else {
        // As a message: its details may carry an answer for the proxy to give.
        proto::json::from_value::<Status>(&params.status)
            .map_err(|error| format!("status: {error}"))?
    };
    Ok(Box::new(Denier {
        result: CheckResult {
            status,
            valid_duration: params.valid_duration,
            valid_use_count: params.valid_use_count,
        },
    }))
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
