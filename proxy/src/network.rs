//! Network filters: what happens to a downstream connection after its transport is up.
//!
//! A chain is any number of passing filters and one terminal filter at its end. To add one: a file with a
//! `build(&Any, &FactoryContext)` and a row in [`FACTORIES`].

mod connection_limit;
mod direct_response;
pub(crate) mod discovered;
mod echo;
mod ext_authz;
mod frames;
mod http_connection_manager;
mod local_ratelimit;
mod mixer;
mod mongo_proxy;
mod mysql_proxy;
mod rbac;
mod redis_proxy;
mod set_filter_state;
mod sni_cluster;
mod sni_dynamic_forward_proxy;
mod tcp_proxy;

pub(crate) use local_ratelimit::SharedBuckets;
pub(crate) use redis_proxy::RedisClients;
pub(crate) use tcp_proxy::{CopySpace, Tunnels};

use crate::{
    access_log::{AccessLogs, FormatContext, LogType},
    config::{ExtensionSlots, RouteSlot, RouteSlots, UsedSlots},
    invalid::Invalid,
    listener::{Connection, Direction},
    server::ServerContext,
    stats::Scope,
    stream_info::StreamInfo,
};
use futures::future::LocalBoxFuture;
use prost_types::Any;
use proto::envoy::{
    config::route::v3::RouteConfiguration,
    extensions::filters::network::http_connection_manager::v3::Rds,
};
use std::sync::Arc;

/// A checked filter configuration, shared by every connection of its chain.
#[derive(Clone)]
pub(crate) enum Filter {
    /// Looks at the connection and lets it pass, or not.
    Passing(Arc<dyn NetworkFilter>),
    /// Takes the connection over; must be the last of a chain.
    Terminal(Arc<dyn TerminalFilter>),
}

/// What a passing filter decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// On to the next filter.
    Continue,
    /// The connection is closed.
    Close,
}

/// A filter that looks at a connection before the terminal filter has it.
pub(crate) trait NetworkFilter: Send + Sync {
    /// Asked once, when the transport is up. It may leave metadata in `connection.info` and watchers in `connection`.
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict>;

    /// Whether there is a configuration; where it comes by itself there may be none yet.
    fn is_configured(&self) -> bool {
        true
    }
}

/// A filter that serves a connection to its end.
pub(crate) trait TerminalFilter: Send + Sync {
    /// Serves `connection`; it is closed when the future ends.
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()>;

    /// Whether there is a configuration; where it comes by itself there may be none yet.
    fn is_configured(&self) -> bool {
        true
    }
}

/// What a factory may use.
pub(crate) struct FactoryContext<'a> {
    /// The process's shared parts.
    pub(crate) server: &'a Arc<ServerContext>,
    /// Route configurations by name (RDS).
    pub(crate) routes: &'a Arc<RouteSlots>,
    /// Extensions by name (ECDS).
    pub(crate) extensions: &'a Arc<ExtensionSlots>,
    /// Filled with the slots that are used, for the listener to wait for.
    pub(crate) used: &'a UsedSlots,
    /// The statistics' root for filters (`http.<stat_prefix>.`, `tcp.<stat_prefix>.`).
    pub(crate) stats: &'a Scope,
    /// The listener's own statistics.
    pub(crate) listener: &'a Scope,
    /// Which way the listener's connections go.
    pub(crate) direction: Direction,
}

impl FactoryContext<'_> {
    /// The slot of a route configuration, subscribed to from now on.
    pub(crate) fn rds(&self, rds: &Rds) -> Result<Arc<RouteSlot>, Invalid> {
        let slot = self.routes.subscribe(rds)?;
        self.used.routes.borrow_mut().push(slot.clone());
        Ok(slot)
    }

    /// A slot of its own for a route configuration that discovers virtual hosts.
    pub(crate) fn discovering(
        &self,
        routes: &RouteConfiguration,
    ) -> Result<Arc<RouteSlot>, Invalid> {
        let slot = self.routes.with(routes.clone(), &self.server.demand)?;
        self.used.routes.borrow_mut().push(slot.clone());
        Ok(slot)
    }
}

/// Builds a filter from its message.
pub(crate) type Factory = fn(&Any, &FactoryContext<'_>) -> Result<Filter, Invalid>;

/// Every network filter: Envoy's name, its message, its factory.
pub(crate) const FACTORIES: &[(&str, &str, Factory)] = &[
    (
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        http_connection_manager::build,
    ),
    (
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        tcp_proxy::build,
    ),
    (
        "envoy.filters.network.rbac",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        rbac::build,
    ),
    (
        "envoy.filters.network.connection_limit",
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
        connection_limit::build,
    ),
    (
        "envoy.filters.network.local_ratelimit",
        "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        local_ratelimit::build,
    ),
    (
        "envoy.filters.network.ext_authz",
        "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
        ext_authz::build,
    ),
    (
        "envoy.filters.network.mysql_proxy",
        "envoy.extensions.filters.network.mysql_proxy.v3.MySQLProxy",
        mysql_proxy::build,
    ),
    (
        "envoy.filters.network.redis_proxy",
        "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
        redis_proxy::build,
    ),
    (
        "envoy.filters.network.mongo_proxy",
        "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy",
        mongo_proxy::build,
    ),
    (
        "envoy.filters.network.sni_cluster",
        "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
        sni_cluster::build,
    ),
    (
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        set_filter_state::build,
    ),
    (
        "envoy.filters.network.sni_dynamic_forward_proxy",
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
        sni_dynamic_forward_proxy::build,
    ),
    (
        "mixer",
        "istio.mixer.v1.config.client.TcpClientConfig",
        mixer::build,
    ),
    (
        "envoy.filters.network.direct_response",
        "envoy.extensions.filters.network.direct_response.v3.Config",
        direct_response::build,
    ),
    (
        "envoy.filters.network.echo",
        "envoy.extensions.filters.network.echo.v3.Echo",
        echo::build,
    ),
];

/// Builds the filter called `name` from its message; Envoy looks at the type first, then at the name.
pub(crate) fn build(
    name: &str,
    config: Option<&Any>,
    context: &FactoryContext<'_>,
) -> Result<Filter, Invalid> {
    let empty = Any::default();
    let config = config.unwrap_or(&empty);
    let message = proto::type_url::message_name(&config.type_url);
    let row = FACTORIES
        .iter()
        .find(|(_, known, _)| *known == message)
        .or_else(|| {
            FACTORIES
                .iter()
                .find(|(known, _, _)| config.type_url.is_empty() && *known == name)
        });
    let Some((_, _, factory)) = row else {
        return Err(Invalid::new(format!(
            "no network filter for {name:?} ({message:?})"
        )));
    };
    factory(config, context)
}

/// Writes the line of a connection that is over.
pub(crate) fn log_connection(logs: &AccessLogs, info: &StreamInfo, log_type: LogType) {
    logs.log(&FormatContext {
        log_type,
        ..FormatContext::of(info)
    });
}
