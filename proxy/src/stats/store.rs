//! The store of all statistics and the scopes that name them.

use super::{Counter, Stat, StatGroup, Summary};
use parking_lot::Mutex;
use std::{
    any::{Any, TypeId},
    collections::BTreeMap,
    sync::{Arc, Weak},
};

/// Everything that is counted, by weak reference.
#[derive(Default)]
pub(crate) struct Store {
    groups: Mutex<BTreeMap<(Arc<str>, TypeId), GroupEntry>>,
    singles: Mutex<BTreeMap<Arc<str>, SingleEntry>>,
}

struct GroupEntry {
    scope: Names,
    group: Weak<dyn StatGroup>,
}

struct SingleEntry {
    family: Arc<str>,
    tags: Tags,
    stat: Weak<Counter>,
}

type Tags = Arc<[(Arc<str>, Arc<str>)]>;

#[derive(Clone)]
struct Names {
    /// `cluster.reviews.`
    prefix: Arc<str>,
    /// The prefix with tag values taken out: `cluster.`
    family: Arc<str>,
    tags: Tags,
}

/// A place in the tree of names; cheap to clone.
#[derive(Clone)]
pub(crate) struct Scope {
    store: Arc<Store>,
    names: Names,
}

/// A value as read.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge.
    Gauge(u64),
    /// Of a histogram; `None` before the first value. Boxed because most values are numbers.
    Histogram(Option<Box<Summary>>),
}

/// One statistic as read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Full name.
    pub(crate) name: String,
    /// The name with tag values taken out.
    pub(crate) family: String,
    /// Tags, outermost first.
    pub(crate) tags: Vec<(Arc<str>, Arc<str>)>,
    /// The value.
    pub(crate) value: Value,
}

impl Store {
    /// The scope at the root of `store`.
    pub(crate) fn root(self: &Arc<Self>) -> Scope {
        let names = Names {
            prefix: "".into(),
            family: "".into(),
            tags: Arc::new([]),
        };
        Scope {
            store: self.clone(),
            names,
        }
    }

