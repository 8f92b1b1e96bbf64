//! What one request has: a slot for every attribute of the vocabulary, filled with values that borrow from the message.

use proto::istio::mixer::v1::CompressedAttributes;
use proto_mesh::attribute::ValueRef;
use proto_mesh::attribute::codec::{self, InvalidAttributes, Words};

use super::vocabulary::{Slot, Vocabulary};

/// The attributes of a request.
#[derive(Clone, Debug)]
pub(crate) struct Bag<'a> {
    vocabulary: &'a Vocabulary,
    values: Vec<Option<ValueRef<'a>>>,
}

/// What the words that travel with a message mean, worked out once for all sets of attributes that share them.
#[derive(Debug)]
pub(crate) struct OwnWords {
    slots: Vec<Option<Slot>>,
    /// By slot: whether one of the words means it. Empty when none does.
    is_named: Vec<bool>,
}

impl OwnWords {
    pub(crate) fn new(vocabulary: &Vocabulary, words: Words<'_>) -> Self {
        let slots: Vec<_> = words
            .own()
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
            values: vec![None; vocabulary.len()],
        }
    }

    /// What a message has. Attributes that no manifest declares are of no use to anybody and left out.
    ///
    /// A name that is both a word of the message and a global word means the former, as on the other side.
    pub(crate) fn decode(
        vocabulary: &'a Vocabulary,
        message: &'a CompressedAttributes,
        words: Words<'a>,
        own: &OwnWords,
    ) -> Self {
        let mut bag = Self::new(vocabulary);
        for (index, value) in codec::entries(message, words) {
            let slot = match usize::try_from(index) {
                Ok(position) => vocabulary
                    .of_global_word(position)
                    .filter(|slot| !own.names(*slot)),
                Err(_) => own.get(index),
            };
            let Some(slot) = slot else {
                continue;
            };
            let place = &mut bag.values[usize::from(slot.0)];
            if value.is_none() {
                tracing::debug!(target: "api", attribute = vocabulary.name(slot),
                    "a string attribute points to a word that does not exist");
            }
            // The first map that has the name wins.
            if place.is_none() {
                *place = value;
            }
        }
        bag
    }

    /// Applies a message of a delta-encoded report on top of what is there.
    pub(crate) fn apply(
        &mut self,
        message: &'a CompressedAttributes,
        words: Words<'a>,
    ) -> Result<(), InvalidAttributes> {
        let mut seen = Vec::with_capacity(32);
        for (index, value) in codec::entries(message, words) {
            let name = words
                .get(index)
                .ok_or(InvalidAttributes::UnknownIndex(index))?;
            let value = value.ok_or(InvalidAttributes::UnknownIndex(index))?;
            if seen.contains(&name) {
                return Err(InvalidAttributes::Duplicate(name.to_owned()));
            }
            seen.push(name);
            if let Some(slot) = self.slot_of(name) {
                self.set(slot, value);
            }
        }
        Ok(())
    }

    fn slot_of(&self, name: &str) -> Option<Slot> {
        self.vocabulary.find(name).map(|attribute| attribute.slot)
    }

    /// The value in a slot.
    pub(crate) fn get(&self, slot: Slot) -> Option<ValueRef<'a>> {
        self.values[usize::from(slot.0)]
    }

    /// Puts a value into a slot.
    pub(crate) fn set(&mut self, slot: Slot, value: ValueRef<'a>) {
        self.values[usize::from(slot.0)] = Some(value);
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
