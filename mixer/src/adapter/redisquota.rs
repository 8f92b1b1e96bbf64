//! `redisquota`: quotas counted in a Redis (or Valkey), for all replicas together.
//!
//! Every allocation is one Lua script, so it is atomic; times are the server's, so that replicas agree. A fixed window begins
//! with the first request after the last one has ended; a rolling window gives back what buckets that are older than it have
//! taken. When the server is away the quota's status is UNAVAILABLE, with which proxies let requests pass, or, with
//! `failPolicy: FAIL_CLOSE`, nothing is granted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use redis::Script;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::sync::Mutex;
use tonic::Code;

use super::memquota::{Algorithm, agrees};
use super::{
    Adapter, AdapterConfig, AdapterError, BuildContext, CheckResult, QuotaRequest, QuotaResult,
    Waiting, status,
};
use crate::config::params;
use crate::seldom::Seldom;
use crate::template::{Dimensions, Payload, Values};

/// How long one allocation may take, connecting included.
const DEADLINE: Duration = Duration::from_secs(1);
/// What a proxy is told of a refusal's validity when the server is away.
const AWAY_VALID: Duration = Duration::from_secs(1);

const FIXED: &str = include_str!("redisquota/fixed_window.lua");
const ROLLING: &str = include_str!("redisquota/rolling_window.lua");

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Params {
    #[serde(default)]
    quotas: Vec<Quota>,
    #[serde(default = "default_server", alias = "redis_server_url")]
    redis_server_url: String,
    /// One connection carries any number of calls at once here.
    #[serde(
        default,
        alias = "connection_pool_size",
        rename = "connectionPoolSize",
        deserialize_with = "params::int64"
    )]
    _connection_pool_size: i64,
    #[serde(default, alias = "fail_policy")]
    fail_policy: FailPolicy,
}

/// What is granted while the server is away.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum FailPolicy {
    #[default]
    FailOpen,
    FailClose,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Quota {
    name: String,
    #[serde(default, alias = "max_amount", deserialize_with = "params::int64")]
    max_amount: i64,
    #[serde(
        default,
        alias = "valid_duration",
        deserialize_with = "params::duration"
    )]
    valid_duration: Duration,
    #[serde(
        default,
        alias = "bucket_duration",
        deserialize_with = "params::duration"
    )]
    bucket_duration: Duration,
    #[serde(default = "fixed_window", alias = "rate_limit_algorithm")]
    rate_limit_algorithm: Algorithm,
    #[serde(default)]
    overrides: Vec<Override>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Override {
    #[serde(default)]
    dimensions: BTreeMap<String, String>,
    #[serde(default, alias = "max_amount", deserialize_with = "params::int64")]
    max_amount: i64,
}

struct RedisQuota {
    quotas: HashMap<String, Quota>,
    client: redis::Client,
    /// Made when it is first needed; it comes back by itself afterwards.
    connection: Mutex<Option<ConnectionManager>>,
    fail_policy: FailPolicy,
    away: Seldom,
    fixed: Script,
    rolling: Script,
}

impl std::fmt::Debug for RedisQuota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RedisQuota({:?})",
            self.client.get_connection_info().addr()
        )
    }
}

fn fixed_window() -> Algorithm {
    Algorithm::FixedWindow
}

fn default_server() -> String {
    "localhost:6379".into()
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    params.client()?;
    for (position, quota) in params.quotas.iter().enumerate() {
        quota
            .check()
            .map_err(|problem| format!("quotas[{position}].{problem}"))?;
    }
    Ok(Box::new(params))
}

impl Params {
    /// `HOST:PORT`, or one of the client's URLs (`redis://user:password@host:port/db`, `unix:///PATH`).
    fn client(&self) -> Result<redis::Client, String> {
        let url = if self.redis_server_url.contains("://") {
            self.redis_server_url.clone()
        } else {
            format!("redis://{}", self.redis_server_url)
        };
        redis::Client::open(url).map_err(|error| format!("redisServerUrl: {error}"))
    }
}

impl Quota {
    fn check(&self) -> Result<(), String> {
        if self.name.is_empty() {
            return Err("name: the full name of an instance is needed".into());
        }
        if self.max_amount <= 0 {
            return Err("maxAmount: must be above 0".into());
        }
        if self.valid_duration.as_millis() == 0 {
            return Err("validDuration: must be at least 1ms".into());
        }
        if self.rate_limit_algorithm == Algorithm::RollingWindow
            && (self.bucket_duration.as_millis() == 0
                || self.bucket_duration >= self.valid_duration)
        {
            return Err("bucketDuration: must be above 0 and below validDuration".into());
        }
        for (position, over) in self.overrides.iter().enumerate() {
            if over.max_amount <= 0 {
                return Err(format!("overrides[{position}].maxAmount: must be above 0"));
            }
            if over.dimensions.is_empty() {
                return Err(format!("overrides[{position}].dimensions: are needed"));
            }
        }
        Ok(())
    }

    /// The limit, and the key under which it is counted: an override counts by its own dimensions.
    fn limit(&self, dimensions: &Dimensions<'_>) -> (i64, String) {
        let found = self
            .overrides
            .iter()
            .find(|over| agrees(&over.dimensions, dimensions));
        match found {
            None => (self.max_amount, self.name.clone()),
            Some(over) => {
                let mut hash = Fnv::new();
                for (name, value) in &over.dimensions {
                    hash.add(name);
                    hash.add("\t");
                    hash.add(value);
                    hash.add("\n");
                }
                (over.max_amount, format!("{}-{}", self.name, hash.0))
            }
        }
    }
}

