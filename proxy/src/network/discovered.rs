//! A network filter whose configuration comes by itself (ECDS): what is in force counts for connections that begin. As in Envoy a
//! connection is closed where there is none.

use super::{FactoryContext, Filter, NetworkFilter, TerminalFilter, Verdict};
use crate::{
    config::{Discovered, UsedSlots},
    invalid::Invalid,
    listener::Connection,
};
use futures::future::LocalBoxFuture;
use prost_types::Any;
use proto::envoy::config::core::v3::ExtensionConfigSource;
use std::sync::Arc;

/// One that lets connections pass.
struct Passing(Arc<Discovered<Arc<dyn NetworkFilter>>>);

/// The last of a chain.
struct Terminal(Arc<Discovered<Arc<dyn TerminalFilter>>>);

/// Subscribes to the configuration of the filter called `name`, the last of its chain or not.
pub(crate) fn subscribe(
    name: &str,
    discovery: &ExtensionConfigSource,
    is_last: bool,
    context: &FactoryContext<'_>,
) -> Result<Filter, Invalid> {
    let (extensions, used) = (context.extensions, context.used);
    if is_last {
        let build = builder(name, context, |filter| match filter {
            Filter::Terminal(filter) => Ok(filter),
            Filter::Passing(_) => Err(Invalid::new("the last filter must be a terminal one")),
        });
        let discovered = Discovered::try_new(name, discovery, extensions, used, build)?;
        return Ok(Filter::Terminal(Arc::new(Terminal(discovered))));
    }
    let build = builder(name, context, |filter| match filter {
        Filter::Passing(filter) => Ok(filter),
        Filter::Terminal(_) => Err(Invalid::new("a terminal filter must be the last")),
    });
    let discovered = Discovered::try_new(name, discovery, extensions, used, build)?;
    Ok(Filter::Passing(Arc::new(Passing(discovered))))
}

/// Builds the filter whenever its configuration comes, long after its listener was built.
fn builder<T>(
    name: &str,
    context: &FactoryContext<'_>,
    choose: impl Fn(Filter) -> Result<T, Invalid> + Send + Sync + 'static,
) -> impl Fn(&Any) -> Result<T, Invalid> + Send + Sync + 'static {
    let (name, server) = (name.to_owned(), context.server.clone());
    let (routes, extensions) = (context.routes.clone(), context.extensions.clone());
    let (stats, listener) = (context.stats.clone(), context.listener.clone());
    let direction = context.direction;
    move |any| {
        // Nobody waits for what it refers to in turn: the listener serves already.
        let used = UsedSlots::default();
        let context = FactoryContext {
            server: &server,
            routes: &routes,
            extensions: &extensions,
            used: &used,
            stats: &stats,
            listener: &listener,
            direction,
        };
        choose(super::build(&name, Some(any), &context)?)
    }
}

impl NetworkFilter for Passing {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        Box::pin(async {
            match self.0.load() {
                Some(filter) => filter.on_new_connection(connection).await,
                None => Verdict::Close,
            }
        })
    }

    fn is_configured(&self) -> bool {
        self.0.load().is_some()
    }
}

impl TerminalFilter for Terminal {
    fn serve(self: Arc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        match self.0.load() {
            Some(filter) => TerminalFilter::serve((*filter).clone(), connection),
            None => Box::pin(async {}),
        }
    }

    fn is_configured(&self) -> bool {
        self.0.load().is_some()
    }
}
