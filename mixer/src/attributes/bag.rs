//! What one request has: a place for every attribute of the vocabulary, filled with values that borrow from the message.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use proto_mesh::attribute::ValueRef;
use proto_mesh::attribute::codec::{InvalidAttributes, Words};
use proto_mesh::attribute::wire::{EncodedSet, InvalidMessage};

use super::vocabulary::{Slot, Vocabulary};

/// The attributes of a request.
#[derive(Clone, Debug)]
pub(crate) struct Bag<'a> {
    vocabulary: &'a Vocabulary,
    /// By slot: the place among the values, from 1; 0 for what is not there. Small, as it is emptied for each set of a report.
    places: Box<[u16]>,
    values: Vec<ValueRef<'a>>,
}

/// What the words that travel with a message mean, worked out once for all sets of attributes that share them.
#[derive(Debug)]
pub(crate) struct OwnWords {
    slots: Vec<Option<Slot>>,
    /// By slot: whether one of the words means it. Empty when none does.
    is_named: Vec<bool>,
}

impl OwnWords {
    pub(crate) fn new(vocabulary: &Vocabulary, words: &[&str]) -> Self {
        let slots: Vec<_> = words
            .iter()
            .map(|word| vocabulary.find(word).map(|attribute| attribute.slot))
            .collect();
        let mut is_named = Vec::new();
        for slot in slots.iter().flatten() {
            is_named.resize(vocabulary.len(), false);
            is_named[usize::from(slot.0)] = true;
        }
        Self { slots, is_named }
    }

    /// The slot of an index from -1 down.
    fn get(&self, index: i32) -> Option<Slot> {
        usize::try_from(-i64::from(index) - 1)
            .ok()
            .and_then(|position| self.slots.get(position).copied().flatten())
    }

    fn names(&self, slot: Slot) -> bool {
        self.is_named.get(usize::from(slot.0)) == Some(&true)
    }
}

impl<'a> Bag<'a> {
    /// Nothing yet.
    pub(crate) fn new(vocabulary: &'a Vocabulary) -> Self {
        Self {
            vocabulary,
            places: vec![0; vocabulary.len()].into(),
            // A sidecar tells of some forty.
            values: Vec::with_capacity(48),
        }
    }

    /// The same attributes with places for more: `vocabulary` extends that of this bag.
    pub(crate) fn extended<'b>(&self, vocabulary: &'b Vocabulary) -> Bag<'b>
    where
        'a: 'b,
    {
        let mut places = self.places.to_vec();
        places.resize(vocabulary.len(), 0);
        Bag {
            vocabulary,
            places: places.into(),
            values: self.values.clone(),
        }
    }

    /// Takes what a message has, in the place of all that was there. Attributes that no manifest declares are of no use to
    /// anybody and left out.
    ///
    /// A name that is both a word of the message and a global word means the former, as on the other side.
    pub(crate) fn decode(
        &mut self,
        set: &EncodedSet<'a>,
        words: Words<'a>,
        own: &OwnWords,
    ) -> Result<(), InvalidMessage> {
        self.places.fill(0);
        self.values.clear();
        set.each(words, |index, value| {
            let slot = match usize::try_from(index) {
                Ok(position) => self
                    .vocabulary
                    .of_global_word(position)
                    .filter(|slot| !own.names(*slot)),
                Err(_) => own.get(index),
            };
            let Some(slot) = slot else {
                return Ok(());
            };
            let Some(value) = value else {
                tracing::debug!(target: "api", attribute = self.name(slot),
                    "a string attribute points to a word that does not exist");
                return Ok(());
            };
            // The first map that has the name wins, and of its entries the last.
            if self
                .get(slot)
                .is_none_or(|known| known.rank() >= value.rank())
            {
                self.set(slot, value);
            }
            Ok(())
        })
    }

    /// Applies a message of a delta-encoded report on top of what is there.
    pub(crate) fn apply(
        &mut self,
        set: &EncodedSet<'a>,
        words: Words<'a>,
    ) -> Result<(), InvalidAttributes> {
        let mut seen = HashMap::with_capacity_and_hasher(32, RandomState::default());
        set.each(words, |index, value| {
            let unknown = InvalidAttributes::UnknownIndex(index);
            let name = words.get(index).ok_or(unknown.clone())?;
            let value = value.ok_or(unknown)?;
            // An entry that comes twice is one entry.
            let entry = (index, value.rank());
            if seen.insert(name, entry).is_some_and(|known| known != entry) {
                return Err(InvalidAttributes::Duplicate(name.to_owned()));
            }
            if let Some(attribute) = self.vocabulary.find(name) {
                self.set(attribute.slot, value);
            }
            Ok(())
        })
    }

    /// The value in a slot.
    #[inline]
    pub(crate) fn get(&self, slot: Slot) -> Option<ValueRef<'a>> {
        match self.places[usize::from(slot.0)] {
            0 => None,
            place => Some(self.values[usize::from(place) - 1]),
        }
    }

    /// Puts a value into a slot.
    pub(crate) fn set(&mut self, slot: Slot, value: ValueRef<'a>) {
        let place = &mut self.places[usize::from(slot.0)];
        if *place == 0 {
            // There are no more values than slots, and fewer slots than numbers.
            *place = u16::try_from(self.values.len() + 1).unwrap_or(u16::MAX);
            self.values.push(value);
        } else {
            self.values[usize::from(*place) - 1] = value;
        }
    }

    /// The text of an attribute that has one.
    pub(crate) fn text(&self, slot: Slot) -> Option<&'a str> {
        match self.get(slot)? {
            ValueRef::String(text) => Some(text),
            _ => None,
        }
    }

    /// The name of a slot.
    pub(crate) fn name(&self, slot: Slot) -> &'a str {
        self.vocabulary.name(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use prost::Message as _;
    use proto::istio::mixer::v1::CompressedAttributes;
    use tokio::time::Instant;

    fn apply(message: &CompressedAttributes) -> Result<(), InvalidAttributes> {
        let vocabulary = Vocabulary::new(&[].into());
        let bytes = message.encode_to_vec();
        let set = EncodedSet::read(&bytes)?;
        Bag::new(&vocabulary).apply(&set, Words::borrowed(set.words()))
    }

    #[test]
    fn two_values_for_one_name_are_refused() {
        let message = CompressedAttributes {
            words: vec!["a".into(), "a".into()],
            int64s: [(-1, 1)].into(),
            ..CompressedAttributes::default()
        };
        assert!(apply(&message).is_ok());
        let other_type = CompressedAttributes {
            bools: [(-1, true)].into(),
            ..message.clone()
        };
        let other_index = CompressedAttributes {
            int64s: [(-1, 1), (-2, 1)].into(),
            ..message
        };
        for message in [other_type, other_index] {
            let refused = InvalidAttributes::Duplicate("a".into());
            assert_eq!(
                apply(&message).unwrap_err().to_string(),
                refused.to_string()
            );
        }
    }

    #[test]
    fn many_names_are_not_compared_with_each_other() {
        let message = CompressedAttributes {
            words: (0..60_000).map(|n| format!("{n:05}")).collect(),
            int64s: (-60_000..0).map(|name| (name, 1)).collect(),
            ..CompressedAttributes::default()
        };
        let begun = Instant::now();
        apply(&message).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
