//! Configuration: where it comes from ([`mcp`], [`mod@file`]) and what is there now ([`store`]).
//!
//! A source delivers [`Update`]s; the discovery task applies them to its [`store::ConfigStore`] and is told what that changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prost::{Message, Name};
use proto_mesh::kind::Resource;
use proto_mesh::{Checked, Metadata};

mod by_name;
pub mod file;
mod kinds;
pub mod mcp;
pub mod store;

pub use by_name::ByName;
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

/// Why a resource was refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct Refused {
    /// Path of the first wrong field from the root of the message.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

/// What stands in a collection.
pub trait Object: PartialEq + Sized {
    /// The message.
    type Message: Message + Name + Default;

    /// Takes a resource from outside in.
    ///
    /// # Errors
    /// When it breaks the rules of its kind.
    fn accept(meta: Metadata, spec: Self::Message) -> Result<Self, Refused>;

    /// Its name and namespace.
    fn meta(&self) -> &Metadata;

    /// The message.
    fn spec(&self) -> &Self::Message;
}

impl<T: Resource + PartialEq> Object for Checked<T> {
    type Message = T;

    fn accept(meta: Metadata, spec: T) -> Result<Self, Refused> {
        match Checked::new(meta, spec) {
            Ok((checked, _)) => Ok(checked),
            Err(invalid) => {
                let first = invalid.findings.errors().next();
                Err(Refused {
                    path: first
                        .map(|finding| finding.path.clone())
                        .unwrap_or_default(),
                    problem: invalid.to_string(),
                })
            }
        }
    }

    fn meta(&self) -> &Metadata {
        &self.meta
    }

    fn spec(&self) -> &T {
        &self.spec
    }
}

impl<T: Message + Name + Default + PartialEq> Object for Synthetic<T> {
    type Message = T;

    fn accept(meta: Metadata, spec: T) -> Result<Self, Refused> {
        Ok(Synthetic { meta, spec })
    }

    fn meta(&self) -> &Metadata {
        &self.meta
    }

    fn spec(&self) -> &T {
        &self.spec
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
    let configs: Vec<_> = configs.collect();
    let ages = configs.iter().map(|config| config.meta.age_key());
    // What is sorted has the same type for every kind: a sort is a lot of code.
    let mut order: Vec<_> = ages.zip(0_usize..).collect();
    order.sort_unstable();
    order.iter().map(|(_, place)| configs[*place]).collect()
}

/// By namespace, each oldest first.
pub fn by_namespace<'a, T: 'a>(
    configs: impl Iterator<Item = &'a Config<T>>,
) -> HashMap<String, Vec<Config<T>>> {
    let mut found: HashMap<String, Vec<Config<T>>> = HashMap::new();
    for config in by_age(configs) {
        let namespace = config.meta.namespace.clone();
        found.entry(namespace).or_default().push(Arc::clone(config));
    }
    found
}
