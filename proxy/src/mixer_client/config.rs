//! What the filters are told about Mixer, checked.

use std::sync::Arc;
use std::time::Duration;

use proto::istio::mixer::v1 as mixer;
use proto::istio::mixer::v1::config::client as wire;
use proto_mesh::attribute::Attributes;

use crate::invalid::{At as _, Invalid, try_all};

use super::quota_spec::QuotaSpec;

/// Where Mixer is when nobody says.
const DEFAULT_CLUSTER: &str = "mixer_server";
const BATCH_ENTRIES: u32 = 100;
const BATCH_TIME: Duration = Duration::from_secs(1);
const RETRY_WAIT: Duration = Duration::from_millis(80);
const MAX_RETRY_WAIT: Duration = Duration::from_secs(1);
/// More retries would outlive every request.
const MAX_RETRIES: u32 = 10;
/// A batch is held in memory.
const MAX_BATCH: u32 = 10_000;

/// How Mixer is reached.
#[derive(Debug, PartialEq)]
pub(crate) struct Transport {
    pub(super) check_cluster: String,
    pub(super) report_cluster: String,
    pub(super) disable_check_cache: bool,
    pub(super) disable_quota_cache: bool,
    pub(super) disable_report_batch: bool,
    pub(super) batch_entries: usize,
    pub(super) batch_time: Duration,
    /// Unless the route has its own.
    pub(crate) fail_policy: FailPolicy,
}

/// What happens when Mixer cannot be asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FailPolicy {
    pub(super) is_open: bool,
    pub(super) retries: u32,
    pub(super) base_wait: Duration,
    pub(super) max_wait: Duration,
}

/// What is done on one route.
#[derive(Debug)]
pub(crate) struct ServiceConfig {
    pub(crate) is_checked: bool,
    pub(crate) is_reported: bool,
    pub(crate) attributes: Attributes,
    pub(crate) forward: Attributes,
    pub(crate) quotas: Vec<QuotaSpec>,
    pub(crate) fail_policy: Option<FailPolicy>,
}

impl TryFrom<&wire::TransportConfig> for Transport {
    type Error = Invalid;

    fn try_from(config: &wire::TransportConfig) -> Result<Self, Invalid> {
        let cluster = |name: &str| {
            let name = if name.is_empty() {
                DEFAULT_CLUSTER
            } else {
                name
            };
            name.to_owned()
        };
        let entries = match config.report_batch_max_entries {
            0 => BATCH_ENTRIES,
            entries => entries.min(MAX_BATCH),
        };
        Ok(Transport {
            check_cluster: cluster(&config.check_cluster),
            report_cluster: cluster(&config.report_cluster),
            disable_check_cache: config.disable_check_cache,
            disable_quota_cache: config.disable_quota_cache,
            disable_report_batch: config.disable_report_batch,
            batch_entries: entries as usize,
            batch_time: duration(config.report_batch_max_time.as_ref(), BATCH_TIME)
                .at("report_batch_max_time")?,
            fail_policy: FailPolicy::of(config.network_fail_policy.as_ref())
                .at("network_fail_policy")?
                .unwrap_or_default(),
        })
    }
}

impl Default for FailPolicy {
    fn default() -> Self {
        FailPolicy {
            is_open: true,
            retries: 0,
            base_wait: RETRY_WAIT,
            max_wait: MAX_RETRY_WAIT,
        }
    }
}

impl FailPolicy {
    fn of(policy: Option<&wire::NetworkFailPolicy>) -> Result<Option<Self>, Invalid> {
        let Some(policy) = policy else {
            return Ok(None);
        };
        let open = i32::from(wire::network_fail_policy::FailPolicy::FailOpen);
        let base_wait =
            duration(policy.base_retry_wait.as_ref(), RETRY_WAIT).at("base_retry_wait")?;
        let max_wait =
            duration(policy.max_retry_wait.as_ref(), MAX_RETRY_WAIT).at("max_retry_wait")?;
        Ok(Some(FailPolicy {
            is_open: policy.policy == open,
            retries: policy.max_retry.min(MAX_RETRIES),
            base_wait,
            max_wait: max_wait.max(base_wait),
        }))
    }

    /// How long to wait before the try of this number (from 1), `random` being any number.
    pub(super) fn wait(&self, attempt: u32, random: u64) -> Duration {
        let highest = self
            .base_wait
            .saturating_mul(1 << attempt.min(16))
            .min(self.max_wait);
        let spread = highest.saturating_sub(self.base_wait);
        let spread = u64::try_from(spread.as_micros()).unwrap_or(u64::MAX);
        self.base_wait + Duration::from_micros(random % (spread + 1))
    }
}

impl TryFrom<&wire::ServiceConfig> for ServiceConfig {
    type Error = Invalid;

    fn try_from(config: &wire::ServiceConfig) -> Result<Self, Invalid> {
        Ok(ServiceConfig {
            is_checked: !config.disable_check_calls,
            is_reported: !config.disable_report_calls,
            attributes: attributes(config.mixer_attributes.as_ref()),
            forward: attributes(config.forward_attributes.as_ref()),
            quotas: try_all("quota_spec", &config.quota_spec, QuotaSpec::try_from)?,
            fail_policy: FailPolicy::of(config.network_fail_policy.as_ref())
                .at("network_fail_policy")?,
        })
    }
}

/// Checks the transport of a filter; absent is all default.
pub(crate) fn transport(config: Option<&wire::TransportConfig>) -> Result<Arc<Transport>, Invalid> {
    let empty = wire::TransportConfig::default();
    Transport::try_from(config.unwrap_or(&empty))
        .at("transport")
        .map(Arc::new)
}

/// Attributes of configuration; absent are none.
pub(crate) fn attributes(message: Option<&mixer::Attributes>) -> Attributes {
    message.map(Attributes::from_wire).unwrap_or_default()
}

/// A duration above zero; absent or zero is the default.
pub(crate) fn duration(
    wire: Option<&prost_types::Duration>,
    default: Duration,
) -> Result<Duration, Invalid> {
    let Some(wire) = wire else {
        return Ok(default);
    };
    let duration = Duration::try_from(*wire).map_err(|_| Invalid::new("must not be negative"))?;
    Ok(if duration.is_zero() {
        default
    } else {
        duration
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_no_two_need_be_the_same() {
        let policy = FailPolicy {
            base_wait: Duration::from_millis(80),
            max_wait: Duration::from_secs(1),
            ..FailPolicy::default()
        };
        for (attempt, most) in [(1, 160), (2, 320), (9, 1000)] {
            let randoms = (0..2_000_000).step_by(999);
            let waits: Vec<_> = randoms.map(|random| policy.wait(attempt, random)).collect();
            let bounds = Duration::from_millis(80)..=Duration::from_millis(most);
            assert!(waits.iter().all(|wait| bounds.contains(wait)), "{attempt}");
            // They lie all over the room that there is.
            let near_the_end = Duration::from_millis(most * 9 / 10);
            assert!(waits.iter().any(|wait| *wait > near_the_end), "{attempt}");
            assert_ne!(policy.wait(attempt, 1), policy.wait(attempt, 2));
        }
    }
}
