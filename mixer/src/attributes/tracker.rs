//! Which attributes, and which keys of string maps, an answer depended on, and whether by value or by absence: the caller
//! may use the answer again for a request that is the same in these.

use std::collections::{BTreeMap, BTreeSet};

use proto::istio::mixer::v1::ReferencedAttributes;
use proto::istio::mixer::v1::referenced_attributes::{AttributeMatch, Condition};
use proto_mesh::attribute::codec::Encoder;

use super::vocabulary::{Slot, Vocabulary};

/// Hears of every look at an attribute.
pub(crate) trait Record {
    /// An attribute was read, or missed.
    fn scalar(&mut self, slot: Slot, present: bool);
    /// A string map was fetched; by itself this says nothing about its content.
    fn map(&mut self, slot: Slot);
    /// A key of a string map was read, or missed.
    fn key(&mut self, slot: Slot, key: &str, present: bool);
    /// From now on an attribute is of no interest: it was made here, the caller does not have it.
    fn hide(&mut self, _slot: Slot) {}
}

/// Records nothing.
#[derive(Debug, Default)]
pub(crate) struct Unrecorded;

impl Record for Unrecorded {
    fn scalar(&mut self, _: Slot, _: bool) {}
    fn map(&mut self, _: Slot) {}
    fn key(&mut self, _: Slot, _: &str, _: bool) {}
}

/// Records everything. Cloning it is the snapshot from which every quota starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracker {
    scalars: BTreeMap<Slot, bool>,
    maps: BTreeMap<Slot, BTreeMap<Box<str>, bool>>,
    hidden: BTreeSet<Slot>,
}

impl Record for Tracker {
    fn scalar(&mut self, slot: Slot, present: bool) {
        if !self.hidden.contains(&slot) {
            self.scalars.insert(slot, present);
        }
    }

    fn map(&mut self, slot: Slot) {
        if !self.hidden.contains(&slot) {
            self.maps.entry(slot).or_default();
        }
    }

    fn hide(&mut self, slot: Slot) {
        self.hidden.insert(slot);
    }

    fn key(&mut self, slot: Slot, key: &str, present: bool) {
        if self.hidden.contains(&slot) {
            return;
        }
        let keys = self.maps.entry(slot).or_default();
        if !keys.contains_key(key) {
            keys.insert(key.into(), present);
        }
    }
}

impl Tracker {
    /// The wire form, for a caller that knows `global_words` of the global list.
    pub(crate) fn to_wire(
        &self,
        vocabulary: &Vocabulary,
        global_words: usize,
    ) -> ReferencedAttributes {
        let mut encoder = Encoder::new(global_words);
        let mut attribute_matches = Vec::new();
        let mut add = |name: &str, key: Option<&str>, present: bool| {
            let condition = if present {
                Condition::Exact
            } else {
                Condition::Absence
            };
            attribute_matches.push(AttributeMatch {
                name: encoder.index(name),
                condition: condition.into(),
                regex: String::new(),
                // QUIRK: 0 means "no key", though it is also the index of source.ip.
                map_key: key.map_or(0, |key| encoder.index(key)),
            });
        };
        for (slot, present) in &self.scalars {
            add(vocabulary.name(*slot), None, *present);
        }
        for (slot, keys) in &self.maps {
            for (key, present) in keys {
                add(vocabulary.name(*slot), Some(key), *present);
            }
        }
        ReferencedAttributes {
            words: encoder.into_words(),
            attribute_matches,
        }
    }

    /// As text, sorted: `name`, `-name` for an absence, `name[key]`; a map that was fetched is listed by its bare name, too.
    pub(crate) fn to_text(&self, vocabulary: &Vocabulary) -> Vec<String> {
        let mark = |present: bool| if present { "" } else { "-" };
        let mut text = Vec::new();
        for (slot, present) in &self.scalars {
            text.push(format!("{}{}", mark(*present), vocabulary.name(*slot)));
        }
        for (slot, keys) in &self.maps {
            text.push(vocabulary.name(*slot).to_owned());
            for (key, present) in keys {
                let name = vocabulary.name(*slot);
                text.push(format!("{}{name}[{key}]", mark(*present)));
            }
        }
        text.sort();
        text
    }
}
