//! A `ReportRequest` written as it will travel, set by set: a proxy writes one set for each of its requests, so nothing is put
//! together in between ([`super::codec`] does that, for single messages).

use prost::bytes::BufMut as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;

use std::ops::Range;
use std::rc::Rc;

use super::bag::{MapRef, ValueRef};
use super::codec::Encoder;
use super::name::{Known, Name};
use super::record::{Base, Record};

/// Wire types of fields, in the lower bits of their keys.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;

/// Sets of attributes that share their words, each of which stands alone.
#[derive(Debug)]
pub struct ReportWriter {
    encoder: Encoder,
    global_words: usize,
    /// The sets written so far, as fields of the request.
    message: Vec<u8>,
    sets: usize,
    /// For the set that is being written, and for the string map in it.
    set: Vec<u8>,
    pairs: Vec<u8>,
    /// Bases, written out for this message.
    bases: Vec<(Rc<Base>, Range<usize>)>,
    written: Vec<u8>,
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
            encoder: Encoder::new(global_words),
            global_words,
            message: Vec::new(),
            sets: 0,
            set: Vec::with_capacity(1024),
            pairs: Vec::new(),
            bases: Vec::new(),
            written: Vec::new(),
        }
    }

    /// The words that the peer knows.
    #[must_use]
    pub fn global_words(&self) -> usize {
        self.global_words
    }

    /// How many sets there are.
    #[must_use]
    pub fn sets(&self) -> usize {
        self.sets
    }

    /// How many bytes the message has so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.message.len() + self.encoder.size()
    }

    /// Adds a set.
    pub fn add(&mut self, record: &Record) {
        self.set.clear();
        if record.overrides() || !self.add_base(record.base()) {
            for (name, value) in record.shared() {
                self.named(name, value);
            }
        }
        for (name, value) in record.known() {
            let name = self.known(name);
            self.entry(name, value);
        }
        for (name, value) in record.own() {
            let name = fold(self.encoder.index(name));
            self.entry(name, value);
        }
        // attributes = 1.
        put_bytes(&mut self.message, 1, &self.set);
        self.sets += 1;
    }

    /// Appends the message to `buffer`; the writer begins anew.
    pub fn take(&mut self, buffer: &mut Vec<u8>) {
        buffer.reserve(self.size() + MAX_TAIL);
        buffer.append(&mut self.message);
        for word in self.encoder.take_words() {
            put_bytes(buffer, 2, word.as_bytes());
        }
        put_varint(buffer, 3, self.global_words as u64);
        // A small positive number.
        let semantics = RepeatedAttributesSemantics::IndependentEncoding as u64;
        put_varint(buffer, 4, semantics);
        self.sets = 0;
        self.bases.clear();
        self.written.clear();
    }

    /// Writes all of a base; false if there are too many.
    fn add_base(&mut self, base: &Rc<Base>) -> bool {
        let known = self.bases.iter().find(|(known, _)| Rc::ptr_eq(known, base));
        if let Some((_, range)) = known {
            self.set.extend_from_slice(&self.written[range.clone()]);
            return true;
        }
        if self.bases.len() >= MAX_BASES {
            return false;
        }
        for (name, value) in base.iter() {
            self.named(name, value);
        }
        let start = self.written.len();
        self.written.extend_from_slice(&self.set);
        let range = start..self.written.len();
        self.bases.push((base.clone(), range));
        true
    }

    fn named(&mut self, name: &Name, value: ValueRef<'_>) {
        let name = match name {
            Name::Known(name) => self.known(*name),
            Name::Own(name) => fold(self.encoder.index(name)),
        };
        self.entry(name, value);
    }

    /// The index of a name of the global list.
    fn known(&mut self, name: Known) -> u64 {
        if name.position() < self.global_words {
            // Indices from 0 up, folded.
            (name.position() as u64) << 1
        } else {
            fold(self.encoder.index(name.as_str()))
        }
    }

    /// An entry of the map that has values of this type.
    #[allow(clippy::cast_sign_loss, reason = "the wire form's own rule")]
    fn entry(&mut self, name: u64, value: ValueRef<'_>) {
        match value {
            ValueRef::String(text) => {
                let word = fold(self.encoder.index(text));
                self.number(2, name, word);
            }
            ValueRef::Int64(number) => self.number(3, name, number as u64),
            ValueRef::Double(number) => {
                self.begin(4, name, 1 + 8);
                self.set.put_u8(2 << 3 | FIXED64);
                self.set.put_f64_le(number);
            }
            ValueRef::Bool(flag) => self.number(5, name, u64::from(flag)),
            ValueRef::Timestamp(time) => self.time(6, name, time.seconds, time.nanos),
            ValueRef::Duration(span) => self.time(7, name, span.seconds, span.nanos),
            ValueRef::Bytes(bytes) => {
                self.begin(8, name, bytes_len(bytes.len()));
                put_bytes(&mut self.set, 2, bytes);
            }
            ValueRef::StringMap(map) => {
                self.pairs.clear();
                match map {
                    MapRef::Pairs(pairs, text) => {
                        for pair in pairs {
                            self.pair(pair.of(text));
                        }
                    }
                    other => other.iter().for_each(|entry| self.pair(entry)),
                }
                let length = self.pairs.len();
                self.begin(9, name, bytes_len(length));
                put_key(&mut self.set, 2, length);
                self.set.extend_from_slice(&self.pairs);
            }
        }
    }

    fn pair(&mut self, (key, value): (&str, &str)) {
        let key = fold(self.encoder.index(key));
        let value = fold(self.encoder.index(value));
        put_pair(&mut self.pairs, 1, key, value);
    }

    /// An entry with that many bytes after its name.
    fn begin(&mut self, map: u8, name: u64, rest: usize) {
        put_key(&mut self.set, map, varint_len(name) + rest);
        put_varint(&mut self.set, 1, name);
    }

    fn number(&mut self, map: u8, name: u64, value: u64) {
        put_pair(&mut self.set, map, name, value);
    }

    #[allow(clippy::cast_sign_loss, reason = "the wire form's own rule")]
    fn time(&mut self, map: u8, name: u64, seconds: i64, nanos: i32) {
        let (seconds, nanos) = (seconds as u64, i64::from(nanos) as u64);
        let length = varint_len(seconds) + varint_len(nanos);
        self.begin(map, name, bytes_len(length));
        put_key(&mut self.set, 2, length);
        put_varint(&mut self.set, 1, seconds);
        put_varint(&mut self.set, 2, nanos);
    }
}