    /// Reads what `wants` it, sorted by name; forgets what nobody holds any more.
    ///
    /// A large configuration has a million statistics: nothing is kept of those that nobody wants.
    pub(crate) fn read(&self, wants: impl Fn(&str, Stat<'_>) -> bool) -> Vec<Reading> {
        let mut readings = Vec::new();
        let mut full = String::new();
        self.groups.lock().retain(|_, entry| {
            let Some(group) = entry.group.upgrade() else {
                return false;
            };
            group.visit(&mut |name, stat| {
                full.clear();
                full.push_str(&entry.scope.prefix);
                full.push_str(name);
                if wants(&full, stat) {
                    readings.push(entry.scope.reading(name, stat));
                }
            });
            true
        });
        self.singles.lock().retain(|name, entry| {
            let Some(counter) = entry.stat.upgrade() else {
                return false;
            };
            if wants(name, Stat::Counter(&counter)) {
                readings.push(Reading {
                    name: name.to_string(),
                    family: entry.family.to_string(),
                    tags: entry.tags.to_vec(),
                    value: Value::Counter(counter.value()),
                });
            }
            true
        });
        readings.sort_by(|left, right| left.name.cmp(&right.name));
        readings
    }

    /// Sets every counter to zero.
    pub(crate) fn reset_counters(&self) {
        for entry in self.groups.lock().values() {
            if let Some(group) = entry.group.upgrade() {
                group.visit(&mut |_, stat| {
                    if let Stat::Counter(counter) = stat {
                        counter.reset();
                    }
                });
            }
        }
        for entry in self.singles.lock().values() {
            if let Some(counter) = entry.stat.upgrade() {
                counter.reset();
            }
        }
    }
}

impl Names {
    fn reading(&self, name: &str, stat: Stat<'_>) -> Reading {
        let value = match stat {
            Stat::Counter(counter) => Value::Counter(counter.value()),
            Stat::Gauge(gauge) => Value::Gauge(gauge.value()),
            Stat::Histogram(histogram) => Value::Histogram(histogram.summary().map(Box::new)),
        };
        let (family, code) = response_code_family(name);
        let mut tags = self.tags.to_vec();
        tags.extend(code.map(|(tag, value)| (Arc::from(tag), Arc::from(value))));
        Reading {
            name: format!("{}{name}", self.prefix),
            family: format!("{}{family}", self.family),
            tags,
            value,
        }
    }
}

/// Envoy takes response codes out of names: `upstream_rq_200` is `upstream_rq` with `envoy.response_code=200`,
/// `upstream_rq_2xx` is `upstream_rq_xx` with `envoy.response_code_class=2`.
fn response_code_family(name: &str) -> (String, Option<(&'static str, &str)>) {
    let Some((rest, last)) = name.rsplit_once('_') else {
        return (name.to_owned(), None);
    };
    let digits = last.as_bytes();
    if !rest.ends_with("_rq") || digits.len() != 3 || !digits[0].is_ascii_digit() {
        return (name.to_owned(), None);
    }
    if last.ends_with("xx") {
        return (
            format!("{rest}_xx"),
            Some(("envoy.response_code_class", &last[..1])),
        );
    }
    if digits.iter().all(u8::is_ascii_digit) {
        return (rest.to_owned(), Some(("envoy.response_code", last)));
    }
    (name.to_owned(), None)
}

impl Scope {
    /// A scope below this one, `part` becoming part of the name: `listener_manager` → `listener_manager.…`.
    pub(crate) fn scope(&self, part: &str) -> Scope {
        let names = Names {
            prefix: format!("{}{part}.", self.names.prefix).into(),
            family: format!("{}{part}.", self.names.family).into(),
            tags: self.names.tags.clone(),
        };
        Scope {
            store: self.store.clone(),
            names,
        }
    }

    /// A scope below this one for one of many: `tagged("cluster", "envoy.cluster_name", "reviews")` → `cluster.reviews.…`
    /// whose family is `cluster.…` with the tag `envoy.cluster_name=reviews`. An empty `part` adds the value only.
    pub(crate) fn tagged(&self, part: &str, tag: &str, value: &str) -> Scope {
        let dot = if part.is_empty() { "" } else { "." };
        let mut tags = self.names.tags.to_vec();
        tags.push((tag.into(), value.into()));
        // A colon would end the name in statsd; Envoy writes an underscore in its place.
        let value = value.replace(':', "_");
        let names = Names {
            prefix: format!("{}{part}{dot}{value}.", self.names.prefix).into(),
            family: format!("{}{part}{dot}", self.names.family).into(),
            tags: tags.into(),
        };
        Scope {
            store: self.store.clone(),
            names,
        }
    }

    /// The group `G` of this scope: the living one if somebody has it already (an updated cluster goes on counting), else new.
    pub(crate) fn group<G: StatGroup + Default>(&self) -> Arc<G> {
        let mut groups = self.store.groups.lock();
        let key = (self.names.prefix.clone(), TypeId::of::<G>());
        if let Some(living) = groups.get(&key).and_then(|entry| entry.group.upgrade()) {
            let living: Arc<dyn Any + Send + Sync> = living;
            if let Ok(group) = living.downcast::<G>() {
                return group;
            }
        }
        let group = Arc::new(G::default());
        let weak: Weak<G> = Arc::downgrade(&group);
        groups.insert(
            key,
            GroupEntry {
                scope: self.names.clone(),
                group: weak,
            },
        );
        group
    }

    /// The counter of this name.
    pub(crate) fn counter(&self, name: &str) -> Arc<Counter> {
        let full: Arc<str> = format!("{}{name}", self.names.prefix).into();
        let mut singles = self.store.singles.lock();
        if let Some(living) = singles.get(&full).and_then(|entry| entry.stat.upgrade()) {
            return living;
        }
        let counter = Arc::new(Counter::default());
        let (family, code) = response_code_family(name);
        let mut tags = self.names.tags.to_vec();
        tags.extend(code.map(|(tag, value)| (Arc::from(tag), Arc::from(value))));
        let entry = SingleEntry {
            family: format!("{}{family}", self.names.family).into(),
            tags: tags.into(),
            stat: Arc::downgrade(&counter),
        };
        singles.insert(full, entry);
        counter
    }
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Scope").field(&self.names.prefix).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::stat_group! {
        /// A sample.
        struct Sample { upstream_rq_total: Counter, upstream_cx_active: Gauge }
    }

    #[test]
    fn a_group_is_shared_while_it_lives_and_forgotten_afterwards() {
        let store = Arc::new(Store::default());
        let scope = store.root().tagged("cluster", "envoy.cluster_name", "a:b");
        let first: Arc<Sample> = scope.group();
        first.upstream_rq_total.inc();
        first.upstream_cx_active.inc();
        let second: Arc<Sample> = scope.group();
        assert_eq!(second.upstream_rq_total.value(), 1);
        let code = scope.counter("upstream_rq_200");
        code.add(2);
        let only = store.read(|name, stat| {
            name.starts_with("cluster.a_b.upstream_cx") && matches!(stat, Stat::Gauge(_))
        });
        assert_eq!(only.len(), 1);
        assert_eq!(only[0].name, "cluster.a_b.upstream_cx_active");
        let readings = store.read(|_, _| true);
        assert_eq!(readings.len(), 3);
        assert_eq!(readings[1].name, "cluster.a_b.upstream_rq_200");
        assert_eq!(readings[1].family, "cluster.upstream_rq");
        assert_eq!(&*readings[1].tags[0].1, "a:b");
        assert_eq!(&*readings[1].tags[1].1, "200");
        drop((first, second, code));
        assert!(store.read(|_, _| true).is_empty());
    }
}
