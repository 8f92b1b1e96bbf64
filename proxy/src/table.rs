//! A map by name of which copies are cheap: they share all that is the same in both.
//!
//! What has thousands of entries and is read while it changes (clusters, names that are asked for) is such a map: a change
//! copies the few entries beside the one that changes, and what differs between two copies is found without looking at the rest.

use std::{mem, sync::Arc};
use xxhash_rust::xxh64::xxh64;

/// Entries of a shard, in the mean, from which on there are twice as many shards.
const FULL: usize = 32;

/// Values by name.
#[derive(Clone, Debug)]
pub(crate) struct Table<V> {
    /// A power of two of them, chosen by the lowest bits of an entry's hash.
    shards: Vec<Arc<Shard<V>>>,
    len: usize,
}

/// Entries in the order of their hashes.
type Shard<V> = Vec<Entry<V>>;

#[derive(Clone, Debug)]
struct Entry<V> {
    hash: u64,
    name: Arc<str>,
    value: V,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            shards: vec![Arc::default()],
            len: 0,
        }
    }
}

impl<V> Table<V> {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        let hash = hash(name);
        let shard = &self.shards[self.place(hash)];
        let index = find(shard, hash, name).ok()?;
        Some(&shard[index].value)
    }

    /// Whether there is a value of `name`.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All entries, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        let entries = self.shards.iter().flat_map(|shard| shard.iter());
        entries.map(|entry| (&entry.name, &entry.value))
    }

    /// All names, in no order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.iter().map(|(name, _)| name)
    }

    /// All values, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Names that `other` has not. What both share is not looked at.
    pub(crate) fn names_missing_in<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        self.entries_apart_from(other)
            .map(|entry| &entry.name)
            .filter(|name| !other.contains(name))
    }

    /// Entries of the shards that the two do not share.
    fn entries_apart_from<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Entry<V>> {
        let is_shared = move |index: usize, shard: &Arc<Shard<V>>| {
            self.shards.len() == other.shards.len() && Arc::ptr_eq(shard, &other.shards[index])
        };
        let shards = self.shards.iter().enumerate();
        shards
            .filter(move |(index, shard)| !is_shared(*index, shard))
            .flat_map(|(_, shard)| shard.iter())
    }

    /// Names that `other` has not, or with another value. What both share is not looked at.
    pub(crate) fn names_unlike_in<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = &'a Arc<str>>
    where
        V: PartialEq,
    {
        self.entries_apart_from(other)
            .filter(|entry| other.get(&entry.name) != Some(&entry.value))
            .map(|entry| &entry.name)
    }

    /// Whether `other` has the same names.
    pub(crate) fn has_names_of(&self, other: &Self) -> bool {
        self.len == other.len && self.names_missing_in(other).next().is_none()
    }

    fn place(&self, hash: u64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "only the lowest bits count"
        )]
        let bits = hash as usize;
        bits & (self.shards.len() - 1)
    }
}

impl<V: Clone> Table<V> {
    /// Puts an entry in; the value before.
    pub(crate) fn insert(&mut self, name: Arc<str>, value: V) -> Option<V> {
        let hash = hash(&name);
        let place = self.place(hash);
        let shard = Arc::make_mut(&mut self.shards[place]);
        match find(shard, hash, &name) {
            Ok(index) => Some(mem::replace(&mut shard[index].value, value)),
            Err(index) => {
                shard.insert(index, Entry { hash, name, value });
                self.len += 1;
                if self.len > self.shards.len() * FULL {
                    self.grow();
                }
                None
            }
        }
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<V> {
        let hash = hash(name);
        let place = self.place(hash);
        let index = find(&self.shards[place], hash, name).ok()?;
        self.len -= 1;
        Some(Arc::make_mut(&mut self.shards[place]).remove(index).value)
    }

    /// Spreads the entries over twice as many shards.
    fn grow(&mut self) {
        let bit = self.shards.len() as u64;
        let (stay, go): (Vec<_>, Vec<_>) = mem::take(&mut self.shards)
            .into_iter()
            .map(|shard| {
                let entries = Arc::unwrap_or_clone(shard).into_iter();
                // The order stays what it was.
                let (go, stay): (Shard<V>, Shard<V>) =
                    entries.partition(|entry| entry.hash & bit != 0);
                (Arc::new(stay), Arc::new(go))
            })
            .unzip();
        self.shards = stay;
        self.shards.extend(go);
    }
}

impl<V: Clone> FromIterator<(Arc<str>, V)> for Table<V> {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, V)>>(entries: T) -> Self {
        let mut table = Self::default();
        for (name, value) in entries {
            table.insert(name, value);
        }
        table
    }
}

fn hash(name: &str) -> u64 {
    xxh64(name.as_bytes(), 0)
}

/// Where an entry is, or belongs.
fn find<V>(shard: &Shard<V>, hash: u64, name: &str) -> Result<usize, usize> {
    shard.binary_search_by(|entry| entry.hash.cmp(&hash).then_with(|| (*entry.name).cmp(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn name(number: u16) -> Arc<str> {
        format!("service-{number}").into()
    }

    fn names(table: &Table<u32>) -> Vec<&Arc<str>> {
        let mut names: Vec<_> = table.names().collect();
        names.sort();
        names
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_copies_are_not_touched(
            steps in proptest::collection::vec((0..300_u16, proptest::option::of(any::<u32>())), 0..600),
            copied_after in 0..600_usize,
        ) {
            let mut map = BTreeMap::new();
            let mut table = Table::default();
            let mut copy = None;
            for (index, (number, value)) in steps.into_iter().enumerate() {
                if index == copied_after {
                    copy = Some((map.clone(), table.clone()));
                }
                let name = name(number);
                let (before, was) = match value {
                    Some(value) => (table.insert(name.clone(), value), map.insert(name, value)),
                    None => (table.remove(&name), map.remove(&name)),
                };
                prop_assert_eq!(before, was);
            }
            let all: BTreeMap<_, _> = table.iter().map(|(name, value)| (name.clone(), *value)).collect();
            prop_assert_eq!(&all, &map);
            prop_assert_eq!(table.len(), map.len());
            if let Some((map_then, then)) = copy {
                prop_assert!(map_then.iter().all(|(name, value)| then.get(name) == Some(value)));
                prop_assert_eq!(names(&then), map_then.keys().collect::<Vec<_>>());
                let mut come: Vec<_> = table.names_missing_in(&then).collect();
                come.sort();
                prop_assert_eq!(come, map.keys().filter(|name| !map_then.contains_key(*name)).collect::<Vec<_>>());
                let mut unlike: Vec<_> = table.names_unlike_in(&then).collect();
                unlike.sort();
                let differs = |(name, value): &(&Arc<str>, &u32)| map_then.get(*name) != Some(*value);
                prop_assert_eq!(unlike, map.iter().filter(differs).map(|(name, _)| name).collect::<Vec<_>>());
                prop_assert_eq!(then.has_names_of(&table), map.keys().eq(map_then.keys()));
            }
        }
    }

    #[test]
    fn a_change_copies_only_what_is_beside_it() {
        let table: Table<u32> = (0..5000).map(|number| (name(number), 0)).collect();
        let mut copy = table.clone();
        copy.insert(name(17), 1);
        let shards = table.shards.iter().zip(&copy.shards);
        let copied = shards.filter(|(one, other)| !Arc::ptr_eq(one, other));
        assert_eq!(copied.count(), 1);
    }
}
