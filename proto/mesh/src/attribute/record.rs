//! What a proxy collects of one request, on top of what is the same for all of them: values lie one after the other in buffers
//! that the next request uses again, and the names of the global list have places, so nothing is searched for or copied twice.

use std::ops::Range;
use std::rc::Rc;

use prost_types::{Duration, Timestamp};

use super::bag::{Attributes, MapRef, ValueRef};
use super::dictionary::WORDS;
use super::name::{Known, Name};

/// Attributes that many records share.
#[derive(Debug)]
pub struct Base {
    attributes: Vec<(Name, super::Value)>,
    places: Places,
}

/// The attributes of one request.
#[derive(Clone, Debug)]
pub struct Record {
    base: Rc<Base>,
    /// Some of the base's values do not count here.
    overrides: bool,
    known: Vec<(Known, Slot)>,
    places: Places,
    /// Other names, with their values.
    own: Vec<(Span, Slot)>,
    text: String,
    bytes: Vec<u8>,
    pairs: Vec<Pair>,
}

/// Where the value of each known name is; [`NOWHERE`] for none.
#[derive(Clone, Debug)]
struct Places([u8; WORDS.len()]);

const NOWHERE: u8 = u8::MAX;
/// The texts of most requests are smaller.
const SMALL: usize = 16 << 10;

/// A value of a record.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Text(Span),
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
struct Span {
    start: u32,
    end: u32,
}

/// A string map that is being written.
#[derive(Debug)]
pub struct Entries<'a> {
    text: &'a mut String,
    pairs: &'a mut Vec<Pair>,
}

/// An entry of a string map in a record.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    key: Span,
    value: Span,
}

impl Places {
    const NONE: Self = Places([NOWHERE; WORDS.len()]);

    fn get(&self, name: Known) -> Option<usize> {
        let place = self.0[name.position()];
        (place != NOWHERE).then_some(usize::from(place))
    }

    fn set(&mut self, name: Known, place: usize) {
        self.0[name.position()] = u8::try_from(place).unwrap_or(NOWHERE);
    }
}

impl Base {
    /// The attributes to share.
    #[must_use]
    pub fn new(attributes: &Attributes) -> Rc<Self> {
        let all = attributes.iter();
        // Known names first: their places fit.
        let (known, own): (Vec<_>, Vec<_>) = all
            .map(|(name, value)| (Name::new(name), value.clone()))
            .partition(|(name, _)| matches!(name, Name::Known(_)));
        let mut places = Places::NONE;
        for (place, (name, _)) in known.iter().enumerate() {
            if let Name::Known(name) = name {
                places.set(*name, place);
            }
        }
        let attributes = known.into_iter().chain(own).collect();
        Rc::new(Self { attributes, places })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, ValueRef<'_>)> {
        let all = self.attributes.iter();
        all.map(|(name, value)| (name, value.as_ref()))
    }

    fn get(&self, name: Known) -> Option<ValueRef<'_>> {
        let (_, value) = self.attributes.get(self.places.get(name)?)?;
        Some(value.as_ref())
    }

    fn get_own(&self, name: &str) -> Option<ValueRef<'_>> {
        let mut all = self.attributes.iter();
        let (_, value) =
            all.find(|(known, _)| matches!(known, Name::Own(word) if **word == *name))?;
        Some(value.as_ref())
    }
}

impl Record {
    /// Nothing beside `base` yet.
    #[must_use]
    pub fn new(base: Rc<Base>) -> Self {
        Self {
            base,
            overrides: false,
            known: Vec::with_capacity(32),
            places: Places::NONE,
            own: Vec::new(),
            text: String::with_capacity(1024),
            bytes: Vec::with_capacity(64),
            pairs: Vec::with_capacity(32),
        }
    }

    /// Begins anew on another base.
    pub fn reset(&mut self, base: Rc<Base>) {
        self.base = base;
        self.overrides = false;
        self.known.clear();
        self.places = Places::NONE;
        self.own.clear();
        self.text.clear();
        self.bytes.clear();
        self.pairs.clear();
    }

