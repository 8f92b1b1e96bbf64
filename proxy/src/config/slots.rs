//! Places for resources that something has named, by source and name: made when they are named, kept as long as somebody holds them.

use crate::xds::Source;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Weak},
};

/// Every slot of a kind.
pub(crate) struct Slots<S>(Mutex<Table<S>>);

struct Table<S> {
    by_name: BTreeMap<(Source, Arc<str>), Arc<S>>,
    /// Those that are not asked for by a name: what they begin with is in the configuration that holds them.
    in_place: Vec<Weak<S>>,
    /// Whether one was made since it was last told which there are.
    has_new: bool,
}

impl<S> Default for Slots<S> {
    fn default() -> Self {
        Self(Mutex::new(Table {
            by_name: BTreeMap::new(),
            in_place: Vec::new(),
            has_new: false,
        }))
    }
}

impl<S> Slots<S> {
    /// The slot of `name` from `source`, made if it is new.
    pub(super) fn named(&self, source: Source, name: &str, make: impl FnOnce() -> S) -> Arc<S> {
        let mut table = self.0.lock();
        let Table {
            by_name, has_new, ..
        } = &mut *table;
        let slot = by_name.entry((source, Arc::from(name))).or_insert_with(|| {
            *has_new = true;
            Arc::new(make())
        });
        slot.clone()
    }

    /// A slot that is filled where it is held.
    pub(super) fn in_place(&self, slot: S) -> Arc<S> {
        let slot = Arc::new(slot);
        let mut table = self.0.lock();
        table.in_place.retain(|slot| slot.strong_count() > 0);
        table.in_place.push(Arc::downgrade(&slot));
        slot
    }

    /// The slot of `name` from `source`, if anybody wants it.
    pub(crate) fn get(&self, source: &Source, name: &str) -> Option<Arc<S>> {
        let key = (source.clone(), Arc::from(name));
        self.0.lock().by_name.get(&key).cloned()
    }

    /// Every slot, be it asked for by a name or not.
    pub(super) fn everywhere(&self) -> Vec<Arc<S>> {
        let table = self.0.lock();
        let in_place = table.in_place.iter().filter_map(Weak::upgrade);
        table.by_name.values().cloned().chain(in_place).collect()
    }

    /// Every slot that is asked for by a name.
    pub(crate) fn all(&self) -> Vec<Arc<S>> {
        self.0.lock().by_name.values().cloned().collect()
    }

    /// Name and version of every one from `from` that has something in force.
    pub(super) fn held(
        &self,
        from: &Source,
        version: impl Fn(&S) -> Option<Arc<str>>,
    ) -> BTreeMap<String, String> {
        let table = self.0.lock();
        let of = table
            .by_name
            .iter()
            .filter(|((source, _), _)| source == from);
        of.filter_map(|((_, name), slot)| Some((name.to_string(), version(slot)?.to_string())))
            .collect()
    }

    /// Drops slots that nobody holds any more; source and name of all, if they are others than at the last call.
    pub(super) fn prune(&self) -> Option<Vec<(Source, Arc<str>)>> {
        let mut table = self.0.lock();
        let before = table.by_name.len();
        table.by_name.retain(|_, slot| Arc::strong_count(slot) > 1);
        let has_changed = mem::take(&mut table.has_new) || table.by_name.len() != before;
        has_changed.then(|| table.by_name.keys().cloned().collect())
    }
}
