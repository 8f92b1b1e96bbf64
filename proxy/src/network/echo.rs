//! Echo: sends back what it gets.

use super::{FactoryContext, Filter, TerminalFilter};
use crate::{invalid::Invalid, listener::Connection};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Echo;

/// Builds the filter.
pub(super) fn build(_: &Any, _: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    Ok(Filter::Terminal(Arc::new(Echo)))
}

impl TerminalFilter for Echo {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        async move {
            // All of it, or who watches for its end would see that at once.
            let mut connection = connection;
            let mut buffer = vec![0; 16 << 10];
            loop {
                let count = tokio::select! {
                    count = connection.stream.read(&mut buffer) => count.unwrap_or(0),
                    () = connection.drain.expired() => 0,
                };
                if count == 0 || connection.stream.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
                // A failed flush shows at the next write.
                let _ = connection.stream.flush().await;
            }
            let _ = connection.stream.shutdown().await;
        }
        .boxed_local()
    }
}
