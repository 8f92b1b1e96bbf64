//! The HTTP connection manager as a network filter: the terminal filter of HTTP chains.

use std::sync::Arc;

use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use crate::http::codec;
use crate::http::config::ConnectionManager;
use crate::http::stream::DownstreamConnection;
use crate::invalid::Invalid;
use crate::listener::Connection;

use super::{FactoryContext, Filter, TerminalFilter};

struct HttpFilterChain(Arc<ConnectionManager>);

/// Checks the configuration.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let config: HttpConnectionManager = proto::any::unpack(any)?;
    let manager = ConnectionManager::try_new(&config, context)?;
    Ok(Filter::Terminal(Arc::new(HttpFilterChain(Arc::new(
        manager,
    )))))
}

impl TerminalFilter for HttpFilterChain {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        async move {
            let Connection {
                mut stream,
                info,
                worker,
                drain,
                watchers,
            } = connection;
            let stats = self.0.stats.clone();
            let is_tls = info.tls.is_some();
            stats.downstream_cx_total.inc();
            stats.downstream_cx_active.inc();
            if is_tls {
                stats.downstream_cx_ssl_total.inc();
                stats.downstream_cx_ssl_active.inc();
            }
            stream.add_up_in(stats.clone());
            let meter = info.meter.clone();
            let start = tokio::time::Instant::now();
            let downstream = DownstreamConnection::new(self.0.clone(), info, worker);
            codec::serve(stream, downstream, drain).await;
            drop(watchers);
            stats.downstream_cx_active.dec();
            if is_tls {
                stats.downstream_cx_ssl_active.dec();
            }
            stats.downstream_cx_destroy.inc();
            if meter.is_over() {
                stats.downstream_cx_destroy_remote.inc();
            } else {
                stats.downstream_cx_destroy_local.inc();
            }
            stats
                .downstream_cx_length_ms
                .record(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        .boxed_local()
    }
}
