//! A filter whose configuration comes by itself (ECDS): what is in force is built into every stream that begins.

use std::sync::Arc;

use http::StatusCode;
use prost_types::Any;
use proto::envoy::config::core::v3::ExtensionConfigSource;

use crate::config;
use crate::http::headers::RequestHeaders;
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::Invalid;
use crate::network::FactoryContext;
use crate::server::ServerContext;
use crate::stats::Scope;
use crate::stream_info::ResponseFlag;

use super::{FilterContext, FilterFactory, FilterStatus, HttpFilter, kind_of, router};

/// A filter with its place in a chain, waiting for or following its configuration.
type Discovered = config::Discovered<Arc<dyn FilterFactory>>;

/// Stands where there is no configuration: without it nothing may pass.
struct Missing;

/// Subscribes to the configuration of the filter called `name`.
pub(super) fn subscribe(
    name: &str,
    discovery: &ExtensionConfigSource,
    scope: &Scope,
    context: &FactoryContext<'_>,
) -> Result<Arc<Discovered>, Invalid> {
    let (own, scope, server) = (name.to_owned(), scope.clone(), context.server.clone());
    let build = move |any: &Any| build(&own, any, &scope, &server);
    Discovered::try_new(name, discovery, context.extensions, context.used, build)
}

/// The canonical name of the filter that it will be, as far as that is known.
pub(super) fn canonical(discovered: &Discovered) -> &'static str {
    let message = discovered.message();
    let kind = message.and_then(|message| kind_of(Some(message), ""));
    kind.map_or("", |kind| kind.name)
}

fn build(
    name: &str,
    any: &Any,
    scope: &Scope,
    server: &Arc<ServerContext>,
) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let message = proto::type_url::message_name(&any.type_url);
    if message == router::MESSAGE {
        return Err(Invalid::unsupported("the router by discovery"));
    }
    let kind = kind_of(Some(message), "")
        .ok_or_else(|| Invalid::unsupported(&format!("filter '{name}' ({message})")))?;
    let context = FilterContext {
        name,
        scope,
        server,
    };
    (kind.build)(any, &context)
}

impl FilterFactory for Discovered {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        match self.load() {
            Some(built) => built.create(),
            None => Some(Box::new(Missing)),
        }
    }
}

impl HttpFilter for Missing {
    fn decode_headers(&mut self, _: &mut RequestHeaders, _: &mut Stream) -> FilterStatus {
        let reply = LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "", "");
        FilterStatus::reply(reply.flag(ResponseFlag::NoFilterConfigFound))
    }
}
