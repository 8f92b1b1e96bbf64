//! Local rate limit: every new connection takes a token; without one it is closed at once. Tokens come back steadily, as in
//! Envoy since it does without timers for it.

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{
    invalid::{At as _, Invalid},
    listener::Connection,
    runtime::RuntimeFlag,
    stat_group,
    wire::duration,
};
use futures::future::{FutureExt as _, LocalBoxFuture};
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit as Wire;
use proto::envoy::r#type::v3::TokenBucket as WireBucket;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Envoy refuses anything quicker.
const LEAST_INTERVAL: Duration = Duration::from_millis(50);

stat_group! {
    /// `local_rate_limit.<stat_prefix>.…`
    pub(crate) struct LocalRateLimitStats { rate_limited: Counter }
}

struct LocalRateLimit {
    bucket: Arc<TokenBucket>,
    enabled: RuntimeFlag,
    stats: Arc<LocalRateLimitStats>,
}

/// Tokens, refilled steadily; shared by the workers.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    most: f64,
    per_second: f64,
    state: Mutex<(f64, Instant)>,
}

impl TryFrom<&WireBucket> for TokenBucket {
    type Error = Invalid;

    fn try_from(wire: &WireBucket) -> Result<Self, Invalid> {
        if wire.max_tokens == 0 {
            return Err(Invalid::new("it must not be zero").at("max_tokens"));
        }
        let interval = wire.fill_interval.as_ref();
        let interval = interval.ok_or_else(|| Invalid::new("it is needed").at("fill_interval"))?;
        let interval = duration(interval).at("fill_interval")?;
        if interval < LEAST_INTERVAL {
            return Err(
                Invalid::new("local rate limit token bucket fill timer must be >= 50ms")
                    .at("fill_interval"),
            );
        }
        let tokens = wire.tokens_per_fill.unwrap_or(1);
        if tokens == 0 {
            return Err(Invalid::new("it must not be zero").at("tokens_per_fill"));
        }
        let most = f64::from(wire.max_tokens);
        Ok(Self {
            most,
            per_second: f64::from(tokens) / interval.as_secs_f64(),
            state: Mutex::new((most, Instant::now())),
        })
    }
}

impl TokenBucket {
    /// Takes a token, if there is one.
    pub(crate) fn take(&self) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        let grown = now.duration_since(state.1).as_secs_f64() * self.per_second;
        *state = ((state.0 + grown).min(self.most), now);
        let is_there = state.0 >= 1.0;
        if is_there {
            state.0 -= 1.0;
        }
        is_there
    }
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    if wire.stat_prefix.is_empty() {
        return Err(Invalid::new("it is needed").at("stat_prefix"));
    }
    let bucket = wire.token_bucket.as_ref();
    let bucket = bucket.ok_or_else(|| Invalid::new("it is needed").at("token_bucket"))?;
    let checked = TokenBucket::try_from(bucket).at("token_bucket")?;
    let bucket = if wire.share_key.is_empty() {
        Arc::new(checked)
    } else {
        let key = format!("{} {bucket:?}", wire.share_key);
        context.server.shared_buckets.get(key, checked)
    };
    Ok(Filter::Passing(Arc::new(LocalRateLimit {
        bucket,
        enabled: RuntimeFlag::or_on(wire.runtime_enabled.as_ref()),
        stats: context
            .stats
            .scope("local_rate_limit")
            .tagged(
                "",
                "envoy.local_network_ratelimit_prefix",
                &wire.stat_prefix,
            )
            .group(),
    })))
}

/// Buckets that several filters share by name.
#[derive(Debug, Default)]
pub(crate) struct SharedBuckets(
    Mutex<std::collections::HashMap<String, std::sync::Weak<TokenBucket>>>,
);

impl SharedBuckets {
    /// The bucket under `key`; `new` if nobody has it.
    fn get(&self, key: String, new: TokenBucket) -> Arc<TokenBucket> {
        let mut buckets = self.0.lock();
        buckets.retain(|_, bucket| bucket.strong_count() > 0);
        if let Some(living) = buckets.get(&key).and_then(std::sync::Weak::upgrade) {
            return living;
        }
        let bucket = Arc::new(new);
        buckets.insert(key, Arc::downgrade(&bucket));
        bucket
    }
}

impl NetworkFilter for LocalRateLimit {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        let verdict = if !self.enabled.now() || self.bucket.take() {
            Verdict::Continue
        } else {
            self.stats.rate_limited.inc();
            connection
                .info
                .meter
                .because("local_ratelimit_close_over_limit");
            Verdict::Close
        };
        std::future::ready(verdict).boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokens_run_out_and_come_back_steadily() {
        let bucket = TokenBucket::try_from(&WireBucket {
            max_tokens: 2,
            tokens_per_fill: Some(2),
            fill_interval: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
        })
        .unwrap();
        assert_eq!(
            [bucket.take(), bucket.take(), bucket.take()],
            [true, true, false]
        );
        tokio::time::advance(Duration::from_millis(510)).await;
        assert_eq!([bucket.take(), bucket.take()], [true, false]);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(
            [bucket.take(), bucket.take(), bucket.take()],
            [true, true, false]
        );
    }
}
