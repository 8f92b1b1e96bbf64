//! A `ReportRequest` written as it will travel, set by set: a proxy writes one set for each of its requests, so nothing is put
//! together in between ([`super::codec`] does that, for single messages).

use std::ops::Range;
use std::rc::Rc;

use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;

use super::buffer::{Buffer, bytes_len, number_len};
use super::name::Known;
use super::record::{Base, Key, Record, Slot, Values};
use super::word::Word;

/// Sets of attributes that share their words, each of which stands alone.
#[derive(Debug)]
pub struct ReportWriter {
    words: MessageWords,
    /// The sets written so far, as fields of the request.
    message: Buffer,
    sets: usize,
    /// For the set that is being written, and for the string map in it.
    set: Buffer,
    pairs: Buffer,
    /// Bases, written out for this message.
    bases: Vec<(Rc<Base>, Range<usize>)>,
    written: Buffer,
}

/// The words that travel with a message.
#[derive(Debug)]
struct MessageWords {
    /// How many words of the global list the peer knows.
    global: usize,
    own: Vec<Word>,
    /// Bytes that they take in the message, with their keys and lengths.
    size: usize,
}

/// More than these are written out each time.
const MAX_BASES: usize = 64;
/// What comes after the words is not longer.
const MAX_TAIL: usize = 16;

impl ReportWriter {
    /// Nothing yet, for a peer that knows the first `global_words` of the global list.
    #[must_use]
    pub fn new(global_words: usize) -> Self {
        Self {
            words: MessageWords {
                global: global_words,
                own: Vec::new(),
                size: 0,
            },
            message: Buffer::default(),
            sets: 0,
            set: Buffer::default(),
            pairs: Buffer::default(),
            bases: Vec::new(),
            written: Buffer::default(),
        }
    }

    /// The words that the peer knows.
    #[must_use]
    pub fn global_words(&self) -> usize {
        self.words.global
    }

    /// How many sets there are.
    #[must_use]
    pub fn sets(&self) -> usize {
        self.sets
    }

    /// How many bytes the message has so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.message.bytes().len() + self.words.size
    }

    /// Adds a set.
    pub fn add(&mut self, record: &Record) {
        self.set.clear();
        let base = record.base();
        if record.overrides() || !self.add_base(base) {
            for (name, slot) in record.shared() {
                self.entry(name, slot, &base.values);
            }
        }
        for (name, slot) in record.own().iter() {
            self.entry(name, slot, record.own());
        }
        // attributes = 1.
        self.message.field(1, self.set.bytes());
        self.sets += 1;
    }

    /// Appends the message to `buffer`; the writer begins anew.
    pub fn take(&mut self, buffer: &mut Vec<u8>) {
        buffer.reserve(self.size() + MAX_TAIL);
        self.words.take(&mut self.message);
        self.message.number(3, self.words.global as u64);
        // A small positive number.
        let semantics = RepeatedAttributesSemantics::IndependentEncoding as u64;
        self.message.number(4, semantics);
        buffer.extend_from_slice(self.message.bytes());
        self.message.clear();
        self.sets = 0;
        self.bases.clear();
        self.written.clear();
    }

    /// Writes all of a base; false if there are too many.
    fn add_base(&mut self, base: &Rc<Base>) -> bool {
        let known = self.bases.iter().find(|(known, _)| Rc::ptr_eq(known, base));
        if let Some((_, range)) = known {
            self.set.append(&self.written.bytes()[range.clone()]);
            return true;
        }
        if self.bases.len() >= MAX_BASES {
            return false;
        }
        for (name, slot) in base.values.iter() {
            self.entry(name, slot, &base.values);
        }
        let start = self.written.bytes().len();
        self.written.append(self.set.bytes());
        let range = start..self.written.bytes().len();
        self.bases.push((base.clone(), range));
        true
    }

    /// An entry of the map that has values of this type.
    #[allow(clippy::cast_sign_loss, reason = "the wire form's own rule")]
    fn entry(&mut self, name: &Key, slot: &Slot, values: &Values) {
        let name = self.words.name(name);
        match slot {
            Slot::Text(word) => {
                let word = self.words.index(word);
                self.set.pair(2, name, word);
            }
            Slot::Int64(number) => self.set.pair(3, name, *number as u64),
            Slot::Double(number) => {
                self.begin(4, name, 1 + 8);
                self.set.fixed(2, number.to_bits());
            }
            Slot::Bool(flag) => self.set.pair(5, name, u64::from(*flag)),
            Slot::Timestamp(time) => self.time(6, name, time.seconds, time.nanos),
            Slot::Duration(span) => self.time(7, name, span.seconds, span.nanos),
            Slot::Bytes(span) => {
                let bytes = values.bytes(*span);
                self.begin(8, name, bytes_len(bytes.len()));
                self.set.field(2, bytes);
            }
            Slot::Pairs(span) => {
                self.pairs.clear();
                for pair in values.pairs(*span) {
                    let (key, value) = (self.words.index(&pair.key), self.words.index(&pair.value));
                    self.pairs.pair(1, key, value);
                }
                let length = self.pairs.bytes().len();
                self.begin(9, name, bytes_len(length));
                self.set.field(2, self.pairs.bytes());
            }
        }
    }

    /// An entry with that many bytes after its name.
    #[inline]
    fn begin(&mut self, map: u8, name: u64, rest: usize) {
        self.set.begin(map, number_len(name) + rest);
        self.set.number(1, name);
    }

    #[allow(clippy::cast_sign_loss, reason = "the wire form's own rule")]
    fn time(&mut self, map: u8, name: u64, seconds: i64, nanos: i32) {
        let (seconds, nanos) = (seconds as u64, i64::from(nanos) as u64);
        let length = number_len(seconds) + number_len(nanos);
        self.begin(map, name, bytes_len(length));
        self.set.begin(2, length);
        self.set.number(1, seconds);
        self.set.number(2, nanos);
    }
}

