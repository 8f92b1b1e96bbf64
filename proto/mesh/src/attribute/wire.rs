//! The compressed wire form read in place: the server of the protocol looks at a few dozen values of each set once, so it
//! makes neither maps nor texts of them ([`super::codec`] does, for those who keep or write them).
//!
//! What generated code would do with a message is done here: fields in any order, unknown ones skipped, of two entries with
//! one key the last counts. Two messages in a field that has but one, which nobody writes, are not merged: the last counts.

use std::iter;

use prost::bytes::Buf as _;
use prost::encoding::{self, DecodeContext, WireType};
use prost_types::{Duration, Timestamp};

use super::bag::{MapRef, ValueRef};
use super::codec::Words;

/// Bytes that are not the message that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// They are no protobuf at all.
    #[error("{0}")]
    Wire(#[from] prost::DecodeError),
    /// They end too early.
    #[error("failed to decode a Protobuf message: it ends too early")]
    TooShort,
    /// A field is of another type than it should be.
    #[error("failed to decode a Protobuf message: field {0} has an unexpected wire type")]
    WireType(u32),
    /// A text that is none.
    #[error("failed to decode a Protobuf message: field {0} is not UTF-8")]
    Text(u32),
}

/// What a map's entry consists of: field 1 as a number, field 2 as a number, field 2 as bytes.
const KEY: u8 = 1 << 3;
const NUMBER: u8 = 2 << 3;
const TEXT: u8 = 2 << 3 | 2;

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// Integers, enumerations and booleans.
    Varint(u64),
    /// Texts, bytes, messages, and entries of maps.
    Bytes(&'a [u8]),
    /// Doubles.
    Fixed64(u64),
    /// Nothing of this protocol.
    Other,
}

/// One set of attributes as it came, its words found.
#[derive(Clone, Debug, Default)]
pub struct EncodedSet<'a> {
    body: &'a [u8],
    words: Vec<&'a str>,
}

/// A string map as it came: pairs of indices.
#[derive(Clone, Copy, Debug)]
pub struct EncodedMap<'a>(&'a [u8]);

/// The fields of a message.
pub fn fields(
    mut message: &[u8],
) -> impl Iterator<Item = Result<(u32, Field<'_>), InvalidMessage>> {
    iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = next(&mut message);
        if field.is_err() {
            message = &[];
        }
        Some(field)
    })
}

#[inline]
fn next<'a>(rest: &mut &'a [u8]) -> Result<(u32, Field<'a>), InvalidMessage> {
    // Bytes under a key of one byte: texts, messages, entries.
    if let [key, after @ ..] = *rest
        && *key < 0x80
        && *key & 7 == 2
        && *key >= 8
        && let Some((length, after)) = short(after)
        && let Ok(length) = usize::try_from(length)
        && let Some((taken, left)) = after.split_at_checked(length)
    {
        *rest = left;
        return Ok((u32::from(*key >> 3), Field::Bytes(taken)));
    }
    any_field(rest)
}

/// The same for all that protobuf allows.
fn any_field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Field<'a>), InvalidMessage> {
    let (tag, wire_type) = encoding::decode_key(rest)?;
    let field = match wire_type {
        WireType::Varint => Field::Varint(encoding::decode_varint(rest)?),
        WireType::LengthDelimited => {
            let length = encoding::decode_varint(rest)?;
            let taken = usize::try_from(length)
                .ok()
                .and_then(|length| rest.split_at_checked(length));
            let (taken, left) = taken.ok_or(InvalidMessage::TooShort)?;
            *rest = left;
            Field::Bytes(taken)
        }
        WireType::SixtyFourBit => {
            let bits = rest.try_get_u64_le();
            Field::Fixed64(bits.map_err(|_| InvalidMessage::TooShort)?)
        }
        WireType::ThirtyTwoBit | WireType::StartGroup | WireType::EndGroup => {
            encoding::skip_field(wire_type, tag, rest, DecodeContext::default())?;
            Field::Other
        }
    };
    Ok((tag, field))
}

