//! SNI dynamic forward proxy: the server name that the client asks for is the host that `tcp_proxy` connects to.
//!
//! Our caches of names belong to clusters, so the name is resolved when `tcp_proxy` knows the cluster. A connection without a
//! server name passes, as with Envoy, and finds no host.

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{
    invalid::{At as _, Invalid},
    listener::{Connection, DynamicHost},
    upstream::DnsCacheConfig,
};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::{
    FilterConfig, filter_config::PortSpecifier,
};
use std::{rc::Rc, sync::Arc};

/// QUIRK: the port unless the configuration says otherwise.
const HTTPS: u16 = 443;

struct SniDynamicForwardProxy {
    cache: Arc<str>,
    port: u16,
}

/// Builds the filter.
pub(super) fn build(any: &Any, _: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: FilterConfig = proto::any::unpack(any)?;
    if wire.save_upstream_address {
        return Err(Invalid::unsupported("save_upstream_address"));
    }
    let Some(cache) = &wire.dns_cache_config else {
        return Err(Invalid::new("it is needed").at("dns_cache_config"));
    };
    let port =
        match wire.port_specifier {
            Some(PortSpecifier::PortValue(port)) => u16::try_from(port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| Invalid::new("it is not in 1..=65535").at("port_value"))?,
            None => HTTPS,
        };
    Ok(Filter::Passing(Arc::new(SniDynamicForwardProxy {
        cache: DnsCacheConfig::try_from(cache)
            .at("dns_cache_config")?
            .name
            .into(),
        port,
    })))
}

impl NetworkFilter for SniDynamicForwardProxy {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        if let Some(name) = &connection.info.server_name {
            let host = DynamicHost {
                cache: self.cache.clone(),
                authority: format!("{name}:{}", self.port).into(),
            };
            Rc::make_mut(&mut connection.info).dynamic_host = Some(host);
        }
        std::future::ready(Verdict::Continue).boxed_local()
    }
}