/// A `sint32` so that small negative numbers are short.
#[allow(clippy::cast_sign_loss, reason = "the wire form's own rule")]
fn fold(index: i32) -> u64 {
    u64::from(((index << 1) ^ (index >> 31)) as u32)
}

/// The length of a number with its key. No field here has a number above 15.
fn varint_len(value: u64) -> usize {
    1 + encoded_len_varint(value)
}

/// The length of bytes with their key and length.
fn bytes_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// An entry with two numbers. Almost all are indices below 2^14: such an entry is put together aside and appended at one go.
#[inline]
fn put_pair(buffer: &mut Vec<u8>, field: u8, key: u64, value: u64) {
    if (key | value) >= 0x4000 {
        put_key(buffer, field, varint_len(key) + varint_len(value));
        put_varint(buffer, 1, key);
        put_varint(buffer, 2, value);
        return;
    }
    let mut entry = [field << 3 | BYTES, 0, 1 << 3 | VARINT, 0, 0, 0, 0, 0];
    let at = put_small(&mut entry, 3, key);
    entry[at] = 2 << 3 | VARINT;
    let end = put_small(&mut entry, at + 1, value);
    entry[1] = end as u8 - 2;
    buffer.extend_from_slice(&entry[..end]);
}

/// A number of one or two bytes; the place after it.
#[inline]
fn put_small(entry: &mut [u8; 8], at: usize, value: u64) -> usize {
    if value < 0x80 {
        entry[at] = value as u8;
        return at + 1;
    }
    entry[at] = value as u8 | 0x80;
    entry[at + 1] = (value >> 7) as u8;
    at + 2
}

fn put_varint(buffer: &mut Vec<u8>, field: u8, value: u64) {
    buffer.push(field << 3 | VARINT);
    put_number(buffer, value);
}

/// The key and length of what follows.
fn put_key(buffer: &mut Vec<u8>, field: u8, length: usize) {
    buffer.push(field << 3 | BYTES);
    put_number(buffer, length as u64);
}

/// Most are small: indices of words, lengths.
#[inline]
fn put_number(buffer: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        buffer.push(value as u8);
    } else if value < 0x4000 {
        buffer.push(value as u8 | 0x80);
        buffer.push((value >> 7) as u8);
    } else {
        encode_varint(value, buffer);
    }
}

fn put_bytes(buffer: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    put_key(buffer, field, bytes.len());
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use proto::istio::mixer::v1::ReportRequest;

    use crate::attribute::codec::{self, Words};
    use crate::attribute::{Attributes, Value, dictionary};

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
        let shared = Base::new(&first);
        let mut changed = Record::new(shared.clone());
        changed.set_text(Known::new("request.method"), "PUT");
        let mut own = Record::new(Base::new(&Attributes::new()));
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
