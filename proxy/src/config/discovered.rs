//! A filter whose configuration comes by itself (ECDS), in the place where it is used.

use super::{ExtensionSlot, ExtensionSlots, UsedSlots};
use crate::invalid::{At as _, Invalid};
use arc_swap::ArcSwapOption;
use prost_types::Any;
use proto::envoy::config::core::v3::ExtensionConfigSource;
use std::sync::Arc;

/// A filter that waits for or follows its configuration.
pub(crate) struct Discovered<T> {
    name: Box<str>,
    messages: Vec<Box<str>>,
    build: Box<Build<T>>,
    default: Option<Arc<T>>,
    current: ArcSwapOption<T>,
    /// Kept, so that it is asked for as long as somebody uses it.
    _slot: Arc<ExtensionSlot>,
}

/// Makes the filter from a configuration.
type Build<T> = dyn Fn(&Any) -> Result<T, Invalid> + Send + Sync;

/// A place where an extension is used.
pub(crate) trait ExtensionUser: Send + Sync {
    /// Makes what a configuration says; what it returns puts that in force.
    fn prepare<'a>(&'a self, config: &Any) -> Result<Box<dyn FnOnce() + 'a>, Invalid>;

    /// There is no configuration (any more): the default is in force, if there is one.
    fn reset(&self);
}

impl<T: Send + Sync + 'static> Discovered<T> {
    /// Subscribes to the configuration called `name`.
    pub(crate) fn try_new(
        name: &str,
        discovery: &ExtensionConfigSource,
        extensions: &ExtensionSlots,
        used: &UsedSlots,
        build: impl Fn(&Any) -> Result<T, Invalid> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Invalid> {
        if discovery.type_urls.is_empty() {
            return Err(Invalid::new("at least one is needed").at("type_urls"));
        }
        let wire = discovery
            .config_source
            .as_ref()
            .ok_or_else(|| Invalid::new("it is needed").at("config_source"))?;
        let slot = extensions.subscribe(wire, name).at("config_source")?;
        let mut discovered = Discovered {
            name: name.into(),
            messages: discovery
                .type_urls
                .iter()
                .map(|url| proto::type_url::message_name(url).into())
                .collect(),
            build: Box::new(build),
            default: None,
            current: ArcSwapOption::empty(),
            _slot: slot.clone(),
        };
        if let Some(any) = &discovery.default_config {
            let default = discovered.checked(any).at("default_config")?;
            discovered.default = Some(Arc::new(default));
        }
        let waits =
            !(discovery.apply_default_config_without_warming && discovered.default.is_some());
        let discovered = Arc::new(discovered);
        discovered.reset();
        slot.add(&discovered)?;
        if waits {
            used.extensions.borrow_mut().push(slot);
        }
        Ok(discovered)
    }

    /// What is in force; `None` without a configuration and a default.
    pub(crate) fn load(&self) -> Option<Arc<T>> {
        self.current.load_full()
    }

    /// The first of the messages that its configuration may be.
    pub(crate) fn message(&self) -> Option<&str> {
        self.messages.first().map(AsRef::as_ref)
    }

    /// Makes the filter from a configuration, which must be of one of the types that were named.
    fn checked(&self, any: &Any) -> Result<T, Invalid> {
        let message = proto::type_url::message_name(&any.type_url);
        if !self.messages.iter().any(|known| known.as_ref() == message) {
            return Err(Invalid::new(format!(
                "'{}' has the type {message}, which its filter does not allow",
                self.name
            )));
        }
        (self.build)(any)
    }
}

impl<T: Send + Sync + 'static> ExtensionUser for Discovered<T> {
    fn prepare<'a>(&'a self, config: &Any) -> Result<Box<dyn FnOnce() + 'a>, Invalid> {
        let built = Arc::new(self.checked(config)?);
        Ok(Box::new(move || self.current.store(Some(built))))
    }

    fn reset(&self) {
        self.current.store(self.default.clone());
    }
}