impl<'a> Field<'a> {
    /// As bytes or a message; `tag` is for the error.
    ///
    /// # Errors
    /// When it is a number.
    #[inline]
    pub fn bytes(self, tag: u32) -> Result<&'a [u8], InvalidMessage> {
        match self {
            Field::Bytes(bytes) => Ok(bytes),
            _ => Err(InvalidMessage::WireType(tag)),
        }
    }

    /// As a text.
    ///
    /// # Errors
    /// When it is none.
    pub fn text(self, tag: u32) -> Result<&'a str, InvalidMessage> {
        std::str::from_utf8(self.bytes(tag)?).map_err(|_| InvalidMessage::Text(tag))
    }

    /// As an integer, enumeration or boolean.
    ///
    /// # Errors
    /// When it is something else.
    #[inline]
    pub fn varint(self, tag: u32) -> Result<u64, InvalidMessage> {
        match self {
            Field::Varint(number) => Ok(number),
            _ => Err(InvalidMessage::WireType(tag)),
        }
    }

    /// As an `int32` or `uint32`: of what is longer the lower bits count.
    ///
    /// # Errors
    /// When it is something else.
    #[allow(clippy::cast_possible_truncation, reason = "the wire form's own rule")]
    pub fn int32(self, tag: u32) -> Result<i32, InvalidMessage> {
        Ok(self.varint(tag)? as i32)
    }
}

/// A `sint32`, folded so that small negative numbers are short.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the wire form's own rule"
)]
#[inline]
fn unfold(number: u64) -> i32 {
    let number = number as u32;
    (number >> 1) as i32 ^ -((number & 1) as i32)
}

/// A number of one or two bytes, as almost all are.
#[inline]
fn short(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match bytes {
        [low, rest @ ..] if *low < 0x80 => Some((u64::from(*low), rest)),
        [low, high, rest @ ..] if *high < 0x80 => {
            Some((u64::from(*low & 0x7f) | u64::from(*high) << 7, rest))
        }
        _ => None,
    }
}

/// The key and the value of a map's entry.
#[inline]
fn entry(bytes: &[u8]) -> Result<(i32, Option<Field<'_>>), InvalidMessage> {
    // As everybody writes it: the key, then the value, and nothing else.
    if let [KEY, rest @ ..] = bytes
        && let Some((key, rest)) = short(rest)
    {
        if let [NUMBER, rest @ ..] = rest
            && let Some((number, [])) = short(rest)
        {
            return Ok((unfold(key), Some(Field::Varint(number))));
        }
        if let [TEXT, rest @ ..] = rest
            && let Some((length, text)) = short(rest)
            && length == text.len() as u64
        {
            return Ok((unfold(key), Some(Field::Bytes(text))));
        }
    }
    any_entry(bytes)
}

/// The same for all that protobuf allows.
fn any_entry(mut bytes: &[u8]) -> Result<(i32, Option<Field<'_>>), InvalidMessage> {
    let (mut key, mut value) = (0, None);
    while !bytes.is_empty() {
        match next(&mut bytes)? {
            (1, field) => key = unfold(field.varint(1)?),
            (2, field) => value = Some(field),
            _ => {}
        }
    }
    Ok((key, value))
}

