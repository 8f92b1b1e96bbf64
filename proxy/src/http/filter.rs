//! The HTTP filter seam: what a filter is, how a chain of them is configured, and the table of those that exist.
//!
//! Calls are plain, not async: a filter that has nothing to wait for costs no future. The filter value is the state of the
//! stream; its configuration is shared by all streams. To add a filter: a file below, and a row in [`FILTERS`].

pub(crate) mod buffer;
pub(crate) mod compression;
pub(crate) mod cors;
mod discovered;
pub(crate) mod dynamic_forward_proxy;
pub(crate) mod ext_authz;
pub(crate) mod fault;
pub(crate) mod grpc_stats;
pub(crate) mod grpc_web;
pub(crate) mod header_mutation;
pub(crate) mod header_to_metadata;
pub(crate) mod health_check;
pub(crate) mod jwt_authn;
pub(crate) mod local_ratelimit;
pub(crate) mod mixer;
pub(crate) mod on_demand;
mod per_route;
pub(crate) mod ratelimit;
pub(crate) mod rbac;
pub(crate) mod router;
pub(crate) mod set_filter_state;
pub(crate) mod set_metadata;

use std::any::Any as StdAny;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use prost_types::Any;
use proto::envoy::extensions::filters::network::http_connection_manager::v3 as wire;
use wire::http_filter::ConfigType;

use crate::invalid::{At as _, Invalid};
use crate::network::FactoryContext;
use crate::server::ServerContext;
use crate::stats::Scope;

use super::headers::{RequestHeaders, ResponseHeaders};
use super::local_reply::LocalReply;
use super::stream::Stream;

pub(crate) use per_route::{RouteConfig, RouteConfigs};

/// One filter of one stream. Requests pass the chain in order, responses in reverse.
pub(crate) trait HttpFilter {
    /// The request's head.
    fn decode_headers(
        &mut self,
        _headers: &mut RequestHeaders,
        _stream: &mut Stream,
    ) -> FilterStatus {
        FilterStatus::Continue
    }

    /// A piece of the request's body; only called when [`HttpFilter::sees_data`].
    fn decode_data(&mut self, data: Bytes, _stream: &mut Stream) -> Bytes {
        data
    }

    /// The end of a request's body. What is returned is sent as its last bytes, before trailers; only called when
    /// [`HttpFilter::sees_data`].
    fn decode_end(&mut self, _stream: &mut Stream) -> Bytes {
        Bytes::new()
    }

    /// The response's head. A local reply passes here too.
    fn encode_headers(&mut self, _headers: &mut ResponseHeaders, _stream: &mut Stream) {}

    /// A piece of the response's body; only called when [`HttpFilter::sees_data`].
    fn encode_data(&mut self, data: Bytes, _stream: &mut Stream) -> Bytes {
        data
    }

    /// The end of the response's body, with its trailers (empty without any). What is returned is sent as body before
    /// them; trailers that are left empty are not sent.
    fn encode_end(&mut self, _trailers: &mut HeaderMap, _stream: &mut Stream) -> Option<Bytes> {
        None
    }

    /// True when the filter looks at bodies or trailers.
    fn sees_data(&self) -> bool {
        false
    }

    /// The stream is over.
    fn on_log(&mut self, _end: &StreamEnd<'_>) {}
}

/// What a filter sees of a stream that is over.
pub(crate) struct StreamEnd<'a> {
    /// The stream.
    pub(crate) stream: &'a Stream,
    /// The request's head as it went on.
    pub(crate) request: &'a RequestHeaders,
    /// The response's head, if there was one.
    pub(crate) response: Option<&'a ResponseHeaders>,
    /// The response's trailers.
    pub(crate) trailers: Option<&'a HeaderMap>,
}

/// What a filter says.
pub(crate) enum FilterStatus {
    /// Go on.
    Continue,
    /// Answer with this.
    LocalReply(Box<LocalReply>),
    /// Wait, then do what comes out.
    Wait(Pin<Box<dyn Future<Output = Resume>>>),
    /// Wait for the request's body, then go on with it.
    Buffer(Box<Buffering>),
    /// Select the route anew, and begin once more with the filters that are on for it; where a filter has read of the body
    /// already, go on with those of now.
    Restart,
}

