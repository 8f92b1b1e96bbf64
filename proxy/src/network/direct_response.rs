//! Direct response: says one thing and closes.

use super::{FactoryContext, Filter, TerminalFilter};
use crate::{
    invalid::{At as _, Invalid},
    listener::Connection,
    wire::data_source,
};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use proto::envoy::extensions::filters::network::direct_response::v3::Config;
use std::{sync::Arc, time::Duration};
use tokio::io::AsyncWriteExt as _;

/// Patience with a client that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

struct DirectResponse(Vec<u8>);

/// Builds the filter.
pub(super) fn build(any: &Any, _: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Config = proto::any::unpack(any)?;
    let response = wire
        .response
        .as_ref()
        .map(data_source)
        .transpose()
        .at("response")?
        .unwrap_or_default();
    Ok(Filter::Terminal(Arc::new(DirectResponse(response))))
}

impl TerminalFilter for DirectResponse {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        async move {
            // All of it, or who watches for its end would see that at once.
            let mut connection = connection;
            let answer = async {
                connection.stream.write_all(&self.0).await?;
                connection.stream.shutdown().await
            };
            // A client that is gone or does not read gets nothing more.
            let _ = tokio::time::timeout(WRITE_TIMEOUT, answer).await;
        }
        .boxed_local()
    }
}
