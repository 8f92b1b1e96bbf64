//! Writes header blocks: fields that come again from the table, everything else as it is. Huffman's code saves a quarter of what
//! is said for the first time and costs both ends more than that is worth beside a table, so it is not used.

#[cfg(test)]
mod tests;

use super::{
    TABLE_SIZE,
    field::{OVERHEAD, TABLE},
};
use foldhash::fast::FixedState;
use http::header::{self, HeaderName, HeaderValue};
use std::{collections::VecDeque, hash::BuildHasher as _, sync::LazyLock};

/// Places in the index of the dynamic table: more than there are fields in it, as each counts 32 bytes and more.
const PLACES: usize = 256;
/// Places in the index of the static table, a power of two that leaves most of them empty.
const STATIC_PLACES: usize = 256;

/// How a name's values are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Kept in the table.
    Usual,
    /// Different nearly every time: not kept, but the name is.
    Passing,
    /// Nobody on the way may keep it: another request's sender could find out what it is by trying.
    Secret,
}

/// Writes the blocks of one direction of a connection, one after the other.
pub(in crate::http::h2) struct Encoder {
    /// The dynamic table, the newest first.
    entries: VecDeque<Entry>,
    /// How many fields were ever put there: the number of the next one.
    inserted: u32,
    /// The number of the last field of this block that is there.
    last: u32,
    size: usize,
    /// What the reader lets the table be.
    max: usize,
    /// The reader changed that, which the next block says: the smallest that it was, and what it is.
    resized: Option<(usize, usize)>,
    /// By hash of name and value, and of the name: numbers of fields. A later field takes the place of an earlier one.
    places: Option<Box<Places>>,
}

struct Places {
    fields: [u32; PLACES],
    names: [u32; PLACES],
}

struct Entry {
    name: HeaderName,
    value: HeaderValue,
    size: usize,
    /// The number of the field that came behind it the last time.
    next: u32,
}

/// A number that no field has for a long time.
const NOWHERE: u32 = u32::MAX / 2;

/// What is known of a name without any connection.
struct Known {
    name: HeaderName,
    index: u8,
    kind: Kind,
}

/// Names that are in the static table, or whose values are not kept, by their hashes.
static KNOWN: LazyLock<[Vec<Known>; STATIC_PLACES]> = LazyLock::new(|| {
    let mut known: [Vec<Known>; STATIC_PLACES] = std::array::from_fn(|_| Vec::new());
    let mut add = |name: &HeaderName, index| {
        let place = &mut known[place_of(hash(name.as_str().as_bytes())) % STATIC_PLACES];
        if !place.iter().any(|known| known.name == *name) {
            place.push(Known {
                name: name.clone(),
                index,
                kind: kind_of(name),
            });
        }
    };
    for (index, field) in (1..).zip(TABLE.iter()) {
        if let super::Name::Header(name) = &field.name {
            add(name, index);
        }
    }
    for name in PASSING {
        add(&HeaderName::from_static(name), 0);
    }
    known
});

/// Names of values that are different nearly every time.
const PASSING: [&str; 21] = [
    "age",
    "content-length",
    "content-range",
    "etag",
    "grpc-timeout",
    // Of trailers, where it must not be taken for the authority, see `Encoder::authority`.
    "host",
    "if-modified-since",
    "if-none-match",
    "last-modified",
    "location",
    "range",
    "traceparent",
    "tracestate",
    "x-b3-parentspanid",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-client-trace-id",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-upstream-service-time",
    "x-request-id",
    "x-envoy-original-path",
];

fn kind_of(name: &HeaderName) -> Kind {
    if [
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
    ]
    .contains(name)
    {
        Kind::Secret
    } else if PASSING.contains(&name.as_str()) {
        Kind::Passing
    } else {
        Kind::Usual
    }
}

fn hash(bytes: &[u8]) -> u64 {
    FixedState::with_seed(0).hash_one(bytes)
}

#[allow(clippy::cast_possible_truncation, reason = "any bits of it will do")]
fn place_of(hash: u64) -> usize {
    (hash >> 20) as usize
}

impl Entry {
    fn is(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        self.name == *name && self.value == *value
    }
}

