//! The end of connections: how a drain spreads over its time, and what happens at shutdown.

use crate::{config::ConfigStore, server::ServerContext};
use std::{sync::Arc, time::Duration};

/// What is left of the process's own drain for connections, so that it ends before the process's deadline.
const MARGIN: Duration = Duration::from_millis(300);

/// Waits for the shutdown to begin, then drains every listener; ends when no connection is left or time is up.
pub(crate) async fn run_shutdown(server: Arc<ServerContext>, store: Arc<ConfigStore>) {
    server.drain.signaled().await;
    let left = server
        .drain
        .remaining()
        .unwrap_or_default()
        .saturating_sub(MARGIN);
    tracing::info!(target: "main", seconds = left.as_secs_f32(), "draining all listeners");
    store.listeners.stop(false, left);
    let idle = async {
        while store
            .listeners
            .map()
            .by_name
            .values()
            .any(|listener| listener.stats.downstream_cx_active.value() > 0)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Connections that are still there are cut when their workers end.
    let _ = tokio::time::timeout(left, idle).await;
}
