//! What a proxy collects of one request, on top of what is the same for all of them: words are looked for in the vocabulary that
//! all records share, the names of the global list have places, so nothing is searched for twice and no text is copied.

use std::ops::Range;
use std::rc::Rc;

use prost_types::{Duration, Timestamp};

use super::bag::{Attributes, TextMap, ValueRef};
use super::dictionary::WORDS;
use super::name::{Known, Name};
use super::word::{Vocabulary, Word};

/// Attributes that many records share.
#[derive(Debug)]
pub struct Base {
    pub(super) values: Values,
    vocabulary: Rc<Vocabulary>,
}

/// The attributes of one request.
#[derive(Clone, Debug)]
pub struct Record {
    base: Rc<Base>,
    /// Some of the base's values do not count here.
    overrides: bool,
    own: Values,
}

/// Values by name.
#[derive(Clone, Debug)]
pub(super) struct Values {
    entries: Vec<(Key, Slot)>,
    places: Places,
    bytes: Vec<u8>,
    pairs: Vec<Pair>,
}

/// The name of a value.
#[derive(Clone, Debug)]
pub(super) enum Key {
    /// Of the global list.
    Known(Known),
    /// Any other.
    Other(Word),
}

/// Where the entry of each known name is; [`NOWHERE`] for none.
#[derive(Clone, Debug)]
struct Places([u16; WORDS.len()]);

const NOWHERE: u16 = u16::MAX;
/// Most requests have fewer headers and parameters, and fewer bytes in addresses.
const SMALL: usize = 512;

/// A value of a record.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    Text(Word),
    Int64(i64),
    Double(f64),
    Bool(bool),
    Timestamp(Timestamp),
    Duration(Duration),
    Bytes(Span),
    Pairs(Span),
}

/// A part of a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

/// A value of a record.
pub type RecordRef<'a> = ValueRef<'a, Pairs<'a>>;

/// A string map of a record.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a>(&'a [Pair]);

/// A string map that is being written.
#[derive(Debug)]
pub struct Entries<'a> {
    vocabulary: &'a Vocabulary,
    pairs: &'a mut Vec<Pair>,
}

/// An entry of a string map in a record.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) key: Word,
    pub(super) value: Word,
}

impl Key {
    fn find(name: &str, vocabulary: &Vocabulary) -> Self {
        let word = vocabulary.word(name.as_bytes());
        word.known().map_or(Key::Other(word), Key::Known)
    }

    fn as_str(&self) -> &str {
        match self {
            Key::Known(name) => name.as_str(),
            Key::Other(name) => name.as_str(),
        }
    }
}

impl Places {
    const NONE: Self = Places([NOWHERE; WORDS.len()]);

    fn get(&self, name: Known) -> Option<usize> {
        let place = self.0[name.position()];
        (place != NOWHERE).then_some(usize::from(place))
    }

    fn set(&mut self, name: Known, place: usize) {
        self.0[name.position()] = u16::try_from(place).unwrap_or(NOWHERE);
    }
}

impl Base {
    /// The attributes to share; the words of all records on them come from `vocabulary`.
    #[must_use]
    pub fn new(attributes: &Attributes, vocabulary: &Rc<Vocabulary>) -> Rc<Self> {
        let mut values = Values::with_capacity(attributes.len());
        for (name, value) in attributes.iter() {
            let slot = values.store(value.as_ref(), vocabulary);
            values.put(Key::find(name, vocabulary), slot);
        }
        Rc::new(Self {
            values,
            vocabulary: vocabulary.clone(),
        })
    }
}

impl Record {
    /// Nothing beside `base` yet.
    #[must_use]
    pub fn new(base: Rc<Base>) -> Self {
        Self {
            base,
            overrides: false,
            own: Values::with_capacity(32),
        }
    }

    /// Begins anew on another base.
    pub fn reset(&mut self, base: Rc<Base>) {
        self.base = base;
        self.clear();
    }

    /// Forgets all that is its own.
    pub fn clear(&mut self) {
        self.overrides = false;
        self.own.clear();
    }

