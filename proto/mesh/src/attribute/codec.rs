//! The compressed wire form: every word of a message is an index. An index from 0 up is a position in the global list; a
//! negative one is the slot `-index - 1` of the words that travel with the message.

use indexmap::IndexSet;
use proto::istio::mixer::v1::{CompressedAttributes, StringMap};

use super::bag::{Attributes, MapRef, TextMap, ValueRef};
use super::dictionary;
use super::wire::InvalidMessage;

/// The words that a message's indices point into.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    own: Own<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Own<'a> {
    Owned(&'a [String]),
    Borrowed(&'a [&'a str]),
}

/// A message that cannot be decoded strictly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAttributes {
    /// An index that no word list has.
    #[error("attribute index {0} is not defined in the available dictionaries")]
    UnknownIndex(i32),
    /// One name with two values.
    #[error("duplicate attribute {0}")]
    Duplicate(String),
    /// The message itself.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
}

/// Collects words and encodes attributes; several sets may share one encoder and its words.
#[derive(Debug)]
pub struct Encoder {
    /// Seeded anew in every process: words come from requests.
    words: IndexSet<String, foldhash::quality::RandomState>,
    global_words: usize,
}

impl<'a> Words<'a> {
    /// Words that travel with a message.
    #[must_use]
    pub fn new(own: &'a [String]) -> Self {
        Self {
            own: Own::Owned(own),
        }
    }

    /// The same, of a message that is read in place.
    #[must_use]
    pub fn borrowed(own: &'a [&'a str]) -> Self {
        Self {
            own: Own::Borrowed(own),
        }
    }

    /// The word of an index.
    #[must_use]
    pub fn get(&self, index: i32) -> Option<&'a str> {
        match usize::try_from(index) {
            Ok(position) => dictionary::WORDS.get(position).copied(),
            // -1 is slot 0; widened, because the smallest i32 has no positive twin.
            Err(_) => {
                let slot = usize::try_from(-(i64::from(index)) - 1).ok()?;
                match self.own {
                    Own::Owned(own) => own.get(slot).map(String::as_str),
                    Own::Borrowed(own) => own.get(slot).copied(),
                }
            }
        }
    }
}

