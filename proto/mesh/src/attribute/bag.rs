//! Attributes in memory: borrowed values (read in place from a decoded message) and an owned bag for whoever produces them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prost_types::{Duration, Timestamp};
use proto::istio::mixer::v1 as wire;

use super::codec::Words;
use super::wire::EncodedMap;

/// A value, borrowed from where it is held; `M` is how string maps are held there.
#[derive(Clone, Copy, Debug)]
pub enum ValueRef<'a, M = MapRef<'a>> {
    /// STRING, DNS_NAME, EMAIL_ADDRESS, URI.
    String(&'a str),
    /// INT64.
    Int64(i64),
    /// DOUBLE.
    Double(f64),
    /// BOOL.
    Bool(bool),
    /// TIMESTAMP.
    Timestamp(Timestamp),
    /// DURATION.
    Duration(Duration),
    /// IP_ADDRESS, or raw bytes.
    Bytes(&'a [u8]),
    /// STRING_MAP.
    StringMap(M),
}

/// A string map, borrowed.
pub trait TextMap<'a>: Copy {
    /// Every entry.
    fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)>;

    /// The value of `key`.
    #[must_use]
    fn get(&self, key: &str) -> Option<&'a str> {
        let mut found = self.iter().filter(|(candidate, _)| *candidate == key);
        found.next().map(|(_, value)| value)
    }
}

/// A string map of a message or of attributes.
#[derive(Clone, Copy, Debug)]
pub enum MapRef<'a> {
    /// Indices into word lists.
    Compressed(&'a BTreeMap<i32, i32>, Words<'a>),
    /// The same, as it came.
    Encoded(EncodedMap<'a>, Words<'a>),
    /// Text.
    Plain(&'a [(Cow<'static, str>, String)]),
}

/// A value that owns what it holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// STRING, DNS_NAME, EMAIL_ADDRESS, URI.
    String(Cow<'static, str>),
    /// INT64.
    Int64(i64),
    /// DOUBLE.
    Double(f64),
    /// BOOL.
    Bool(bool),
    /// TIMESTAMP.
    Timestamp(Timestamp),
    /// DURATION.
    Duration(Duration),
    /// IP_ADDRESS, or raw bytes.
    Bytes(Vec<u8>),
    /// STRING_MAP.
    StringMap(Vec<(Cow<'static, str>, String)>),
}

/// Attributes by name. A request has a few dozen, so a list that is searched from the front beats a hash.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes {
    entries: Vec<(Cow<'static, str>, Value)>,
}

impl<'a> MapRef<'a> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        if let MapRef::Encoded(map, words) = self {
            // Nobody has seen to it that every key is there but once: as in a map, the last of an index counts, and of two
            // indices that mean the same word the lower one.
            let named = map
                .entries()
                .filter(|(index, _)| words.get(*index) == Some(key));
            let found = named.reduce(|known, next| if next.0 <= known.0 { next } else { known });
            return found.and_then(|(_, value)| words.get(value));
        }
        let mut found = self.iter().filter(|(candidate, _)| *candidate == key);
        found.next().map(|(_, value)| value)
    }

    /// Every entry whose key and value are words that exist. What came twice in a message that is read in place is there twice.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let (compressed, encoded, plain) = match *self {
            MapRef::Compressed(entries, words) => (Some((entries, words)), None, None),
            MapRef::Encoded(map, words) => (None, Some((map, words)), None),
            MapRef::Plain(entries) => (None, None, Some(entries)),
        };
        let encoded = encoded.into_iter().flat_map(|(map, words)| {
            map.entries()
                .filter_map(move |(key, value)| Some((words.get(key)?, words.get(value)?)))
        });
        let compressed = compressed.into_iter().flat_map(|(entries, words)| {
            entries
                .iter()
                .filter_map(move |(key, value)| Some((words.get(*key)?, words.get(*value)?)))
        });
        let plain = plain
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_ref(), value.as_str()));
        compressed.chain(encoded).chain(plain)
    }
}

impl<'a> TextMap<'a> for MapRef<'a> {
    fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        MapRef::iter(self)
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        MapRef::get(self, key)
    }
}

