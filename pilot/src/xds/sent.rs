//! What a stream was sent last: a hash for each name. Streams that were sent the same share one copy, as nearly all do.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use xxhash_rust::xxh64::xxh64;

use super::name::Name;
use crate::model::ClusterName;

/// Into how many parts what was sent is divided. Nearly everything is the same for many streams, except for a few resources of each
/// proxy's own workload: with those only the parts differ that they are in.
const PARTS: usize = 64;

/// Hashes of what was sent last, by name.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    parts: Arc<Parts>,
    fingerprint: u64,
}

/// All parts, by the first bits of their keys; none if nothing was sent.
type Parts = Vec<Arc<Part>>;

/// Some of what was sent, ordered by key and name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Part {
    sent: Box<[One]>,
    fingerprint: u64,
}

/// One resource that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct One {
    key: u64,
    name: Name,
    hash: u64,
}

/// A resource that is sent, or removed if it has no hash.
struct Changed {
    key: u64,
    name: Name,
    hash: Option<u64>,
}

impl Part {
    /// This with `changes`, which are all of this part and ordered as it is.
    fn with(&self, changes: &[Changed]) -> Self {
        let is_changed = |one: &&One| {
            let order = |change: &Changed| (change.key, &change.name).cmp(&(one.key, &one.name));
            changes.binary_search_by(order).is_ok()
        };
        let new = changes.iter().filter_map(|change| {
            Some(One {
                key: change.key,
                name: Arc::clone(&change.name),
                hash: change.hash?,
            })
        });
        let kept = self.sent.iter().filter(|one| !is_changed(one)).cloned();
        let mut sent: Box<[One]> = kept.chain(new).collect();
        sent.sort_unstable_by(|one, other| (one.key, &one.name).cmp(&(other.key, &other.name)));
        let mixed = sent.iter().map(|one| mix(one.key, one.hash));
        Part {
            fingerprint: mixed.fold(0, u64::wrapping_add),
            sent,
        }
    }
}

/// Names that were asked for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    set: Arc<NameSet>,
    fingerprint: u64,
}

#[derive(Debug, Default)]
struct NameSet {
    names: BTreeSet<Name>,
    /// Names of clusters by their host, once somebody looks for them.
    by_host: OnceLock<HashMap<String, Vec<Name>>>,
}

impl PartialEq for NameSet {
    fn eq(&self, other: &Self) -> bool {
        self.names == other.names
    }
}

/// What streams share, by fingerprint, as long as one of them has it.
#[derive(Debug)]
pub struct Pool<T> {
    known: Mutex<HashMap<u64, Weak<T>>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool {
            known: Mutex::default(),
        }
    }
}

impl<T: PartialEq> Pool<T> {
    fn get(&self, fingerprint: u64) -> Option<Arc<T>> {
        self.known.lock().get(&fingerprint)?.upgrade()
    }

    /// The copy that is shared from now on.
    fn share(&self, fingerprint: u64, value: T) -> Arc<T> {
        let mut known = self.known.lock();
        if let Some(same) = known.get(&fingerprint).and_then(Weak::upgrade)
            && *same == value
        {
            return same;
        }
        if known.len() == known.capacity() {
            // What nobody has any more goes before more room is made, and that seldom.
            known.retain(|_, other| other.strong_count() > 0);
            let left = known.len();
            known.reserve(left);
        }
        let value = Arc::new(value);
        known.insert(fingerprint, Arc::downgrade(&value));
        value
    }
}

/// What streams share.
#[derive(Debug, Default)]
pub struct Pools {
    sent: Pool<Parts>,
    parts: Pool<Part>,
    asked: Pool<NameSet>,
}