/// Every value of a message with the index of its name, in the order in which the server looks: strings, string maps,
/// integers, doubles, booleans, timestamps, durations, bytes. A string whose word does not exist comes as `None`.
pub fn entries<'a>(
    message: &'a CompressedAttributes,
    words: Words<'a>,
) -> impl Iterator<Item = (i32, Option<ValueRef<'a>>)> + use<'a> {
    let strings = message
        .strings
        .iter()
        .map(move |(name, word)| (*name, words.get(*word).map(ValueRef::String)));
    let maps = message.string_maps.iter().map(move |(name, map)| {
        let map = MapRef::Compressed(&map.entries, words);
        (*name, Some(ValueRef::StringMap(map)))
    });
    let int64s = message
        .int64s
        .iter()
        .map(|(name, value)| (*name, Some(ValueRef::Int64(*value))));
    let doubles = message
        .doubles
        .iter()
        .map(|(name, value)| (*name, Some(ValueRef::Double(*value))));
    let bools = message
        .bools
        .iter()
        .map(|(name, value)| (*name, Some(ValueRef::Bool(*value))));
    let timestamps = message
        .timestamps
        .iter()
        .map(|(name, value)| (*name, Some(ValueRef::Timestamp(*value))));
    let durations = message
        .durations
        .iter()
        .map(|(name, value)| (*name, Some(ValueRef::Duration(*value))));
    let bytes = message
        .bytes
        .iter()
        .map(|(name, value)| (*name, Some(ValueRef::Bytes(value))));
    strings
        .chain(maps)
        .chain(int64s)
        .chain(doubles)
        .chain(bools)
        .chain(timestamps)
        .chain(durations)
        .chain(bytes)
}

/// Decodes a whole message into an owned bag.
///
/// # Errors
/// When an index has no word, or a name comes twice.
pub fn decode(
    message: &CompressedAttributes,
    words: Words<'_>,
) -> Result<Attributes, InvalidAttributes> {
    let mut attributes = Attributes::new();
    for (index, value) in entries(message, words) {
        let name = words
            .get(index)
            .ok_or(InvalidAttributes::UnknownIndex(index))?;
        let value = value.ok_or(InvalidAttributes::UnknownIndex(index))?;
        if attributes.get(name).is_some() {
            return Err(InvalidAttributes::Duplicate(name.to_owned()));
        }
        attributes.set(name.to_owned(), value.to_value());
    }
    Ok(attributes)
}

impl Encoder {
    /// An encoder for a peer that knows the first `global_words` of the global list.
    #[must_use]
    pub fn new(global_words: usize) -> Self {
        Self {
            words: IndexSet::default(),
            global_words,
        }
    }

    /// The index of `word`; a word that the peer does not know joins the message's own.
    pub fn index(&mut self, word: &str) -> i32 {
        if let Some(position) = dictionary::index_of(word)
            && position < self.global_words
        {
            return i32::try_from(position).unwrap_or(i32::MAX);
        }
        match self.words.get_index_of(word) {
            Some(slot) => index_of_slot(slot),
            None => index_of_slot(self.words.insert_full(word.to_owned()).0),
        }
    }

    /// Encodes one set. Its `words` stay empty: put [`Encoder::into_words`] there, or into `default_words`.
    pub fn encode<'a, M: TextMap<'a>>(
        &mut self,
        attributes: impl Iterator<Item = (&'a str, ValueRef<'a, M>)>,
    ) -> CompressedAttributes {
        let mut message = CompressedAttributes::default();
        for (name, value) in attributes {
            let name = self.index(name);
            match value {
                ValueRef::String(text) => {
                    message.strings.insert(name, self.index(text));
                }
                ValueRef::Int64(number) => {
                    message.int64s.insert(name, number);
                }
                ValueRef::Double(number) => {
                    message.doubles.insert(name, number);
                }
                ValueRef::Bool(flag) => {
                    message.bools.insert(name, flag);
                }
                ValueRef::Timestamp(time) => {
                    message.timestamps.insert(name, time);
                }
                ValueRef::Duration(duration) => {
                    message.durations.insert(name, duration);
                }
                ValueRef::Bytes(bytes) => {
                    message.bytes.insert(name, bytes.to_vec());
                }
                ValueRef::StringMap(map) => {
                    let entries = map
                        .iter()
                        .map(|(key, value)| (self.index(key), self.index(value)))
                        .collect();
                    message.string_maps.insert(name, StringMap { entries });
                }
            }
        }
        message
    }

    /// The words that are not global, in slot order.
    #[must_use]
    pub fn into_words(self) -> Vec<String> {
        self.words.into_iter().collect()
    }
}

/// -1 is slot 0.
fn index_of_slot(slot: usize) -> i32 {
    -i32::try_from(slot).unwrap_or(i32::MAX - 1) - 1
}

/// Encodes one bag into a message that stands alone.
#[must_use]
pub fn encode(attributes: &Attributes, global_words: usize) -> CompressedAttributes {
    let all = attributes.iter();
    encode_all(
        all.map(|(name, value)| (name, value.as_ref())),
        global_words,
    )
}

/// The same of attributes that are held otherwise.
pub fn encode_all<'a, M: TextMap<'a>>(
    attributes: impl Iterator<Item = (&'a str, ValueRef<'a, M>)>,
    global_words: usize,
) -> CompressedAttributes {
    let mut encoder = Encoder::new(global_words);
    let mut message = encoder.encode(attributes);
    message.words = encoder.into_words();
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Value;
    use proptest::prelude::*;
    use prost::Message;
    use std::borrow::Cow;

    fn any_word() -> impl Strategy<Value = String> {
        prop_oneof![
            (0..dictionary::WORDS.len()).prop_map(|at| dictionary::WORDS[at].to_owned()),
            "[a-z.]{0,12}",
            ".{0,6}",
        ]
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any_word().prop_map(Value::from),
            any::<i64>().prop_map(Value::Int64),
            (-1e9..1e9).prop_map(Value::Double),
            any::<bool>().prop_map(Value::Bool),
            (any::<i64>(), 0..1_000_000_000i32).prop_map(|(seconds, nanos)| {
                Value::Timestamp(prost_types::Timestamp { seconds, nanos })
            }),
            (any::<i64>(), 0..1_000_000_000i32).prop_map(|(seconds, nanos)| Value::Duration(
                prost_types::Duration { seconds, nanos }
            )),
            proptest::collection::vec(any::<u8>(), 0..16).prop_map(Value::Bytes),
            proptest::collection::btree_map(any_word(), any_word(), 0..5).prop_map(|map| {
                Value::StringMap(map.into_iter().map(|(k, v)| (Cow::Owned(k), v)).collect())
            }),
        ]
    }

    /// Maps are sorted by index on the wire, not by key.
    fn sorted(attributes: &Attributes) -> Vec<(String, Value)> {
        let mut entries: Vec<_> = attributes
            .iter()
            .map(|(name, value)| {
                let value = match value {
                    Value::StringMap(entries) => {
                        let mut entries = entries.clone();
                        entries.sort();
                        Value::StringMap(entries)
                    }
                    other => other.clone(),
                };
                (name.to_owned(), value)
            })
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(
            entries in proptest::collection::btree_map(any_word(), any_value(), 0..20),
            global_words in 0..=dictionary::WORDS.len(),
        ) {
            let mut attributes = Attributes::new();
            for (name, value) in entries {
                attributes.set(name, value);
            }
            let message = encode(&attributes, global_words);
            let message = CompressedAttributes::decode(message.encode_to_vec().as_slice()).unwrap();
            let back = decode(&message, Words::new(&message.words)).unwrap();
            prop_assert_eq!(sorted(&back), sorted(&attributes));
            prop_assert_eq!(
                sorted(&Attributes::from_wire(&attributes.to_wire())),
                sorted(&attributes)
            );
        }

        #[test]
        fn any_message_is_decoded_or_refused(
            words in proptest::collection::vec(".{0,4}", 0..4),
            strings in proptest::collection::btree_map(any::<i32>(), any::<i32>(), 0..6),
            int64s in proptest::collection::btree_map(-5..300i32, any::<i64>(), 0..6),
        ) {
            let message = CompressedAttributes { words, strings, int64s, ..Default::default() };
            // Only that it returns: the verdict depends on the indices.
            let _ = decode(&message, Words::new(&message.words));
        }
    }

    #[test]
    fn indices_follow_the_wire_rule() {
        let mut encoder = Encoder::new(222);
        assert_eq!(encoder.index("source.ip"), 0);
        assert_eq!(encoder.index("context.proxy_version"), 221);
        assert_eq!(encoder.index("mine"), -1);
        assert_eq!(encoder.index("yours"), -2);
        assert_eq!(encoder.index("mine"), -1);
        let mut old = Encoder::new(dictionary::BASE_WORDS);
        assert_eq!(old.index("source.ip"), 0);
        assert_eq!(old.index("context.proxy_version"), -1);
        let own = old.into_words();
        let words = Words::new(&own);
        assert_eq!(words.get(-1), Some("context.proxy_version"));
        assert_eq!(words.get(-2), None);
        assert_eq!(words.get(222), None);
        assert_eq!(words.get(i32::MIN), None);
    }

    #[test]
    fn a_name_with_two_values_is_refused() {
        let mut message = CompressedAttributes::default();
        message.strings.insert(0, 1);
        message.int64s.insert(0, 1);
        let words = Words::new(&[]);
        assert_eq!(
            decode(&message, words),
            Err(InvalidAttributes::Duplicate("source.ip".into()))
        );
    }
}
