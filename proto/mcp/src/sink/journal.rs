//! What a sink has: the state of each collection that was accepted last, and how it stands with the source.

use super::Subscription;
use crate::snapshot::Collection;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};
use tonic::{Code, Status};

/// A sink's connection and collections.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SinkStatus {
    /// Whether there is a stream.
    pub is_connected: bool,
    /// Why the last stream failed.
    pub last_error: Option<String>,
    /// Each subscribed collection.
    pub collections: BTreeMap<String, CollectionStatus>,
}

/// How a sink stands with one collection.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CollectionStatus {
    /// Received and answered at least once.
    pub is_synced: bool,
    /// Whether the source does not know it.
    pub is_unknown: bool,
    /// Version accepted last.
    pub version: Option<String>,
    /// Number of resources in it.
    pub resources: usize,
    /// Why the last state was refused, if it was.
    pub refused: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: BTreeMap<String, Entry>,
    is_connected: bool,
    last_error: Option<String>,
}

#[derive(Debug, Default)]
struct Entry {
    is_optional: bool,
    is_unknown: bool,
    is_answered: bool,
    accepted: Option<Arc<Collection>>,
    refused: Option<String>,
}

impl Journal {
    pub(super) fn new(subscriptions: &[Subscription]) -> Self {
        let entries = subscriptions.iter().map(|subscription| {
            let entry = Entry {
                is_optional: subscription.optional,
                ..Entry::default()
            };
            (subscription.collection.clone(), entry)
        });
        Self {
            entries: entries.collect(),
            ..Self::default()
        }
    }

    pub(super) fn accept(&mut self, collection: &str, state: Arc<Collection>) {
        if let Some(entry) = self.entries.get_mut(collection) {
            entry.accepted = Some(state);
            entry.refused = None;
            entry.is_answered = true;
        }
    }

    pub(super) fn refuse(&mut self, collection: &str, reason: &str) {
        if let Some(entry) = self.entries.get_mut(collection) {
            entry.refused = Some(reason.to_owned());
            entry.is_answered = true;
        }
    }

    pub(super) fn accepted(&self, collection: &str) -> Option<Arc<Collection>> {
        self.entries.get(collection)?.accepted.clone()
    }

    /// Whether the collection is subscribed to (and the source is not known to lack it).
    pub(super) fn wants(&self, collection: &str) -> bool {
        self.entries
            .get(collection)
            .is_some_and(|entry| !entry.is_unknown)
    }

    pub(super) fn missing(&self) -> Vec<String> {
        self.entries
            .iter()
            .filter(|(_, entry)| !entry.is_answered && !entry.is_unknown)
            .map(|(name, _)| name.clone())
            .collect()
    }

    pub(super) fn connected(&mut self) {
        self.is_connected = true;
        self.last_error = None;
    }

    pub(super) fn disconnected(&mut self) {
        self.is_connected = false;
    }

    /// Gives up the optional collections that the source's error names; all of them if it names none of ours.
    /// QUIRK: a source closes the whole stream over one unknown collection, and says which only in its text.
    pub(super) fn drop_unknown(&mut self, status: &Status) -> Vec<String> {
        self.last_error = Some(format!("{:?}: {}", status.code(), status.message()));
        if status.code() != Code::InvalidArgument {
            return Vec::new();
        }
        let names_one = self
            .entries
            .keys()
            .any(|name| status.message().contains(name));
        let mut dropped = Vec::new();
        for (name, entry) in &mut self.entries {
            let is_meant = !names_one || status.message().ends_with(name.as_str());
            if entry.is_optional && !entry.is_unknown && is_meant {
                entry.is_unknown = true;
                dropped.push(name.clone());
            }
        }
        dropped
    }

    pub(super) fn status(&self) -> SinkStatus {
        let collections = self.entries.iter().map(|(name, entry)| {
            let status = CollectionStatus {
                is_synced: entry.is_answered,
                is_unknown: entry.is_unknown,
                version: entry.accepted.as_ref().map(|state| state.version.clone()),
                resources: entry
                    .accepted
                    .as_ref()
                    .map_or(0, |state| state.resources.size()),
                refused: entry.refused.clone(),
            };
            (name.clone(), status)
        });
        SinkStatus {
            is_connected: self.is_connected,
            last_error: self.last_error.clone(),
            collections: collections.collect(),
        }
    }
}
