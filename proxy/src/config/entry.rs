//! What is remembered of a resource, for dumps and for telling whether an update changes anything.

use super::Kind;
use prost_types::Any;
use std::{sync::Arc, time::SystemTime};

/// A message as it came, small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw(Arc<[u8]>);

/// One resource.
pub(crate) struct Entry<T> {
    /// Whether it comes from the bootstrap.
    pub(crate) is_static: bool,
    /// Its version.
    pub(crate) version: Arc<str>,
    /// When it came.
    pub(crate) updated: SystemTime,
    /// The version in force.
    pub(crate) active: Option<T>,
    /// A newer version on its way.
    pub(crate) warming: Option<T>,
    /// The message last accepted.
    pub(crate) raw: Raw,
    /// Why the newest version was refused.
    pub(crate) error: Option<Box<(String, SystemTime)>>,
}

impl Raw {
    /// The message in `any`.
    pub(crate) fn new(any: &Any) -> Self {
        Self(any.value.as_slice().into())
    }

    /// Whether it is byte for byte the message in `any`.
    pub(crate) fn is(&self, any: &Any) -> bool {
        *self.0 == *any.value
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The message with its type.
    pub(crate) fn any(&self, kind: Kind) -> Any {
        Any {
            type_url: kind.type_url().to_owned(),
            value: self.0.to_vec(),
        }
    }
}

impl<T> Entry<T> {
    /// A resource that has just come.
    pub(crate) fn new(any: &Any, version: &str, is_static: bool) -> Self {
        Self {
            is_static,
            version: version.into(),
            updated: SystemTime::now(),
            active: None,
            warming: None,
            raw: Raw::new(any),
            error: None,
        }
    }

    /// The newest form of it.
    pub(crate) fn newest(&self) -> Option<&T> {
        self.warming.as_ref().or(self.active.as_ref())
    }

    /// It was refused.
    pub(crate) fn refuse(&mut self, error: &impl ToString) {
        self.error = Some(Box::new((error.to_string(), SystemTime::now())));
    }

    /// It came once more, unchanged.
    pub(crate) fn confirm(&mut self, version: &str) {
        if *self.version != *version {
            self.version = version.into();
        }
        self.error = None;
    }
}