impl<'a, M: TextMap<'a>> ValueRef<'a, M> {
    /// The place of its type among the maps of a message, in the order in which the server looks for a name.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self {
            ValueRef::String(_) => 0,
            ValueRef::StringMap(_) => 1,
            ValueRef::Int64(_) => 2,
            ValueRef::Double(_) => 3,
            ValueRef::Bool(_) => 4,
            ValueRef::Timestamp(_) => 5,
            ValueRef::Duration(_) => 6,
            ValueRef::Bytes(_) => 7,
        }
    }

    /// A copy that owns what it holds.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match self {
            ValueRef::String(text) => Value::String(Cow::Owned((*text).to_owned())),
            ValueRef::Int64(number) => Value::Int64(*number),
            ValueRef::Double(number) => Value::Double(*number),
            ValueRef::Bool(flag) => Value::Bool(*flag),
            ValueRef::Timestamp(time) => Value::Timestamp(*time),
            ValueRef::Duration(duration) => Value::Duration(*duration),
            ValueRef::Bytes(bytes) => Value::Bytes(bytes.to_vec()),
            ValueRef::StringMap(map) => Value::StringMap(
                map.iter()
                    .map(|(key, value)| (Cow::Owned(key.to_owned()), value.to_owned()))
                    .collect(),
            ),
        }
    }
}

impl Value {
    /// The borrowed form.
    #[must_use]
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Value::String(text) => ValueRef::String(text),
            Value::Int64(number) => ValueRef::Int64(*number),
            Value::Double(number) => ValueRef::Double(*number),
            Value::Bool(flag) => ValueRef::Bool(*flag),
            Value::Timestamp(time) => ValueRef::Timestamp(*time),
            Value::Duration(duration) => ValueRef::Duration(*duration),
            Value::Bytes(bytes) => ValueRef::Bytes(bytes),
            Value::StringMap(entries) => ValueRef::StringMap(MapRef::Plain(entries)),
        }
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Value::String(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::String(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int64(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Bool(flag)
    }
}

impl Attributes {
    /// No attributes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `name`, overwriting what it was.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) {
        let (name, value) = (name.into(), value.into());
        match self.entries.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((name, value)),
        }
    }

    /// The value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.entries
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }

    /// The value of `name`, if it is text.
    #[must_use]
    pub fn get_string(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Forgets `name`.
    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|(known, _)| known != name);
    }

    /// Sets everything that `other` has.
    pub fn merge(&mut self, other: &Attributes) {
        for (name, value) in &other.entries {
            self.set(name.clone(), value.clone());
        }
    }

    /// Every attribute, in the order in which they were first set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(name, value)| (name.as_ref(), value))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// From the uncompressed message that configuration and the forwarding header use. Values without a type are left out.
    #[must_use]
    pub fn from_wire(message: &wire::Attributes) -> Self {
        use wire::attributes::attribute_value::Value as Wire;
        let mut attributes = Self::new();
        for (name, value) in &message.attributes {
            let value = match &value.value {
                Some(Wire::StringValue(text)) => Value::String(Cow::Owned(text.clone())),
                Some(Wire::Int64Value(number)) => Value::Int64(*number),
                Some(Wire::DoubleValue(number)) => Value::Double(*number),
                Some(Wire::BoolValue(flag)) => Value::Bool(*flag),
                Some(Wire::BytesValue(bytes)) => Value::Bytes(bytes.to_vec()),
                Some(Wire::TimestampValue(time)) => Value::Timestamp(*time),
                Some(Wire::DurationValue(duration)) => Value::Duration(*duration),
                Some(Wire::StringMapValue(map)) => Value::StringMap(
                    map.entries
                        .iter()
                        .map(|(key, value)| (Cow::Owned(key.clone()), value.clone()))
                        .collect(),
                ),
                None => continue,
            };
            attributes.set(name.clone(), value);
        }
        attributes
    }

    /// The uncompressed message.
    #[must_use]
    pub fn to_wire(&self) -> wire::Attributes {
        use wire::attributes::{AttributeValue, StringMap, attribute_value::Value as Wire};
        let attributes = self
            .entries
            .iter()
            .map(|(name, value)| {
                let value = match value {
                    Value::String(text) => Wire::StringValue(text.clone().into_owned()),
                    Value::Int64(number) => Wire::Int64Value(*number),
                    Value::Double(number) => Wire::DoubleValue(*number),
                    Value::Bool(flag) => Wire::BoolValue(*flag),
                    Value::Bytes(bytes) => Wire::BytesValue(bytes.clone()),
                    Value::Timestamp(time) => Wire::TimestampValue(*time),
                    Value::Duration(duration) => Wire::DurationValue(*duration),
                    Value::StringMap(entries) => Wire::StringMapValue(StringMap {
                        entries: entries
                            .iter()
                            .map(|(key, value)| (key.clone().into_owned(), value.clone()))
                            .collect(),
                    }),
                };
                (
                    name.clone().into_owned(),
                    AttributeValue { value: Some(value) },
                )
            })
            .collect();
        wire::Attributes { attributes }
    }
}