impl Encoder {
    pub(in crate::http::h2) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            inserted: 0,
            last: NOWHERE,
            size: 0,
            max: TABLE_SIZE,
            resized: None,
            places: None,
        }
    }

    /// The reader keeps a table of this size; no larger one is used than what is usual.
    pub(in crate::http::h2) fn resize(&mut self, size: usize) {
        let size = size.min(TABLE_SIZE);
        if size == self.max && self.resized.is_none() {
            return;
        }
        self.max = size;
        self.make_room(0);
        let smallest = self
            .resized
            .map_or(size, |(smallest, _)| smallest.min(size));
        self.resized = Some((smallest, size));
    }

    /// Begins a block.
    pub(in crate::http::h2) fn begin(&mut self, out: &mut Vec<u8>) {
        self.last = NOWHERE;
        if let Some((smallest, size)) = self.resized.take() {
            if smallest < size {
                integer(out, 0x20, 5, smallest);
            }
            integer(out, 0x20, 5, size);
        }
    }

    /// `:method`
    pub(in crate::http::h2) fn method(&mut self, method: &http::Method, out: &mut Vec<u8>) {
        match *method {
            http::Method::GET => out.push(0x82),
            http::Method::POST => out.push(0x83),
            _ => literal(out, 2, method.as_str().as_bytes()),
        }
    }

    /// `:scheme`
    pub(in crate::http::h2) fn scheme(&mut self, is_https: bool, out: &mut Vec<u8>) {
        out.push(if is_https { 0x87 } else { 0x86 });
    }

    /// `:path`
    pub(in crate::http::h2) fn path(&mut self, path: &str, out: &mut Vec<u8>) {
        match path {
            "/" => out.push(0x84),
            _ => literal(out, 4, path.as_bytes()),
        }
    }

    /// `:protocol`
    pub(in crate::http::h2) fn protocol(&mut self, protocol: &HeaderValue, out: &mut Vec<u8>) {
        out.push(0);
        string(out, b":protocol");
        string(out, protocol.as_bytes());
    }

    /// `:status`
    pub(in crate::http::h2) fn status(&mut self, status: http::StatusCode, out: &mut Vec<u8>) {
        match status.as_u16() {
            200 => out.push(0x88),
            204 => out.push(0x89),
            206 => out.push(0x8a),
            304 => out.push(0x8b),
            400 => out.push(0x8c),
            404 => out.push(0x8d),
            500 => out.push(0x8e),
            _ => literal(out, 8, status.as_str().as_bytes()),
        }
    }

    /// `:authority`, which is kept under the name of `host`, as no header of that name is kept, and written with an index of its own.
    pub(in crate::http::h2) fn authority(&mut self, authority: &HeaderValue, out: &mut Vec<u8>) {
        let extra = ":authority".len() - "host".len();
        self.write(&header::HOST, authority, Some((1, Kind::Usual, extra)), out);
    }

    /// A header.
    pub(in crate::http::h2) fn header(
        &mut self,
        name: &HeaderName,
        value: &HeaderValue,
        out: &mut Vec<u8>,
    ) {
        self.write(name, value, None, out);
    }

    fn write(
        &mut self,
        name: &HeaderName,
        value: &HeaderValue,
        known: Option<(u8, Kind, usize)>,
        out: &mut Vec<u8>,
    ) {
        if (known.is_some() || *name != header::HOST)
            && !value.is_sensitive()
            && let Some((number, place)) = self.next()
            && self.entries[place].is(name, value)
        {
            self.last = number;
            return integer(out, 0x80, 7, TABLE.len() + 1 + place);
        }
        let name_hash = hash(name.as_str().as_bytes());
        let (index, kind, extra) = known.unwrap_or_else(|| {
            KNOWN[place_of(name_hash) % STATIC_PLACES]
                .iter()
                .find(|known| known.name == *name)
                .map_or((0, Kind::Usual, 0), |known| (known.index, known.kind, 0))
        });
        if kind == Kind::Secret || value.is_sensitive() {
            return self.plain(0x10, index, name, name_hash, value, out);
        }
        let size = name.as_str().len() + extra + value.len() + OVERHEAD;
        // One that takes much of the table would push out many that come again.
        if size > self.max / 4 {
            return self.plain(0, index, name, name_hash, value, out);
        }
        if kind == Kind::Passing {
            if index != 0 || self.find_name(name, name_hash).is_some() {
                return self.plain(0, index, name, name_hash, value, out);
            }
            // Said once with the value of now, so that the next ones can point to the name.
            self.keep(index, name, name_hash, value, size, out);
            return;
        }
        let field_hash = name_hash ^ hash(value.as_bytes()).rotate_left(17);
        if let Some((number, place)) = self.find_field(name, value, field_hash) {
            self.follow(number);
            return integer(out, 0x80, 7, TABLE.len() + 1 + place);
        }
        let number = self.keep(index, name, name_hash, value, size, out);
        self.follow(number);
        if let Some(places) = &mut self.places {
            places.fields[place_of(field_hash) % PLACES] = number;
        }
    }

    /// The field that came the last time behind the last one of this block, which is likely to come again; where it is in the table.
    fn next(&self) -> Option<(u32, usize)> {
        let number = self.entries[self.place(self.last)?].next;
        Some((number, self.place(number)?))
    }

    /// The field of this number is the next one of this block.
    fn follow(&mut self, number: u32) {
        if let Some(place) = self.place(self.last) {
            self.entries[place].next = number;
        }
        self.last = number;
    }

    /// A literal that is not kept.
    fn plain(
        &self,
        first: u8,
        index: u8,
        name: &HeaderName,
        name_hash: u64,
        value: &HeaderValue,
        out: &mut Vec<u8>,
    ) {
        let index = match index {
            0 => self.find_name(name, name_hash).unwrap_or(0),
            index => usize::from(index),
        };
        integer(out, first, 4, index);
        if index == 0 {
            string(out, name.as_str().as_bytes());
        }
        string(out, value.as_bytes());
    }

    /// A literal that is kept; its number.
    fn keep(
        &mut self,
        index: u8,
        name: &HeaderName,
        name_hash: u64,
        value: &HeaderValue,
        size: usize,
        out: &mut Vec<u8>,
    ) -> u32 {
        let index = match index {
            0 => self.find_name(name, name_hash).unwrap_or(0),
            index => usize::from(index),
        };
        integer(out, 0x40, 6, index);
        if index == 0 {
            string(out, name.as_str().as_bytes());
        }
        string(out, value.as_bytes());
        self.make_room(size);
        self.size += size;
        self.entries.push_front(Entry {
            name: name.clone(),
            value: value.clone(),
            size,
            next: NOWHERE,
        });
        let number = self.inserted;
        self.inserted = self.inserted.wrapping_add(1);
        let places = self.places.get_or_insert_with(|| {
            Box::new(Places {
                fields: [NOWHERE; PLACES],
                names: [NOWHERE; PLACES],
            })
        });
        places.names[place_of(name_hash) % PLACES] = number;
        number
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }

    /// The number of a field that is in the table, and where it is there.
    fn find_field(
        &self,
        name: &HeaderName,
        value: &HeaderValue,
        hash: u64,
    ) -> Option<(u32, usize)> {
        let number = self.places.as_ref()?.fields[place_of(hash) % PLACES];
        let place = self.place(number)?;
        let is_it = self.entries[place].is(name, value);
        is_it.then_some((number, place))
    }

    fn find_name(&self, name: &HeaderName, hash: u64) -> Option<usize> {
        let number = self.places.as_ref()?.names[place_of(hash) % PLACES];
        let place = self.place(number)?;
        (self.entries[place].name == *name).then_some(TABLE.len() + 1 + place)
    }

    /// Where the field with a number is in the table, if it is still there.
    fn place(&self, number: u32) -> Option<usize> {
        let place = self.inserted.wrapping_sub(number).wrapping_sub(1) as usize;
        (place < self.entries.len()).then_some(place)
    }
}

/// A literal that is not kept, with a name of the static table.
fn literal(out: &mut Vec<u8>, index: usize, value: &[u8]) {
    integer(out, 0, 4, index);
    string(out, value);
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "each is checked or masked to fit a byte"
)]
fn integer(out: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        return out.push(first | value as u8);
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}
