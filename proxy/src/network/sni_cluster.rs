//! SNI cluster: the server name that the client asks for is the cluster that `tcp_proxy` uses.

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{invalid::Invalid, listener::Connection};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use std::{rc::Rc, sync::Arc};

struct SniCluster;

/// Builds the filter.
pub(super) fn build(_: &Any, _: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    Ok(Filter::Passing(Arc::new(SniCluster)))
}

impl NetworkFilter for SniCluster {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        if let Some(name) = connection.info.server_name.clone() {
            Rc::make_mut(&mut connection.info).cluster_override = Some(name);
        }
        std::future::ready(Verdict::Continue).boxed_local()
    }
}