/// Seconds and nanoseconds of a timestamp or duration.
#[allow(clippy::cast_possible_wrap, reason = "the wire form's own rule")]
fn time(bytes: &[u8]) -> Result<(i64, i32), InvalidMessage> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in fields(bytes) {
        match field? {
            (1, field) => seconds = field.varint(1)? as i64,
            (2, field) => nanos = field.int32(2)?,
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

impl<'a> EncodedSet<'a> {
    /// Finds the words of a `CompressedAttributes`.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(body: &'a [u8]) -> Result<Self, InvalidMessage> {
        let mut words = Vec::new();
        for field in fields(body) {
            if let (1, word) = field? {
                if words.is_empty() {
                    // Where there is one there are some dozens.
                    words.reserve(32);
                }
                words.push(word.text(1)?);
            }
        }
        Ok(Self { body, words })
    }

    /// The words that came with it.
    #[must_use]
    pub fn words(&self) -> &[&'a str] {
        &self.words
    }

    /// Gives every value to `each`, in the order of the message, with the index of its name. A string whose word does not
    /// exist comes as `None`.
    ///
    /// # Errors
    /// When it is not what it should be, or `each` says so.
    pub fn each<'w, E: From<InvalidMessage>>(
        &self,
        words: Words<'w>,
        mut each: impl FnMut(i32, Option<ValueRef<'w>>) -> Result<(), E>,
    ) -> Result<(), E>
    where
        'a: 'w,
    {
        let mut rest = self.body;
        while !rest.is_empty() {
            let (tag, field) = next(&mut rest)?;
            if !(2..=9).contains(&tag) {
                continue;
            }
            let (name, value) = entry(field.bytes(tag)?)?;
            each(name, read_value(tag, value, words)?)?;
        }
        Ok(())
    }
}

/// The value in an entry of the map `tag`; what is left out is the type's zero.
#[inline]
#[allow(clippy::cast_possible_wrap, reason = "the wire form's own rule")]
fn read_value<'w, 'a: 'w>(
    tag: u32,
    value: Option<Field<'a>>,
    words: Words<'w>,
) -> Result<Option<ValueRef<'w>>, InvalidMessage> {
    let number = || value.map_or(Ok(0), |value| value.varint(tag));
    let bytes = || value.map_or(Ok([].as_slice()), |value| value.bytes(tag));
    Ok(Some(match tag {
        2 => return Ok(words.get(unfold(number()?)).map(ValueRef::String)),
        3 => ValueRef::Int64(number()? as i64),
        4 => ValueRef::Double(match value {
            None => 0.0,
            Some(Field::Fixed64(bits)) => f64::from_bits(bits),
            Some(_) => return Err(InvalidMessage::WireType(tag)),
        }),
        5 => ValueRef::Bool(number()? != 0),
        6 => {
            let (seconds, nanos) = time(bytes()?)?;
            ValueRef::Timestamp(Timestamp { seconds, nanos })
        }
        7 => {
            let (seconds, nanos) = time(bytes()?)?;
            ValueRef::Duration(Duration { seconds, nanos })
        }
        8 => ValueRef::Bytes(bytes()?),
        _ => ValueRef::StringMap(MapRef::Encoded(EncodedMap::read(bytes()?)?, words)),
    }))
}

impl<'a> EncodedMap<'a> {
    /// A `StringMap` whose entries can all be read.
    ///
    /// # Errors
    /// When one cannot.
    pub fn read(bytes: &'a [u8]) -> Result<Self, InvalidMessage> {
        for field in fields(bytes) {
            if let (1, field) = field? {
                let (_, value) = entry(field.bytes(1)?)?;
                value.map_or(Ok(0), |value| value.varint(2))?;
            }
        }
        Ok(Self(bytes))
    }

