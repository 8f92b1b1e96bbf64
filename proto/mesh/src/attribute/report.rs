//! A `ReportRequest` written as it will travel, set by set: a proxy writes one set for each of its requests, so nothing is put
//! together in between ([`super::codec`] does that, for single messages).

use prost::bytes::BufMut as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;

use super::bag::ValueRef;
use super::codec::Encoder;

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
    /// For the set that is being written.
    set: Vec<u8>,
    pairs: Vec<(u64, u64)>,
}

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

    /// Adds a set.
    pub fn add<'a>(&mut self, attributes: impl Iterator<Item = (&'a str, ValueRef<'a>)>) {
        self.set.clear();
        for (name, value) in attributes {
            let name = fold(self.encoder.index(name));
            self.entry(name, value);
        }
        // attributes = 1.
        put_bytes(&mut self.message, 1, &self.set);
        self.sets += 1;
    }

    /// The message; the writer begins anew.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let set = std::mem::take(&mut self.set);
        let done = std::mem::replace(self, Self::new(self.global_words));
        self.set = set;
        let mut message = done.message;
        // The next message is about as long.
        self.message.reserve(message.len());
        for word in done.encoder.into_words() {
            put_bytes(&mut message, 2, word.as_bytes());
        }
        put_varint(&mut message, 3, self.global_words as u64);
        // A small positive number.
        let semantics = RepeatedAttributesSemantics::IndependentEncoding as u64;
        put_varint(&mut message, 4, semantics);
        message
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
                for (key, value) in map.iter() {
                    let pair = (self.encoder.index(key), self.encoder.index(value));
                    self.pairs.push((fold(pair.0), fold(pair.1)));
                }
                let pair_len = |(key, value): &(u64, u64)| varint_len(*key) + varint_len(*value);
                let lengths = self.pairs.iter().map(|pair| bytes_len(pair_len(pair)));
                let length: usize = lengths.sum();
                self.begin(9, name, bytes_len(length));
                put_key(&mut self.set, 2, length);
                for pair in &self.pairs {
                    put_key(&mut self.set, 1, pair_len(pair));
                    put_varint(&mut self.set, 1, pair.0);
                    put_varint(&mut self.set, 2, pair.1);
                }
            }
        }
    }

    /// An entry with that many bytes after its name.
    fn begin(&mut self, map: u8, name: u64, rest: usize) {
        put_key(&mut self.set, map, varint_len(name) + rest);
        put_varint(&mut self.set, 1, name);
    }

    fn number(&mut self, map: u8, name: u64, value: u64) {
        self.begin(map, name, varint_len(value));
        put_varint(&mut self.set, 2, value);
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

fn put_varint(buffer: &mut Vec<u8>, field: u8, value: u64) {
    buffer.push(field << 3 | VARINT);
    encode_varint(value, buffer);
}

/// The key and length of what follows.
fn put_key(buffer: &mut Vec<u8>, field: u8, length: usize) {
    buffer.push(field << 3 | BYTES);
    encode_varint(length as u64, buffer);
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
        for global_words in [dictionary::WORDS.len(), dictionary::BASE_WORDS, 0] {
            let mut writer = ReportWriter::new(global_words);
            for _ in 0..2 {
                for set in [&first, &second] {
                    writer.add(set.iter().map(|(name, value)| (name, value.as_ref())));
                }
                assert_eq!(writer.sets(), 2);
                let message = ReportRequest::decode(writer.take().as_slice()).unwrap();
                assert_eq!(message.global_word_count as usize, global_words);
                assert_eq!(message.repeated_attributes_semantics, 1);
                let words = Words::new(&message.default_words);
                let sets = message.attributes.iter();
                let sets: Vec<_> = sets.map(|set| codec::decode(set, words).unwrap()).collect();
                for (got, want) in sets.iter().zip([&first, &second]) {
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