impl Sent {
    /// The hash of what was sent under `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.find(key_of(name), name)
    }

    fn find(&self, key: u64, name: &str) -> Option<u64> {
        let part = &self.parts.get(part_of(key))?.sent;
        let begin = part.partition_point(|one| one.key < key);
        let mut same = part[begin..].iter().take_while(|one| one.key == key);
        same.find(|one| *one.name == *name).map(|one| one.hash)
    }

    /// True when something was sent under `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// How many resources.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.sent.len()).sum()
    }

    /// True when nothing was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        let sent = self.parts.iter().flat_map(|part| &part.sent);
        sent.map(|one| &one.name)
    }

    /// A number for all of it, whatever the order: equal for equal content.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Takes down that only this is there.
    pub fn replace(&mut self, all: impl Iterator<Item = (Name, u64)>, pools: &Pools) {
        *self = Sent::default();
        self.change(all, &[], pools);
    }

    /// Takes down that this was sent, and this removed.
    pub fn change(
        &mut self,
        sent: impl Iterator<Item = (Name, u64)>,
        removed: &[Name],
        pools: &Pools,
    ) {
        let sent = sent.map(|(name, hash)| (name, Some(hash)));
        let removed = removed.iter().map(|name| (Arc::clone(name), None));
        let all = sent.chain(removed).map(|(name, hash)| {
            let key = key_of(&name);
            Changed { key, name, hash }
        });
        let mut changes: Vec<Changed> = all.collect();
        let mut fingerprint = self.fingerprint;
        for Changed { key, name, hash } in &changes {
            if let Some(old) = self.find(*key, name) {
                fingerprint = fingerprint.wrapping_sub(mix(*key, old));
            }
            if let Some(new) = hash {
                fingerprint = fingerprint.wrapping_add(mix(*key, *new));
            }
        }
        if fingerprint == self.fingerprint {
            return;
        }
        // Most often another stream has come to the same before.
        if let Some(same) = pools.sent.get(fingerprint) {
            self.parts = same;
            self.fingerprint = fingerprint;
            return;
        }
        changes.sort_by(|one, other| (one.key, &one.name).cmp(&(other.key, &other.name)));
        // Of what is there twice the last counts.
        changes.dedup_by(|later, earlier| {
            let is_same = (later.key, &later.name) == (earlier.key, &earlier.name);
            if is_same {
                earlier.hash = later.hash;
            }
            is_same
        });
        let mut parts = (*self.parts).clone();
        parts.resize_with(PARTS, Arc::default);
        for changes in changes.chunk_by(|one, other| part_of(one.key) == part_of(other.key)) {
            let part = &mut parts[part_of(changes[0].key)];
            let new = part.with(changes);
            *part = pools.parts.share(new.fingerprint, new);
        }
        let fingerprints = parts.iter().map(|part| part.fingerprint);
        self.fingerprint = fingerprints.fold(0, u64::wrapping_add);
        self.parts = pools.sent.share(self.fingerprint, parts);
    }

    /// Forgets all that `is_kept` does not choose.
    pub fn retain(&mut self, is_kept: impl Fn(&str) -> bool, pools: &Pools) {
        let forgotten: Vec<Name> = self
            .names()
            .filter(|name| !is_kept(name))
            .cloned()
            .collect();
        self.change(std::iter::empty(), &forgotten, pools);
    }
}

impl Asked {
    /// The names alone.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<Name> {
        &self.set.names
    }

    /// The names of clusters of these hosts.
    pub fn of_hosts<'a>(
        &'a self,
        hosts: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = &'a Name> + 'a {
        let by_host = self.set.by_host.get_or_init(|| {
            let mut by_host: HashMap<String, Vec<Name>> = HashMap::new();
            for name in &self.set.names {
                let host = ClusterName::host_of(name).unwrap_or_default();
                by_host
                    .entry(host.to_owned())
                    .or_default()
                    .push(Arc::clone(name));
            }
            by_host
        });
        hosts.iter().filter_map(|host| by_host.get(host)).flatten()
    }

    /// True when these, each once, are the names.
    #[must_use]
    pub fn is(&self, names: &[impl AsRef<[u8]>]) -> bool {
        names.len() == self.names().len()
            && fingerprint_of(names.iter().map(AsRef::as_ref)) == self.fingerprint
    }

    /// These names from now on.
    pub fn set(&mut self, names: BTreeSet<Name>, pools: &Pools) {
        self.fingerprint = fingerprint_of(names.iter().map(|name| name.as_bytes()));
        self.set = match pools.asked.get(self.fingerprint) {
            Some(same) if same.names == names => same,
            _ => {
                let by_host = OnceLock::new();
                pools
                    .asked
                    .share(self.fingerprint, NameSet { names, by_host })
            }
        };
    }

    /// These names too, without those.
    pub fn change(&mut self, added: impl Iterator<Item = Name>, removed: &[String], pools: &Pools) {
        let mut names = self.names().clone();
        names.extend(added);
        for name in removed {
            names.remove(name.as_str());
        }
        self.set(names, pools);
    }
}

fn key_of(name: &str) -> u64 {
    xxh64(name.as_bytes(), 0)
}

