//! Configuration: where it comes from ([`mcp`], [`file`]) and what is there now ([`store`]).
//!
//! A source delivers [`Update`]s; the discovery task applies them to its [`store::ConfigStore`] and is told what that changed.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use proto_mesh::{Checked, Metadata};

pub mod file;
pub mod mcp;
pub mod store;

pub use store::{ConfigStore, Update};

/// A mesh resource that has been checked.
pub type Config<T> = Arc<Checked<T>>;

/// A resource that Galley made from the platform's objects. The rules for what users write are not for it: a headless service
/// has endpoints and is still not resolved, for one.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthetic<T> {
    /// Name, namespace, annotations, …
    pub meta: Metadata,
    /// The message.
    pub spec: T,
}

/// What stands in a collection.
pub trait Object: PartialEq {
    /// Its name and namespace.
    fn meta(&self) -> &Metadata;
}

impl<T: PartialEq> Object for Checked<T> {
    fn meta(&self) -> &Metadata {
        &self.meta
    }
}

impl<T: PartialEq> Object for Synthetic<T> {
    fn meta(&self) -> &Metadata {
        &self.meta
    }
}

/// Seconds since 1970 at which a resource was made; 0 if unknown.
#[must_use]
pub fn created(meta: &Metadata) -> i64 {
    let since_epoch = meta
        .creation_time
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_epoch.map_or(0, |duration| {
        i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
    })
}

/// Oldest first: where two resources want the same thing, the older has it.
pub fn by_age<'a, T: 'a>(configs: impl Iterator<Item = &'a Config<T>>) -> Vec<&'a Config<T>> {
    let mut sorted: Vec<_> = configs.collect();
    sorted.sort_by(|a, b| a.meta.age_key().cmp(&b.meta.age_key()));
    sorted
}