    /// Whether its buffers are worth keeping.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.text.capacity() + self.bytes.capacity() <= SMALL
    }

    /// What it shares with others.
    #[must_use]
    pub fn base(&self) -> &Rc<Base> {
        &self.base
    }

    /// Whether a value of the base does not count here.
    #[must_use]
    pub fn overrides(&self) -> bool {
        self.overrides
    }

    /// Sets the value of a known name.
    pub fn set(&mut self, name: Known, value: ValueRef<'_>) {
        if let (ValueRef::String(new), Some(ValueRef::String(old))) = (value, self.base.get(name))
            && new == old
            && self.places.get(name).is_none()
        {
            return;
        }
        let slot = self.store(value);
        self.put(name, slot);
    }

    /// Sets text.
    pub fn set_text(&mut self, name: Known, text: &str) {
        self.set(name, ValueRef::String(text));
    }

    /// Sets the value of any name.
    pub fn set_named(&mut self, name: &str, value: ValueRef<'_>) {
        if let Some(name) = Known::find(name) {
            return self.set(name, value);
        }
        self.overrides |= self.base.get_own(name).is_some();
        let slot = self.store(value);
        match self.own_place(name) {
            Some(place) => self.own[place].1 = slot,
            None => {
                let name = self.push(name);
                self.own.push((name, slot));
            }
        }
    }

    /// Sets a string map, which `fill` writes.
    pub fn set_map(&mut self, name: Known, fill: impl FnOnce(&mut Entries<'_>)) {
        let slot = self.store_map(fill);
        self.put(name, slot);
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<ValueRef<'_>> {
        match name {
            Name::Known(name) => self.get_known(*name),
            Name::Own(name) => match self.own_place(name) {
                Some(place) => Some(self.value(self.own[place].1)),
                None => self.base.get_own(name),
            },
        }
    }

    /// The value of a known name.
    #[must_use]
    pub fn get_known(&self, name: Known) -> Option<ValueRef<'_>> {
        match self.places.get(name) {
            Some(place) => Some(self.value(self.known[place].1)),
            None => self.base.get(name),
        }
    }

    /// Those of the base that count.
    pub fn shared(&self) -> impl Iterator<Item = (&Name, ValueRef<'_>)> {
        self.base.iter().filter(|(name, _)| match name {
            Name::Known(name) => self.places.get(*name).is_none(),
            Name::Own(name) => self.own_place(name).is_none(),
        })
    }

    /// Those that are its own, of the global list.
    pub fn known(&self) -> impl Iterator<Item = (Known, ValueRef<'_>)> {
        let known = self.known.iter();
        known.map(|(name, slot)| (*name, self.value(*slot)))
    }

    /// Those that are its own, of no list.
    pub fn own(&self) -> impl Iterator<Item = (&str, ValueRef<'_>)> {
        let own = self.own.iter();
        own.map(|(name, slot)| (name.of(&self.text), self.value(*slot)))
    }

    /// All that count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ValueRef<'_>)> {
        let shared = self.shared().map(|(name, value)| (name.as_str(), value));
        let known = self.known().map(|(name, value)| (name.as_str(), value));
        shared.chain(known).chain(self.own())
    }

    fn own_place(&self, name: &str) -> Option<usize> {
        let mut own = self.own.iter();
        own.position(|(known, _)| known.of(&self.text) == name)
    }

    fn put(&mut self, name: Known, slot: Slot) {
        match self.places.get(name) {
            Some(place) => self.known[place].1 = slot,
            None => {
                self.overrides |= self.base.places.get(name).is_some();
                self.places.set(name, self.known.len());
                self.known.push((name, slot));
            }
        }
    }

    fn store(&mut self, value: ValueRef<'_>) -> Slot {
        match value {
            ValueRef::String(text) => Slot::Text(self.push(text)),
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
            ValueRef::StringMap(map) => self.store_map(|entries| {
                map.iter().for_each(|(key, value)| entries.push(key, value));
            }),
        }
    }

    fn store_map(&mut self, fill: impl FnOnce(&mut Entries<'_>)) -> Slot {
        let start = self.pairs.len();
        fill(&mut Entries {
            text: &mut self.text,
            pairs: &mut self.pairs,
        });
        Slot::Pairs(Span::new(start, self.pairs.len()))
    }

    fn push(&mut self, text: &str) -> Span {
        push(&mut self.text, text)
    }

    fn value(&self, slot: Slot) -> ValueRef<'_> {
        match slot {
            Slot::Text(span) => ValueRef::String(span.of(&self.text)),
            Slot::Int64(number) => ValueRef::Int64(number),
            Slot::Double(number) => ValueRef::Double(number),
            Slot::Bool(flag) => ValueRef::Bool(flag),
            Slot::Timestamp(time) => ValueRef::Timestamp(time),
            Slot::Duration(span) => ValueRef::Duration(span),
            Slot::Bytes(span) => ValueRef::Bytes(&self.bytes[span.range()]),
            Slot::Pairs(span) => {
                ValueRef::StringMap(MapRef::Pairs(&self.pairs[span.range()], &self.text))
            }
        }
    }
}

impl Entries<'_> {
    /// Adds an entry.
    pub fn push(&mut self, key: &str, value: &str) {
        let pair = Pair {
            key: push(self.text, key),
            value: push(self.text, value),
        };
        self.pairs.push(pair);
    }
}

fn push(buffer: &mut String, text: &str) -> Span {
    let start = buffer.len();
    buffer.push_str(text);
    Span::new(start, buffer.len())
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

    fn of(self, text: &str) -> &str {
        &text[self.range()]
    }
}

impl Pair {
    /// Key and value, which are parts of `text`.
    pub(super) fn of<'a>(&self, text: &'a str) -> (&'a str, &'a str) {
        (self.key.of(text), self.value.of(text))
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
        Base::new(&attributes)
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
            entries.push("host", "x");
            entries.push("via", "é");
        });
        record.set_named("another", ValueRef::Bytes(&[1, 2]));
        record.set_named("request.size", ValueRef::Int64(3));
        let headers = vec![
            ("host".into(), "x".to_owned()),
            ("via".into(), "é".to_owned()),
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
