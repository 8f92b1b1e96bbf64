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
    ) -> Self {
        let mut bag = Self::new(vocabulary);
        let own: Vec<Option<Slot>> = words.own().iter().map(|word| bag.slot_of(word)).collect();
        for (index, value) in codec::entries(message, words) {
            let slot = match usize::try_from(index) {
                Ok(position) => vocabulary
                    .of_global_word(position)
                    .filter(|slot| !own.contains(&Some(*slot))),
                Err(_) => own_slot(&own, index),
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

fn own_slot(own: &[Option<Slot>], index: i32) -> Option<Slot> {
    usize::try_from(-i64::from(index) - 1)
        .ok()
        .and_then(|position| own.get(position).copied().flatten())
}
