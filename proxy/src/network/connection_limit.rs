//! Connection limit: so many connections of this filter chain at once, over all workers; more are closed, after a delay if one is
//! configured.

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{
    invalid::Invalid, listener::Connection, runtime::RuntimeFlag, stat_group, wire::duration_or,
};
use futures::future::LocalBoxFuture;
use prost_types::Any;
use proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit as Wire;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

stat_group! {
    /// `connection_limit.<stat_prefix>.…`
    pub(crate) struct ConnectionLimitStats { active_connections: Gauge, limited_connections: Counter }
}

struct ConnectionLimit {
    most: u64,
    delay: Duration,
    enabled: RuntimeFlag,
    open: Arc<AtomicU64>,
    stats: Arc<ConnectionLimitStats>,
}

/// A connection within the limit.
struct Place(Arc<AtomicU64>, Arc<ConnectionLimitStats>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
        self.1.active_connections.dec();
    }
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    if wire.stat_prefix.is_empty() {
        return Err(Invalid::new("it is needed").at("stat_prefix"));
    }
    let most = wire.max_connections.unwrap_or(0);
    if most == 0 {
        return Err(Invalid::new("it must be at least 1").at("max_connections"));
    }
    Ok(Filter::Passing(Arc::new(ConnectionLimit {
        most,
        delay: duration_or(wire.delay.as_ref(), Duration::ZERO, "delay")?,
        enabled: RuntimeFlag::or_on(wire.runtime_enabled.as_ref()),
        open: Arc::default(),
        stats: context
            .stats
            .scope("connection_limit")
            .tagged("", "envoy.connection_limit_prefix", &wire.stat_prefix)
            .group(),
    })))
}

impl NetworkFilter for ConnectionLimit {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        Box::pin(async move {
            if !self.enabled.now() {
                return Verdict::Continue;
            }
            if self.open.fetch_add(1, Relaxed) >= self.most {
                self.open.fetch_sub(1, Relaxed);
                self.stats.limited_connections.inc();
                tokio::time::sleep(self.delay).await;
                connection.info.meter.because("over_connection_limit");
                return Verdict::Close;
            }
            self.stats.active_connections.inc();
            let place = Place(self.open.clone(), self.stats.clone());
            connection.watchers.push(Box::new(place));
            Verdict::Continue
        })
    }
}