/// How a filter wants the request's body.
pub(crate) struct Buffering {
    /// No more than this.
    pub(crate) limit: usize,
    /// A longer body is cut for the filter instead of being refused.
    pub(crate) allows_partial: bool,
    /// What to do with it. The body goes on as it came.
    pub(crate) then: BodyContinuation,
}

/// A request's body that was waited for.
pub(crate) struct Buffered {
    /// The bytes.
    pub(crate) body: Bytes,
    /// The whole body, not only its beginning.
    pub(crate) is_whole: bool,
}

/// What a filter does with a body.
pub(crate) type BodyContinuation =
    Box<dyn FnOnce(Buffered, &mut RequestHeaders, &mut Stream) -> FilterStatus>;

/// What comes after waiting.
pub(crate) enum Resume {
    /// Go on with the next filter.
    Continue,
    /// Answer with this.
    LocalReply(Box<LocalReply>),
    /// Do something with the request, then what it says.
    Then(Continuation),
}

/// What a filter does after it has waited.
pub(crate) type Continuation = Box<dyn FnOnce(&mut RequestHeaders, &mut Stream) -> FilterStatus>;

/// A configured filter: makes the value of each stream.
pub(crate) trait FilterFactory: Send + Sync {
    /// The filter of a stream; `None` when it has nothing to do there.
    fn create(&self) -> Option<Box<dyn HttpFilter>>;
}

/// What a filter's configuration may use.
pub(crate) struct FilterContext<'a> {
    /// The filter's name in the configuration, under which routes configure it.
    pub(crate) name: &'a str,
    /// `http.<stat prefix>.`
    pub(crate) scope: &'a Scope,
    /// The process's shared parts.
    pub(crate) server: &'a Arc<ServerContext>,
}

/// A filter that exists.
pub(crate) struct FilterKind {
    /// The message of its configuration.
    pub(crate) message: &'static str,
    /// Its canonical name; the configuration of a route under this name is its own too.
    pub(crate) name: &'static str,
    /// Makes it from its configuration.
    pub(crate) build: BuildFilter,
    /// Messages of a route's configuration, with how each is checked.
    pub(crate) routes: &'static [(&'static str, CheckRoute)],
}

