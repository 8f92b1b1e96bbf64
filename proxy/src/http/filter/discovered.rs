//! A filter whose configuration comes by itself (ECDS): what is in force is built into every stream that begins.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use prost_types::Any;
use proto::envoy::config::core::v3::ExtensionConfigSource;

use crate::config::ExtensionSlot;
use crate::http::headers::RequestHeaders;
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::network::FactoryContext;
use crate::server::ServerContext;
use crate::stats::Scope;
use crate::stream_info::ResponseFlag;

use super::{FilterContext, FilterFactory, FilterStatus, HttpFilter, kind_of, router};

/// A filter with its place in a chain, waiting for or following its configuration.
pub(crate) struct Discovered {
    name: Box<str>,
    scope: Scope,
    server: Arc<ServerContext>,
    messages: Vec<Box<str>>,
    default: Option<Built>,
    current: ArcSwapOption<Built>,
    /// Kept, so that it is asked for as long as somebody uses it.
    _slot: Arc<ExtensionSlot>,
}

/// A filter made from a configuration.
#[derive(Clone)]
pub(crate) struct Built(Arc<dyn FilterFactory>);

/// Stands where there is no configuration: without it nothing may pass.
struct Missing;

impl Discovered {
    /// Subscribes to the configuration.
    pub(super) fn try_new(
        name: &str,
        discovery: &ExtensionConfigSource,
        scope: &Scope,
        context: &FactoryContext<'_>,
    ) -> Result<Arc<Self>, Invalid> {
        if discovery.type_urls.is_empty() {
            return Err(Invalid::new("at least one is needed").at("type_urls"));
        }
        let wire = discovery
            .config_source
            .as_ref()
            .ok_or_else(|| Invalid::new("it is needed").at("config_source"))?;
        let slot = context
            .extensions
            .subscribe(wire, name)
            .at("config_source")?;
        let mut discovered = Discovered {
            name: name.into(),
            scope: scope.clone(),
            server: context.server.clone(),
            messages: discovery
                .type_urls
                .iter()
                .map(|url| proto::type_url::message_name(url).into())
                .collect(),
            default: None,
            current: ArcSwapOption::empty(),
            _slot: slot.clone(),
        };
        if let Some(any) = &discovery.default_config {
            discovered.default = Some(discovered.build(any).at("default_config")?);
        }
        let waits =
            !(discovery.apply_default_config_without_warming && discovered.default.is_some());
        let discovered = Arc::new(discovered);
        discovered.put(None);
        slot.add(&discovered)?;
        if waits {
            context.used.extensions.borrow_mut().push(slot);
        }
        Ok(discovered)
    }

    /// The canonical name of the filter that it will be, as far as that is known.
    pub(super) fn canonical(&self) -> &'static str {
        let first = self.messages.first();
        let kind = first.and_then(|message| kind_of(Some(message), ""));
        kind.map_or("", |kind| kind.name)
    }

    /// Makes the filter from a configuration, which must be of one of the types that were named.
    pub(crate) fn build(&self, any: &Any) -> Result<Built, Invalid> {
        let message = proto::type_url::message_name(&any.type_url);
        if !self.messages.iter().any(|known| known.as_ref() == message) {
            return Err(Invalid::new(format!(
                "'{}' has the type {message}, which its filter does not allow",
                self.name
            )));
        }
        if message == router::MESSAGE {
            return Err(Invalid::unsupported("the router by discovery"));
        }
        let kind = kind_of(Some(message), "")
            .ok_or_else(|| Invalid::unsupported(&format!("filter '{}' ({message})", self.name)))?;
        let context = FilterContext {
            name: &self.name,
            scope: &self.scope,
            server: &self.server,
        };
        (kind.build)(any, &context).map(Built)
    }

    /// Puts a filter in force for the streams that begin from now on; without one the default.
    pub(crate) fn put(&self, built: Option<Built>) {
        let built = built.or_else(|| self.default.clone());
        self.current.store(built.map(Arc::new));
    }
}

impl FilterFactory for Discovered {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        match &*self.current.load() {
            Some(built) => built.0.create(),
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
