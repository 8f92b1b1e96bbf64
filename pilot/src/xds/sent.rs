//! What a stream was sent last: a hash for each name. Streams that were sent the same share one copy, as nearly all do.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use xxhash_rust::xxh64::xxh64;

use super::name::Name;
use crate::model::ClusterName;

type Hashes = HashMap<Name, u64>;

/// Hashes of what was sent last, by name.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    hashes: Arc<Hashes>,
    fingerprint: u64,
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
        let value = Arc::new(value);
        known.retain(|_, other| other.strong_count() > 0);
        known.insert(fingerprint, Arc::downgrade(&value));
        value
    }
}

/// What streams share.
#[derive(Debug, Default)]
pub struct Pools {
    sent: Pool<Hashes>,
    asked: Pool<NameSet>,
}

impl Sent {
    /// The hash of what was sent under `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.hashes.get(name).copied()
    }

    /// True when something was sent under `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.hashes.contains_key(name)
    }

    /// How many resources.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// True when nothing was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.hashes.keys()
    }

    /// A number for all of it, whatever the order: equal for equal content.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Takes down that only this is there.
    pub fn replace(&mut self, all: impl Iterator<Item = (Name, u64)> + Clone, pools: &Pools) {
        *self = Sent::default();
        self.change(all, &[], pools);
    }

    /// Takes down that this was sent, and this removed.
    pub fn change(
        &mut self,
        sent: impl Iterator<Item = (Name, u64)> + Clone,
        removed: &[Name],
        pools: &Pools,
    ) {
        let mut fingerprint = self.fingerprint;
        let changes = sent.clone().map(|(name, hash)| (name, Some(hash)));
        for (name, new) in changes.chain(removed.iter().map(|name| (Arc::clone(name), None))) {
            if let Some(old) = self.hashes.get(&name) {
                fingerprint = fingerprint.wrapping_sub(mix(&name, *old));
            }
            if let Some(new) = new {
                fingerprint = fingerprint.wrapping_add(mix(&name, new));
            }
        }
        if fingerprint == self.fingerprint {
            return;
        }
        // Most often another stream has come to the same before.
        if let Some(same) = pools.sent.get(fingerprint) {
            self.hashes = same;
            self.fingerprint = fingerprint;
            return;
        }
        let mut hashes = (*self.hashes).clone();
        hashes.extend(sent);
        for name in removed {
            hashes.remove(name);
        }
        // A stream keeps this for long: without the room for more.
        hashes.shrink_to_fit();
        self.fingerprint = hashes
            .iter()
            .map(|(name, hash)| mix(name, *hash))
            .fold(0, u64::wrapping_add);
        self.hashes = pools.sent.share(self.fingerprint, hashes);
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

fn mix(name: &str, hash: u64) -> u64 {
    (xxh64(name.as_bytes(), 0) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
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
        assert!(Arc::ptr_eq(&first.hashes, &second.hashes));
        assert_eq!(first.fingerprint(), second.fingerprint());

        second.change(all(&[("c", 4)]).into_iter(), &["a".into()], &pools);
        assert_eq!(
            (second.get("a"), second.get("c"), first.get("a")),
            (None, Some(4), Some(1))
        );
        first.retain(|name| name == "b", &pools);
        first.change(all(&[("c", 4)]).into_iter(), &[], &pools);
        assert!(Arc::ptr_eq(&first.hashes, &second.hashes));
        first.retain(|_| false, &pools);
        assert!(first.is_empty() && first.fingerprint() == 0);
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