    /// Its entries; of two with one key the last counts.
    pub fn entries(self) -> impl Iterator<Item = (i32, i32)> + use<'a> {
        // All of them have been read once.
        fields(self.0).filter_map(|field| {
            let (1, Field::Bytes(bytes)) = field.ok()? else {
                return None;
            };
            let (key, value) = entry(bytes).ok()?;
            let value = value.map_or(Some(0), |value| value.varint(2).ok())?;
            Some((key, unfold(value)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message as _;
    use proto::istio::mixer::v1::{CompressedAttributes, StringMap};

    use crate::attribute::{Value, codec};

    type Values = BTreeMap<(i32, u8), Option<Value>>;

    /// Of two values of one type under one name the last counts.
    fn read(bytes: &[u8]) -> Result<Values, InvalidMessage> {
        let set = EncodedSet::read(bytes)?;
        let mut values = Values::new();
        set.each(Words::borrowed(set.words()), |name, value| {
            let kind = value.map_or(0, |value| value.rank());
            values.insert((name, kind), value.map(|value| sorted(value.to_value())));
            Ok::<_, InvalidMessage>(())
        })?;
        Ok(values)
    }

    fn generated(message: &CompressedAttributes) -> Values {
        codec::entries(message, Words::new(&message.words))
            .map(|(name, value)| {
                let kind = value.map_or(0, |value| value.rank());
                ((name, kind), value.map(|value| sorted(value.to_value())))
            })
            .collect()
    }

    fn sorted(value: Value) -> Value {
        match value {
            Value::StringMap(mut entries) => {
                entries.sort();
                Value::StringMap(entries)
            }
            other => other,
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_generated_code_reads(
            words in proptest::collection::vec("[a-z]{0,4}", 0..6),
            strings in proptest::collection::btree_map(-8..230i32, -8..230i32, 0..6),
            int64s in proptest::collection::btree_map(any::<i32>(), any::<i64>(), 0..6),
            doubles in proptest::collection::btree_map(-5..300i32, -1e9..1e9, 0..3),
            bools in proptest::collection::btree_map(-5..300i32, any::<bool>(), 0..3),
            times in proptest::collection::btree_map(-5..300i32, (any::<i64>(), any::<i32>()), 0..3),
            bytes in proptest::collection::btree_map(-5..300i32, proptest::collection::vec(any::<u8>(), 0..5), 0..3),
            maps in proptest::collection::btree_map(
                -5..300i32, proptest::collection::btree_map(-6..230i32, -6..230i32, 0..4), 0..3),
        ) {
            let time = |(seconds, nanos): &(i64, i32)| Timestamp { seconds: *seconds, nanos: *nanos };
            let span = |(seconds, nanos): &(i64, i32)| Duration { seconds: *seconds, nanos: *nanos };
            let message = CompressedAttributes {
                words, strings, int64s, doubles, bools, bytes,
                timestamps: times.iter().map(|(name, value)| (*name, time(value))).collect(),
                durations: times.iter().map(|(name, value)| (*name, span(value))).collect(),
                string_maps: maps.into_iter().map(|(name, entries)| (name, StringMap { entries })).collect(),
            };
            prop_assert_eq!(read(&message.encode_to_vec()).unwrap(), generated(&message));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            // QUIRK: generated code takes an entry of a map under any wire type, so it may read what is refused here.
            if let (Ok(ours), Ok(message)) = (read(&bytes), CompressedAttributes::decode(bytes.as_slice())) {
                prop_assert_eq!(ours, generated(&message));
            }
        }
    }

    #[test]
    fn a_map_is_looked_up_as_generated_code_would() {
        // Index -1 and -2 mean the same word; -5 means none.
        let words = ["k", "k", "a", "b"];
        for (entries, want) in [
            (vec![(-1, -3)], Some("a")),
            (vec![(-1, -3), (-1, -4)], Some("b")),
            (vec![(-1, -3), (-1, -5)], None),
            (vec![(-1, -5), (-1, -3)], Some("a")),
            (vec![(-1, -3), (-2, -4)], Some("b")),
            (vec![(-2, -4), (-1, -3)], Some("b")),
            (vec![(-3, -4)], None),
        ] {
            let maps = entries.iter().map(|entry| StringMap {
                entries: [*entry].into(),
            });
            let bytes: Vec<u8> = maps.flat_map(|map| map.encode_to_vec()).collect();
            let words = Words::borrowed(&words);
            let map = MapRef::Encoded(EncodedMap::read(&bytes).unwrap(), words);
            let generated = StringMap::decode(bytes.as_slice()).unwrap().entries;
            let generated = MapRef::Compressed(&generated, words);
            assert_eq!(
                (map.get("k"), generated.get("k")),
                (want, want),
                "{entries:?}"
            );
        }
    }

    #[test]
    fn the_last_of_two_counts_and_words_may_come_late() {
        let part = |word: &str, value: i64| CompressedAttributes {
            words: vec![word.to_owned()],
            strings: [(17, -2)].into(),
            int64s: [(23, value)].into(),
            ..CompressedAttributes::default()
        };
        let mut bytes = part("a", 1).encode_to_vec();
        bytes.extend(part("b", 2).encode_to_vec());
        let read = read(&bytes).unwrap();
        let values: Vec<_> = read.values().flatten().cloned().collect();
        assert_eq!(values, ["b".to_owned().into(), Value::Int64(2)]);
    }
}
