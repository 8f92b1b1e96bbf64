//! Set filter state: values for other filters and for logs, made of what is known about a connection.

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{filter_state::Setters, invalid::Invalid, listener::Connection};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use proto::envoy::extensions::filters::network::set_filter_state::v3::Config as Wire;
use std::{rc::Rc, sync::Arc};

struct SetFilterState {
    on_connection: Setters,
    on_handshake: Setters,
}

/// Builds the filter.
pub(super) fn build(any: &Any, _: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    if !wire.on_downstream_data.is_empty() {
        return Err(Invalid::new("not supported").at("on_downstream_data"));
    }
    Ok(Filter::Passing(Arc::new(SetFilterState {
        on_connection: Setters::new("on_new_connection", &wire.on_new_connection)?,
        on_handshake: Setters::new(
            "on_downstream_tls_handshake",
            &wire.on_downstream_tls_handshake,
        )?,
    })))
}

impl NetworkFilter for SetFilterState {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        let info = Rc::make_mut(&mut connection.info);
        // Envoy's filters see a connection before its handshake.
        self.on_connection.set_on_connection(info, false);
        self.on_handshake.set_on_connection(info, true);
        std::future::ready(Verdict::Continue).boxed_local()
    }
}