/// FNV-1a of 32 bits, by which the 1.4 line names an override's counter.
struct Fnv(u32);

impl Fnv {
    fn new() -> Self {
        Self(0x811c_9dc5)
    }

    fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
}

impl AdapterConfig for Params {
    fn build(&self, _: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let quotas = self
            .quotas
            .iter()
            .map(|quota| (quota.name.clone(), quota.clone()));
        Ok(Arc::new(RedisQuota {
            quotas: quotas.collect(),
            client: self.client().map_err(AdapterError::new)?,
            connection: Mutex::default(),
            fail_policy: self.fail_policy,
            away: Seldom::default(),
            fixed: Script::new(FIXED),
            rolling: Script::new(ROLLING),
        }))
    }
}

impl RedisQuota {
    async fn connection(&self) -> redis::RedisResult<ConnectionManager> {
        let mut known = self.connection.lock().await;
        if let Some(connection) = known.as_ref() {
            return Ok(connection.clone());
        }
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(DEADLINE))
            .set_response_timeout(Some(DEADLINE));
        let connection = self
            .client
            .get_connection_manager_with_config(config)
            .await?;
        *known = Some(connection.clone());
        Ok(connection)
    }

    /// What was granted, and for how long.
    async fn count(
        &self,
        quota: &Quota,
        (max, key): (i64, String),
        request: &QuotaRequest<'_>,
    ) -> redis::RedisResult<(i64, u64)> {
        let mut connection = self.connection().await?;
        let script = match quota.rate_limit_algorithm {
            Algorithm::FixedWindow => &self.fixed,
            Algorithm::RollingWindow => &self.rolling,
        };
        let duplicate = match request.deduplication_id {
            "" => String::new(),
            id => format!("{id}-{key}.meta"),
        };
        let mut call = script.key(format!("{key}.meta"));
        call.key(format!("{key}.data"))
            .key(duplicate)
            .arg(max)
            .arg(millis(quota.valid_duration))
            .arg(millis(quota.bucket_duration))
            .arg(request.amount)
            .arg(i32::from(request.best_effort));
        call.invoke_async(&mut connection).await
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Adapter for RedisQuota {
    fn waiting(&self) -> Option<&dyn Waiting> {
        Some(self)
    }
}

impl Waiting for RedisQuota {
    fn check<'a>(&'a self, _: &'a Values<'_>) -> BoxFuture<'a, Result<CheckResult, AdapterError>> {
        Box::pin(async { Err(AdapterError::unsupported()) })
    }

    fn allocate<'a>(
        &'a self,
        instance: &'a Values<'_>,
        request: &'a QuotaRequest<'_>,
    ) -> BoxFuture<'a, Result<QuotaResult, AdapterError>> {
        Box::pin(async move {
            let Payload::Quota { dimensions } = &instance.payload else {
                return Err(AdapterError::unsupported());
            };
            let quota = self
                .quotas
                .get(instance.name)
                .ok_or_else(|| AdapterError::new(format!("unknown quota: {}", instance.name)))?;
            let counted = self.count(quota, quota.limit(dimensions), request);
            let problem = match tokio::time::timeout(DEADLINE, counted).await {
                Ok(Ok((granted, valid))) => {
                    let code = if granted > 0 || request.amount <= 0 {
                        status(Code::Ok, "")
                    } else {
                        status(Code::ResourceExhausted, "the quota is exhausted")
                    };
                    return Ok(QuotaResult {
                        granted,
                        valid_duration: Duration::from_millis(valid),
                        status: code,
                    });
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            if let Some(times) = self.away.times() {
                tracing::warn!(target: "adapters", problem, times, quota = instance.name, "the quotas' server is away");
            }
            let code = match self.fail_policy {
                FailPolicy::FailOpen => Code::Unavailable,
                FailPolicy::FailClose => Code::ResourceExhausted,
            };
            Ok(QuotaResult {
                granted: 0,
                valid_duration: AWAY_VALID,
                status: status(code, format!("the quotas' server is away: {problem}")),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lang::Val;
    use serde_json::json;

    #[test]
    fn an_override_has_a_counter_of_its_own() {
        let json = json!({"quotas": [{"name": "q.instance.ns", "maxAmount": 5, "validDuration": "1s",
            "overrides": [{"dimensions": {"source": "a"}, "maxAmount": "9"}]}]});
        let params: Params = params::read(&json).unwrap();
        let quota = &params.quotas[0];
        let of = |name: &'static str| quota.limit(&vec![("source", Val::String(name.into()))]);
        assert_eq!(of("b"), (5, "q.instance.ns".to_owned()));
        let (max, key) = of("a");
        assert_eq!(max, 9);
        assert!(key.starts_with("q.instance.ns-"), "{key}");
    }

    #[test]
    fn parameters_are_checked() {
        let quota = |fields: Json| json!({"quotas": [fields]});
        for bad in [
            json!({"redisServerUrl": "nonsense://x"}),
            quota(json!({"name": "q", "maxAmount": 0, "validDuration": "1s"})),
            quota(json!({"name": "q", "maxAmount": 1})),
            quota(json!({"name": "q", "maxAmount": 1, "validDuration": "1s",
                "rateLimitAlgorithm": "ROLLING_WINDOW", "bucketDuration": "1s"})),
            quota(
                json!({"name": "q", "maxAmount": 1, "validDuration": "1s", "overrides": [{"maxAmount": 1}]}),
            ),
        ] {
            assert!(configure(&bad).is_err(), "{bad}");
        }
        configure(&json!({"redis_server_url": "10.0.0.1:6379", "connectionPoolSize": 10})).unwrap();
    }
}