impl MessageWords {
    /// The index of a name.
    #[inline]
    fn name(&mut self, name: &Key) -> u64 {
        match name {
            Key::Known(name) if name.position() < self.global => global(*name),
            Key::Known(name) => self.late(*name),
            Key::Other(name) => self.index(name),
        }
    }

    /// The index of a word.
    #[inline]
    fn index(&mut self, word: &Word) -> u64 {
        match word.known() {
            Some(known) if known.position() < self.global => global(known),
            _ => {
                let place = word.place();
                if self.own.get(place).is_some_and(|there| there.is(word)) {
                    own(place)
                } else {
                    self.add(word.clone())
                }
            }
        }
    }

    /// The index of a name that is of the global list, but that the peer does not know.
    #[cold]
    fn late(&mut self, name: Known) -> u64 {
        let place = self.own.iter().position(|word| word.known() == Some(name));
        place.map_or_else(|| self.add(Word::new(name.as_str())), own)
    }

    fn add(&mut self, word: Word) -> u64 {
        let place = self.own.len();
        word.set_place(place);
        self.size += bytes_len(word.as_str().len());
        self.own.push(word);
        own(place)
    }

    /// Appends the words as fields of the request; none are left.
    fn take(&mut self, buffer: &mut Buffer) {
        for word in self.own.drain(..) {
            buffer.field(2, word.as_str().as_bytes());
        }
        self.size = 0;
    }
}

/// The index of a word of the global list: from 0 up. All are folded so that small negative numbers are short (`sint32`).
fn global(word: Known) -> u64 {
    (word.position() as u64) << 1
}

/// The index of one of the message's own words: from -1 down.
fn own(place: usize) -> u64 {
    (place as u64) << 1 | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use proto::istio::mixer::v1::ReportRequest;

    use crate::attribute::codec::{self, Words};
    use crate::attribute::{Attributes, Value, ValueRef, dictionary};

    #[test]
    fn it_writes_what_generated_code_reads() {
        let mut first = Attributes::new();
        let time = prost_types::Timestamp {
            seconds: -1,
            nanos: 5,
        };
        let span = prost_types::Duration {
            seconds: 3,
            nanos: -7,
        };
        let headers = (0..40).map(|number| (format!("x-{number}").into(), number.to_string()));
        for (name, value) in [
            ("source.ip", Value::Bytes(vec![10, 0, 0, 1])),
            ("my.own", "mine".into()),
            ("request.method", "GET".into()),
            ("request.size", Value::Int64(-3)),
            ("a.double", Value::Double(0.5)),
            ("connection.mtls", Value::Bool(true)),
            ("request.time", Value::Timestamp(time)),
            ("response.duration", Value::Duration(span)),
            ("request.headers", Value::StringMap(headers.collect())),
            ("response.headers", Value::StringMap(Vec::new())),
            ("request.path", "x".repeat(300).into()),
        ] {
            first.set(name, value);
        }
        let mut second = Attributes::new();
        second.set("my.own", "yours");
        let mut third = first.clone();
        third.set("request.method", "PUT");
        let vocabulary = Rc::default();
        let shared = Base::new(&first, &vocabulary);
        let mut changed = Record::new(shared.clone());
        changed.set_text(Known::new("request.method"), "PUT");
        let mut own = Record::new(Base::new(&Attributes::new(), &vocabulary));
        own.set_named("my.own", ValueRef::String("yours"));
        let records = [
            Record::new(shared.clone()),
            own,
            Record::new(shared),
            changed,
        ];
        for global_words in [dictionary::WORDS.len(), dictionary::BASE_WORDS, 0] {
            let mut writer = ReportWriter::new(global_words);
            for _ in 0..2 {
                for record in &records {
                    writer.add(record);
                }
                assert_eq!(writer.sets(), 4);
                let size = writer.size();
                let mut message = vec![];
                writer.take(&mut message);
                assert!(message.len().abs_diff(size) < 64, "{size}");
                let message = ReportRequest::decode(message.as_slice()).unwrap();
                assert_eq!(message.global_word_count as usize, global_words);
                assert_eq!(message.repeated_attributes_semantics, 1);
                let words = Words::new(&message.default_words);
                let sets = message.attributes.iter();
                let sets: Vec<_> = sets.map(|set| codec::decode(set, words).unwrap()).collect();
                for (got, want) in sets.iter().zip([&first, &second, &first, &third]) {
                    assert_eq!(got.len(), want.len());
                    for (name, value) in want.iter() {
                        assert_eq!(sorted(got.get(name).unwrap()), sorted(value), "{name}");
                    }
                }
                assert_eq!(writer.sets(), 0);
            }
        }
    }

    fn sorted(value: &Value) -> Value {
        match value.clone() {
            Value::StringMap(mut entries) => {
                entries.sort();
                Value::StringMap(entries)
            }
            other => other,
        }
    }
}
