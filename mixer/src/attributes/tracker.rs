//! Which attributes, and which keys of string maps, an answer depended on, and whether by value or by absence: the caller
//! may use the answer again for a request that is the same in these.

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
///
/// A check looks at a dozen things: lists that are searched cost less than trees.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracker {
    scalars: Vec<(Slot, bool)>,
    maps: Vec<Slot>,
    keys: Vec<(Slot, Box<str>, bool)>,
    hidden: Vec<Slot>,
}

impl Record for Tracker {
    fn scalar(&mut self, slot: Slot, present: bool) {
        if !self.scalars.iter().any(|(known, _)| *known == slot) && !self.hidden.contains(&slot) {
            self.scalars.push((slot, present));
        }
    }

    fn map(&mut self, slot: Slot) {
        if !self.maps.contains(&slot) && !self.hidden.contains(&slot) {
            self.maps.push(slot);
        }
    }

    fn hide(&mut self, slot: Slot) {
        self.hidden.push(slot);
    }

    fn key(&mut self, slot: Slot, key: &str, present: bool) {
        let mut known = self.keys.iter();
        if !known.any(|(at, known, _)| *at == slot && **known == *key)
            && !self.hidden.contains(&slot)
        {
            self.keys.push((slot, key.into(), present));
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
        let mut attribute_matches = Vec::with_capacity(self.scalars.len() + self.keys.len());
        let mut add = |slot: Slot, key: Option<&str>, present: bool| {
            let condition = if present {
                Condition::Exact
            } else {
                Condition::Absence
            };
            let known = vocabulary.global_word(slot);
            let known = known.filter(|position| *position < global_words);
            let name = known.and_then(|position| i32::try_from(position).ok());
            attribute_matches.push(AttributeMatch {
                name: name.unwrap_or_else(|| encoder.index(vocabulary.name(slot))),
                condition: condition.into(),
                regex: String::new(),
                // QUIRK: 0 means "no key", though it is also the index of source.ip.
                map_key: key.map_or(0, |key| encoder.index(key)),
            });
        };
        let mut scalars: Vec<_> = self.scalars.iter().collect();
        scalars.sort_unstable();
        for (slot, present) in scalars {
            add(*slot, None, *present);
        }
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_unstable();
        for (slot, key, present) in keys {
            add(*slot, Some(key), *present);
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
        for slot in &self.maps {
            text.push(vocabulary.name(*slot).to_owned());
        }
        for (slot, key, present) in &self.keys {
            let name = vocabulary.name(*slot);
            text.push(format!("{}{name}[{key}]", mark(*present)));
        }
        text.sort();
        text
    }
}
