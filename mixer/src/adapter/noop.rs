//! `noop`: takes everything and does nothing. For trying rules out.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;

use super::{
    Adapter, AdapterConfig, AdapterError, BuildContext, CheckResult, Generated, QuotaRequest,
    QuotaResult,
};
use crate::config::params;
use crate::pods::Pods;
use crate::template::Values;

#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Noop {}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    Ok(Box::new(params::read::<Noop>(json)?))
}

impl AdapterConfig for Noop {
    fn build(&self, _: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        Ok(Arc::new(self.clone()))
    }
}

impl Adapter for Noop {
    fn check(&self, _: &Values<'_>) -> Result<CheckResult, AdapterError> {
        Ok(CheckResult::ok(
            Duration::from_secs(1_000_000_000),
            1_000_000_000,
        ))
    }

    fn report(&self, _: &[Values<'_>]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn generate<'p>(&self, _: &Values<'_>, _: &'p Pods) -> Result<Generated<'p>, AdapterError> {
        Ok(Generated::new())
    }

    fn allocate(
        &self,
        _: &Values<'_>,
        request: &QuotaRequest<'_>,
    ) -> Result<QuotaResult, AdapterError> {
        Ok(QuotaResult {
            granted: request.amount,
            valid_duration: Duration::from_secs(1_000_000_000),
            ..QuotaResult::default()
        })
    }
}