/// The place of the part that has `key`.
fn part_of(key: u64) -> usize {
    // A few bits fit.
    (key >> (u64::BITS - PARTS.ilog2())) as usize
}

fn mix(key: u64, hash: u64) -> u64 {
    (key ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fingerprint_of<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    names.map(|name| xxh64(name, 0)).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(names: &[(&str, u64)]) -> Vec<(Name, u64)> {
        names
            .iter()
            .map(|(name, hash)| (Name::from(*name), *hash))
            .collect()
    }

    #[test]
    fn streams_that_were_sent_the_same_share_it() {
        let pools = Pools::default();
        let (mut first, mut second) = (Sent::default(), Sent::default());
        first.replace(all(&[("a", 1), ("b", 2)]).into_iter(), &pools);
        second.change(all(&[("b", 3)]).into_iter(), &[], &pools);
        second.change(all(&[("b", 2), ("a", 1)]).into_iter(), &[], &pools);
        assert!(Arc::ptr_eq(&first.parts, &second.parts));
        assert_eq!(first.fingerprint(), second.fingerprint());

        second.change(all(&[("c", 4)]).into_iter(), &["a".into()], &pools);
        assert_eq!(
            (second.get("a"), second.get("c"), first.get("a")),
            (None, Some(4), Some(1))
        );
        first.retain(|name| name == "b", &pools);
        first.change(all(&[("c", 4)]).into_iter(), &[], &pools);
        assert!(Arc::ptr_eq(&first.parts, &second.parts));
        first.retain(|_| false, &pools);
        assert!(first.is_empty() && first.fingerprint() == 0);
    }

    #[test]
    fn streams_share_all_parts_but_those_of_their_own_resources() {
        let pools = Pools::default();
        let names: Vec<String> = (0..1000).map(|index| format!("outbound|{index}")).collect();
        let shared: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let streams = [("inbound|80", 2), ("inbound|80", 3), ("inbound|90", 2)].map(|own| {
            let mut sent = Sent::default();
            sent.change(all(&shared).into_iter(), &[], &pools);
            sent.change(all(&[own]).into_iter(), &[], &pools);
            assert_eq!((sent.len(), sent.get(own.0)), (1001, Some(own.1)));
            sent
        });
        for (one, other) in [(0, 1), (1, 2), (2, 0)] {
            let pairs = streams[one].parts.iter().zip(streams[other].parts.iter());
            let differ = pairs.filter(|(one, other)| !Arc::ptr_eq(one, other));
            assert!((1..=2).contains(&differ.count()));
        }
    }

    #[test]
    fn of_what_is_there_twice_the_last_counts() {
        let pools = Pools::default();
        let mut sent = Sent::default();
        let twice = all(&[("a", 1), ("b", 2), ("a", 3)]);
        sent.change(twice.into_iter(), &["b".into()], &pools);
        assert_eq!(
            (sent.len(), sent.get("a"), sent.has("b")),
            (1, Some(3), false)
        );
        let mut once = Sent::default();
        once.change(all(&[("a", 3)]).into_iter(), &[], &pools);
        assert_eq!(once.fingerprint(), sent.fingerprint());
    }

    #[test]
    fn the_same_names_are_known_again() {
        let pools = Pools::default();
        let (mut first, mut second) = (Asked::default(), Asked::default());
        first.set(BTreeSet::from(["a".into(), "b".into()]), &pools);
        second.change(
            ["b".into(), "a".into(), "c".into()].into_iter(),
            &["c".to_owned()],
            &pools,
        );
        assert!(Arc::ptr_eq(&first.set, &second.set));
        assert!(first.is(&["b", "a"]));
        assert!(!first.is(&["b"]) && !first.is(&["b", "c"]));
        assert!(Asked::default().is(&[""; 0]));
    }

    #[test]
    fn clusters_are_found_by_their_hosts() {
        let pools = Pools::default();
        let mut asked = Asked::default();
        let names = ["outbound|80||a.x", "outbound|80|v1|a.x", "outbound|80||b.x"];
        asked.set(names.into_iter().map(Name::from).collect(), &pools);
        let hosts = BTreeSet::from(["a.x".to_owned(), "c.x".to_owned()]);
        let found: Vec<&str> = asked.of_hosts(&hosts).map(AsRef::as_ref).collect();
        assert_eq!(found, ["outbound|80|v1|a.x", "outbound|80||a.x"]);
    }
}
