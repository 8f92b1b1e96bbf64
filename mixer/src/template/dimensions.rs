//! Dimensions of a metric: evaluated once for all metrics that have the same ones, with a hash by which series are found.

use std::hash::{BuildHasher as _, Hasher as _};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, OnceLock};

use foldhash::quality::RandomState;

use super::Dimensions;
use crate::lang::Val;

/// Seeded anew in every process: label values come from requests.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);

/// Named values, sorted by name.
#[derive(Debug)]
pub(crate) struct DimensionSet<'a> {
    values: Dimensions<'a>,
    key: OnceLock<Key>,
    owned: OnceLock<Arc<[Box<str>]>>,
}

/// What all series of a set of values are found by.
#[derive(Debug)]
struct Key {
    hash: u64,
    /// Those values as text that are none.
    texts: Vec<String>,
}

/// The sets of one request, by the number that instances with equal dimensions share.
#[derive(Debug, Default)]
pub(crate) struct SharedSets<'a>(Vec<(usize, Arc<DimensionSet<'a>>)>);

impl<'a> DimensionSet<'a> {
    pub(crate) fn new(values: Dimensions<'a>) -> Arc<Self> {
        Arc::new(Self {
            values,
            key: OnceLock::new(),
            owned: OnceLock::new(),
        })
    }

    /// The values as text, to keep: all that keep them share them.
    pub(crate) fn texts(&self) -> Arc<[Box<str>]> {
        let texts = || self.values.iter().map(|(_, value)| value.to_text().into());
        self.owned.get_or_init(|| texts().collect()).clone()
    }

    fn key(&self) -> &Key {
        self.key.get_or_init(|| {
            let mut hasher = HASHER.build_hasher();
            let mut texts = Vec::new();
            for (_, value) in &self.values {
                match value {
                    Val::String(text) => hasher.write(text.as_bytes()),
                    other => {
                        let text = other.to_text().into_owned();
                        hasher.write(text.as_bytes());
                        texts.push(text);
                    }
                }
                // Ends a text: no text has this byte.
                hasher.write_u8(0xff);
            }
            Key {
                hash: hasher.finish(),
                texts,
            }
        })
    }

    /// The hash of the values as text.
    pub(crate) fn hash(&self) -> u64 {
        self.key().hash
    }

    /// Whether the values as text are these.
    pub(crate) fn is(&self, texts: &[Box<str>]) -> bool {
        let mut others = self.key().texts.iter();
        self.values.len() == texts.len()
            && self
                .values
                .iter()
                .zip(texts)
                .all(|((_, value), text)| match value {
                    Val::String(value) => **value == **text,
                    _ => others.next().is_some_and(|other| **other == **text),
                })
    }
}

impl<'a> Deref for DimensionSet<'a> {
    type Target = Dimensions<'a>;

    fn deref(&self) -> &Dimensions<'a> {
        &self.values
    }
}

impl<'a> SharedSets<'a> {
    /// Forgets everything: another request begins.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The set of a number; `make` evaluates it if nobody has. Number 0 is never shared.
    pub(super) fn get<E>(
        &mut self,
        number: usize,
        make: impl FnOnce() -> Result<Dimensions<'a>, E>,
    ) -> Result<Arc<DimensionSet<'a>>, E> {
        if let Some((_, set)) = self.0.iter().find(|(known, _)| *known == number) {
            return Ok(set.clone());
        }
        let set = DimensionSet::new(make()?);
        if number != 0 {
            self.0.push((number, set.clone()));
        }
        Ok(set)
    }
}