    /// Whether its buffers are worth keeping.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.own.pairs.capacity().max(self.own.bytes.capacity()) <= SMALL
    }

    /// What it shares with others.
    pub(super) fn base(&self) -> &Rc<Base> {
        &self.base
    }

    /// What is its own.
    pub(super) fn own(&self) -> &Values {
        &self.own
    }

    /// Whether a value of the base does not count here.
    #[must_use]
    pub fn overrides(&self) -> bool {
        self.overrides
    }

    /// Sets the value of a known name.
    pub fn set(&mut self, name: Known, value: ValueRef<'_>) {
        if let ValueRef::String(text) = value {
            return self.set_text(name, text);
        }
        let slot = self.own.store(value, &self.base.vocabulary);
        self.put_known(name, slot);
    }

    /// Sets text.
    pub fn set_text(&mut self, name: Known, text: &str) {
        if let Some(Slot::Text(word)) = self.base.values.get_known(name)
            && word.as_str() == text
            && self.own.get_known(name).is_none()
        {
            return;
        }
        let word = self.base.vocabulary.word(text.as_bytes());
        self.put_known(name, Slot::Text(word));
    }

    /// Sets the value of any name.
    pub fn set_named(&mut self, name: &str, value: ValueRef<'_>) {
        match Key::find(name, &self.base.vocabulary) {
            Key::Known(name) => self.set(name, value),
            name @ Key::Other(_) => {
                let slot = self.own.store(value, &self.base.vocabulary);
                self.put(name, slot);
            }
        }
    }

    /// Sets a string map, which `fill` writes.
    pub fn set_map(&mut self, name: Known, fill: impl FnOnce(&mut Entries<'_>)) {
        let slot = self.own.store_map(&self.base.vocabulary, fill);
        self.put_known(name, slot);
    }

    /// The same of any name.
    pub fn set_named_map(&mut self, name: &str, fill: impl FnOnce(&mut Entries<'_>)) {
        let slot = self.own.store_map(&self.base.vocabulary, fill);
        self.put(Key::find(name, &self.base.vocabulary), slot);
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<RecordRef<'_>> {
        self.find(|values| match name {
            Name::Known(name) => values.get_known(*name),
            Name::Own(name) => values.get_other(name),
        })
    }

    /// The value of a known name.
    #[must_use]
    pub fn get_known(&self, name: Known) -> Option<RecordRef<'_>> {
        self.find(|values| values.get_known(name))
    }

    /// All that count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, RecordRef<'_>)> {
        let base = &self.base.values;
        let shared = self.shared().map(|(name, slot)| (name, base.value(slot)));
        let own = self.own.iter();
        let own = own.map(|(name, slot)| (name, self.own.value(slot)));
        shared
            .chain(own)
            .map(|(name, value)| (name.as_str(), value))
    }

    /// Those of the base that count.
    pub(super) fn shared(&self) -> impl Iterator<Item = (&Key, &Slot)> {
        let all = self.base.values.iter();
        all.filter(|(name, _)| self.own.place(name).is_none())
    }

    fn find<'a>(&'a self, find: impl Fn(&'a Values) -> Option<&'a Slot>) -> Option<RecordRef<'a>> {
        match find(&self.own) {
            Some(slot) => Some(self.own.value(slot)),
            None => find(&self.base.values).map(|slot| self.base.values.value(slot)),
        }
    }

    fn put(&mut self, name: Key, slot: Slot) {
        if let Key::Known(name) = name {
            return self.put_known(name, slot);
        }
        self.overrides |= self.base.values.place(&name).is_some();
        self.own.put(name, slot);
    }

    fn put_known(&mut self, name: Known, slot: Slot) {
        self.overrides |= self.base.values.places.get(name).is_some();
        self.own.put_known(name, slot);
    }
}

impl Values {
    fn with_capacity(entries: usize) -> Self {
        Self {
            entries: Vec::with_capacity(entries),
            places: Places::NONE,
            bytes: Vec::new(),
            pairs: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.places = Places::NONE;
        self.bytes.clear();
        self.pairs.clear();
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Slot)> {
        self.entries.iter().map(|(name, slot)| (name, slot))
    }

    /// A part of the bytes.
    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    /// The entries of a string map.
    pub(super) fn pairs(&self, span: Span) -> &[Pair] {
        &self.pairs[span.range()]
    }

    fn place(&self, name: &Key) -> Option<usize> {
        match name {
            Key::Known(name) => self.places.get(*name),
            Key::Other(name) => self.other_place(name.as_str()),
        }
    }

    fn other_place(&self, name: &str) -> Option<usize> {
        let mut all = self.entries.iter();
        all.position(|(known, _)| matches!(known, Key::Other(known) if known.as_str() == name))
    }

    fn get_known(&self, name: Known) -> Option<&Slot> {
        Some(&self.entries.get(self.places.get(name)?)?.1)
    }

    fn get_other(&self, name: &str) -> Option<&Slot> {
        Some(&self.entries.get(self.other_place(name)?)?.1)
    }

    fn put(&mut self, name: Key, slot: Slot) {
        if let Key::Known(name) = name {
            return self.put_known(name, slot);
        }
        match self.other_place(name.as_str()) {
            Some(place) => self.entries[place].1 = slot,
            None => self.entries.push((name, slot)),
        }
    }

    #[inline]
    fn put_known(&mut self, name: Known, slot: Slot) {
        if let Some(place) = self.places.get(name) {
            self.entries[place].1 = slot;
            return;
        }
        self.places.set(name, self.entries.len());
        self.entries.push((Key::Known(name), slot));
    }

    fn store(&mut self, value: ValueRef<'_>, vocabulary: &Vocabulary) -> Slot {
        match value {
            ValueRef::String(text) => Slot::Text(vocabulary.word(text.as_bytes())),
            ValueRef::Int64(number) => Slot::Int64(number),
            ValueRef::Double(number) => Slot::Double(number),
            ValueRef::Bool(flag) => Slot::Bool(flag),
            ValueRef::Timestamp(time) => Slot::Timestamp(time),
            ValueRef::Duration(span) => Slot::Duration(span),
            ValueRef::Bytes(bytes) => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                Slot::Bytes(Span::new(start, self.bytes.len()))
            }
            ValueRef::StringMap(map) => self.store_map(vocabulary, |entries| {
                map.iter()
                    .for_each(|(key, value)| entries.push(key, value.as_bytes()));
            }),
        }
    }