/// Makes a filter from its configuration.
pub(crate) type BuildFilter =
    fn(&Any, &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid>;

/// Checks a route's configuration of a filter.
pub(crate) type CheckRoute = fn(&Any) -> Result<RouteValue, Invalid>;

/// A route's configuration of a filter.
pub(crate) type RouteValue = Arc<dyn StdAny + Send + Sync>;

/// All filters, except the router, which ends every chain.
pub(crate) const FILTERS: &[FilterKind] = &[
    rbac::KIND,
    fault::KIND,
    cors::KIND,
    dynamic_forward_proxy::KIND,
    health_check::KIND,
    grpc_stats::KIND,
    grpc_web::KIND,
    jwt_authn::KIND,
    mixer::KIND,
    on_demand::KIND,
    buffer::KIND,
    compression::compressor::KIND,
    compression::decompressor::KIND,
    ratelimit::KIND,
    ext_authz::KIND,
    header_mutation::KIND,
    header_to_metadata::KIND,
    local_ratelimit::KIND,
    set_filter_state::KIND,
    set_metadata::KIND,
];

/// The filters of a connection manager; the router stands apart.
pub(crate) struct FilterChain {
    filters: Vec<ChainEntry>,
    /// The router's configuration.
    pub(crate) router: router::RouterConfig,
}

struct ChainEntry {
    name: Box<str>,
    canonical: &'static str,
    is_disabled: bool,
    factory: Arc<dyn FilterFactory>,
}

impl FilterStatus {
    /// Answers with `reply`.
    pub(crate) fn reply(reply: LocalReply) -> Self {
        FilterStatus::LocalReply(Box::new(reply))
    }

    /// Waits for `future`, then answers with `reply`, or goes on.
    pub(crate) fn wait(
        future: impl Future<Output = ()> + 'static,
        reply: Option<LocalReply>,
    ) -> Self {
        FilterStatus::Wait(Box::pin(async move {
            future.await;
            reply.map_or(Resume::Continue, |reply| {
                Resume::LocalReply(Box::new(reply))
            })
        }))
    }
}

impl FilterChain {
    /// Checks the filters of a connection manager.
    pub(crate) fn try_new(
        filters: &[wire::HttpFilter],
        scope: &Scope,
        context: &FactoryContext<'_>,
    ) -> Result<Self, Invalid> {
        let Some((last, others)) = filters.split_last() else {
            return Err(Invalid::new("at least the router filter is needed").at("http_filters"));
        };
        let chain = others.iter().enumerate().map(|(index, filter)| {
            ChainEntry::try_new(filter, scope, context).at(format_args!("http_filters[{index}]"))
        });
        let chain: Vec<Option<ChainEntry>> = chain.collect::<Result<_, _>>()?;
        let place = format!("http_filters[{}]", others.len());
        let router = typed_config(last)
            .and_then(|any| {
                let is_router = any.is_none_or(|any| {
                    proto::type_url::message_name(&any.type_url) == router::MESSAGE
                });
                if !is_router || any.is_none() && last.name != router::NAME {
                    return Err(Invalid::new(format!(
                        "'{}': the last filter must be the router",
                        last.name
                    )));
                }
                router::RouterConfig::try_new(any)
            })
            .at(place)?;
        Ok(FilterChain {
            filters: chain.into_iter().flatten().collect(),
            router,
        })
    }

    /// The filters of one stream.
    pub(crate) fn create(&self, stream: &Stream) -> Vec<Box<dyn HttpFilter>> {
        let route = stream.info.route.as_ref();
        let is_on = |entry: &ChainEntry| {
            let config = route.and_then(|route| {
                route
                    .filter_config(&entry.name)
                    .or_else(|| route.filter_config(entry.canonical))
            });
            match config {
                Some(RouteConfig::Disabled) => false,
                Some(RouteConfig::Enabled | RouteConfig::Value(_)) => true,
                None => !entry.is_disabled,
            }
        };
        self.filters
            .iter()
            .filter(|entry| is_on(entry))
            .filter_map(|entry| entry.factory.create())
            .collect()
    }
}

impl ChainEntry {
    fn try_new(
        filter: &wire::HttpFilter,
        scope: &Scope,
        context: &FactoryContext<'_>,
    ) -> Result<Option<Self>, Invalid> {
        if let Some(ConfigType::ConfigDiscovery(discovery)) = &filter.config_type {
            let discovered = discovered::subscribe(&filter.name, discovery, scope, context)
                .at("config_discovery")?;
            return Ok(Some(ChainEntry {
                name: filter.name.as_str().into(),
                canonical: discovered::canonical(&discovered),
                is_disabled: filter.disabled,
                factory: discovered,
            }));
        }
        let any = typed_config(filter)?;
        let message = any.map(|any| proto::type_url::message_name(&any.type_url));
        if message == Some(router::MESSAGE) {
            return Err(Invalid::new("the router must be the last filter"));
        }
        let Some(kind) = kind_of(message, &filter.name) else {
            if filter.is_optional {
                return Ok(None);
            }
            return Err(Invalid::unsupported(&format!(
                "filter '{}' ({})",
                filter.name,
                message.unwrap_or("no type")
            )));
        };
        let own = FilterContext {
            name: &filter.name,
            scope,
            server: context.server,
        };
        let empty = Any::default();
        Ok(Some(ChainEntry {
            name: filter.name.as_str().into(),
            canonical: kind.name,
            is_disabled: filter.disabled,
            factory: (kind.build)(any.unwrap_or(&empty), &own)
                .at(format_args!("'{}'", filter.name))?,
        }))
    }
}

/// The filter of a message; without one, of a canonical name.
fn kind_of(message: Option<&str>, name: &str) -> Option<&'static FilterKind> {
    FILTERS.iter().find(|kind| match message {
        Some(message) => kind.message == message,
        None => kind.name == name,
    })
}

fn typed_config(filter: &wire::HttpFilter) -> Result<Option<&Any>, Invalid> {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => Ok(Some(any)),
        Some(ConfigType::ConfigDiscovery(_)) => {
            Err(Invalid::unsupported("the router by discovery").at("config_discovery"))
        }
        None => Ok(None),
    }
}

/// Unpacks a filter's configuration; an absent one is the default.
pub(crate) fn unpack<T: prost::Message + prost::Name + Default>(any: &Any) -> Result<T, Invalid> {
    if any.type_url.is_empty() {
        return Ok(T::default());
    }
    Ok(proto::any::unpack(any)?)
}
