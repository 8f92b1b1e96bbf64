//! Echo: sends back what it gets.

use super::{FactoryContext, Filter, TerminalFilter};
use crate::{invalid::Invalid, listener::Connection, transport::DownstreamStream};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Echo;

/// Builds the filter.
pub(super) fn build(_: &Any, _: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    Ok(Filter::Terminal(Arc::new(Echo)))
}

async fn echo(stream: &mut DownstreamStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        // A failed flush shows at the next write.
        let _ = stream.flush().await;
    }
}

impl TerminalFilter for Echo {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        async move {
            // All of it, or who watches for its end would see that at once.
            let mut connection = connection;
            let drain = connection.drain.clone();
            // Also while the client does not read.
            tokio::select! {
                () = echo(&mut connection.stream) => {}
                () = drain.expired() => {}
            }
            let _ = connection.stream.shutdown().await;
        }
        .boxed_local()
    }
}