    fn store_map(&mut self, vocabulary: &Vocabulary, fill: impl FnOnce(&mut Entries<'_>)) -> Slot {
        let start = self.pairs.len();
        let pairs = &mut self.pairs;
        fill(&mut Entries { vocabulary, pairs });
        Slot::Pairs(Span::new(start, self.pairs.len()))
    }

    fn value<'a>(&'a self, slot: &'a Slot) -> RecordRef<'a> {
        match slot {
            Slot::Text(word) => ValueRef::String(word.as_str()),
            Slot::Int64(number) => ValueRef::Int64(*number),
            Slot::Double(number) => ValueRef::Double(*number),
            Slot::Bool(flag) => ValueRef::Bool(*flag),
            Slot::Timestamp(time) => ValueRef::Timestamp(*time),
            Slot::Duration(span) => ValueRef::Duration(*span),
            Slot::Bytes(span) => ValueRef::Bytes(self.bytes(*span)),
            Slot::Pairs(span) => ValueRef::StringMap(Pairs(self.pairs(*span))),
        }
    }
}

impl<'a> TextMap<'a> for Pairs<'a> {
    fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let pairs = self.0.iter();
        pairs.map(|pair| (pair.key.as_str(), pair.value.as_str()))
    }
}

impl Entries<'_> {
    /// Adds an entry. Bytes that are no text are replaced.
    pub fn push(&mut self, key: &str, value: &[u8]) {
        let key = self.vocabulary.word(key.as_bytes());
        let value = self.vocabulary.word(value);
        self.pairs.push(Pair { key, value });
    }
}

impl Span {
    /// A request has far less than 4 GiB; what has more is cut.
    fn new(start: usize, end: usize) -> Self {
        let limited = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
        Span {
            start: limited(start),
            end: limited(end),
        }
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Value;

    const PATH: Known = Known::new("request.path");
    const HEADERS: Known = Known::new("request.headers");

    fn base() -> Rc<Base> {
        let mut attributes = Attributes::new();
        attributes.set("my.own", "mine");
        attributes.set("request.path", "/");
        attributes.set("source.uid", "pod");
        Base::new(&attributes, &Rc::default())
    }

    fn all(record: &Record) -> Vec<(String, Value)> {
        let all = record.iter();
        let mut all: Vec<_> = all
            .map(|(name, value)| (name.to_owned(), value.to_value()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn owned(entries: &[(&str, Value)]) -> Vec<(String, Value)> {
        let entries = entries.iter();
        entries
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    }

    #[test]
    fn a_record_is_its_base_with_its_own_values_on_top() {
        let mut record = Record::new(base());
        record.set_text(Known::new("source.uid"), "pod");
        assert!(!record.overrides());
        record.set_text(PATH, "/a");
        assert!(record.overrides());
        record.set_text(PATH, "/b");
        record.set_map(HEADERS, |entries| {
            entries.push("host", b"x");
            entries.push("via", "é".as_bytes());
            entries.push("x-odd", b"a\xff");
        });
        record.set_named("another", ValueRef::Bytes(&[1, 2]));
        record.set_named("request.size", ValueRef::Int64(3));
        let headers = vec![
            ("host".into(), "x".to_owned()),
            ("via".into(), "é".to_owned()),
            ("x-odd".into(), "a\u{fffd}".to_owned()),
        ];
        let want = owned(&[
            ("another", Value::Bytes(vec![1, 2])),
            ("my.own", "mine".into()),
            ("request.headers", Value::StringMap(headers)),
            ("request.path", "/b".into()),
            ("request.size", Value::Int64(3)),
            ("source.uid", "pod".into()),
        ]);
        assert_eq!(all(&record), want);
        let get = |name: &str| record.get(&Name::new(name)).map(|value| value.to_value());
        for (name, value) in want {
            assert_eq!(get(&name), Some(value));
        }
        assert_eq!(get("source.ip"), None);
        assert_eq!(get("nothing"), None);
        record.set_named("my.own", ValueRef::Bool(true));
        assert_eq!(all(&record)[1], ("my.own".to_owned(), Value::Bool(true)));
        record.reset(base());
        assert_eq!(all(&record).len(), 3);
        assert!(!record.overrides());
    }
}
