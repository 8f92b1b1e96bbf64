//! Reads header blocks.

use super::{
    TABLE_SIZE,
    field::{Field, Name, OVERHEAD, TABLE},
    huffman,
    literals::{self, Known},
};
use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use std::collections::VecDeque;

/// Reads the blocks of one direction of a connection, one after the other.
pub(in crate::http::h2) struct Decoder {
    /// The dynamic table, the newest first.
    entries: VecDeque<Field>,
    size: usize,
    /// What the sender keeps the table within; never above [`TABLE_SIZE`].
    max: usize,
    /// Memory for strings that are not kept in the table.
    strings: BytesMut,
}

/// A block that breaks the rules: the tables of both ends differ from now on, and the connection must end.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http::h2) struct Broken;

/// How much memory strings are carved from at a time.
const STRINGS: usize = 1 << 10;

impl Decoder {
    pub(in crate::http::h2) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            max: TABLE_SIZE,
            strings: BytesMut::new(),
        }
    }

    /// Reads a whole block; `each` is given its fields, with their sizes (bytes and [`OVERHEAD`]).
    pub(in crate::http::h2) fn decode(
        &mut self,
        mut block: &[u8],
        mut each: impl FnMut(&Name, HeaderValue, usize),
    ) -> Result<(), Broken> {
        if self.strings.capacity() < STRINGS / 8 {
            self.strings.reserve(STRINGS);
        }
        let mut may_resize = true;
        while let Some(first) = block.first().copied() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let field = self.get(index)?;
                each(&field.name, field.value.clone(), field.size);
            } else if first & 0xe0 == 0x20 {
                let max = integer(&mut block, 5)?;
                if !may_resize || max > TABLE_SIZE {
                    return Err(Broken);
                }
                self.max = max;
                self.make_room(0);
                continue;
            } else {
                let is_kept = first & 0xc0 == 0x40;
                let is_secret = first & 0xf0 == 0x10;
                let field = if is_secret {
                    let mut field = self.literal(&mut block, 4, false)?;
                    // Never to be kept in any table: said again when it goes on.
                    field.value.set_sensitive(true);
                    field
                } else {
                    self.known_literal(&mut block, if is_kept { 6 } else { 4 }, is_kept)?
                };
                if is_kept {
                    each(&field.name, field.value.clone(), field.size);
                    self.insert(field);
                } else {
                    each(&field.name, field.value, field.size);
                }
            }
            may_resize = false;
        }
        Ok(())
    }

    fn get(&self, index: usize) -> Result<&Field, Broken> {
        let place = index.checked_sub(1).ok_or(Broken)?;
        match TABLE.get(place) {
            Some(field) => Ok(field),
            None => self.entries.get(place - TABLE.len()).ok_or(Broken),
        }
    }

    /// A literal, which may be known from other blocks.
    fn known_literal(
        &mut self,
        block: &mut &[u8],
        prefix: u32,
        is_kept: bool,
    ) -> Result<Field, Broken> {
        let Some((literal, rest)) =
            literal_length(block, prefix).and_then(|length| block.split_at_checked(length))
        else {
            return self.literal(block, prefix, is_kept);
        };
        match literals::find(literal) {
            Known::Field(field) => {
                *block = rest;
                Ok(field)
            }
            Known::Again(place) => {
                let field = self.literal(block, prefix, true)?;
                literals::keep(place, literal, &field);
                Ok(field)
            }
            Known::No => self.literal(block, prefix, is_kept),
        }
    }

    fn literal(&mut self, block: &mut &[u8], prefix: u32, is_kept: bool) -> Result<Field, Broken> {
        let index = integer(block, prefix)?;
        let (name, name_length) = if index == 0 {
            let bytes = self.string(block, is_kept)?;
            (Name::parse(&bytes), bytes.len())
        } else {
            let field = self.get(index)?;
            (field.name.clone(), field.name_length)
        };
        let value = self.string(block, is_kept)?;
        let size = name_length + value.len() + OVERHEAD;
        Ok(match HeaderValue::from_maybe_shared(value) {
            Ok(value) => Field {
                name,
                value,
                name_length,
                size,
            },
            Err(_) => Field {
                name: Name::Invalid,
                value: HeaderValue::from_static(""),
                name_length,
                size,
            },
        })
    }

    /// A string. One that is kept has memory of its own, so that a small one does not hold a whole block.
    fn string(&mut self, block: &mut &[u8], is_kept: bool) -> Result<Bytes, Broken> {
        let is_huffman = block.first().ok_or(Broken)? & 0x80 != 0;
        let length = integer(block, 7)?;
        let (string, rest) = block.split_at_checked(length).ok_or(Broken)?;
        *block = rest;
        if string.is_empty() {
            return Ok(Bytes::new());
        }
        if is_huffman {
            huffman::decode(string, &mut self.strings).map_err(|_| Broken)?;
        } else if !is_kept {
            self.strings.extend_from_slice(string);
        } else {
            return Ok(Bytes::copy_from_slice(string));
        }
        Ok(if is_kept {
            let bytes = Bytes::copy_from_slice(&self.strings);
            self.strings.clear();
            bytes
        } else {
            self.strings.split().freeze()
        })
    }

    fn insert(&mut self, field: Field) {
        self.make_room(field.size);
        if field.size <= self.max {
            self.size += field.size;
            self.entries.push_front(field);
        }
    }

    /// Drops the oldest until `size` more fits.
    fn make_room(&mut self, size: usize) {
        while self.size + size > self.max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// How long the literal is that a block begins with; nothing if its name is in the dynamic table, which is each connection's own.
fn literal_length(block: &[u8], prefix: u32) -> Option<usize> {
    let mut rest = block;
    let index = integer(&mut rest, prefix).ok()?;
    if index > TABLE.len() {
        return None;
    }
    let strings = if index == 0 { 2 } else { 1 };
    for _ in 0..strings {
        let length = integer(&mut rest, 7).ok()?;
        rest = rest.get(length..)?;
    }
    Some(block.len() - rest.len())
}

/// A number whose first bits are the last `prefix` ones of the next byte.
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Broken> {
    let (first, mut rest) = block.split_first().ok_or(Broken)?;
    let mask = (1 << prefix) - 1;
    let mut value = usize::from(first & mask);
    if value == usize::from(mask) {
        // Nothing that we take is longer than three more bytes say.
        for shift in [0, 7, 14, 21] {
            let (next, after) = rest.split_first().ok_or(Broken)?;
            rest = after;
            value += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                *block = rest;
                return Ok(value);
            }
        }
        return Err(Broken);
    }
    *block = rest;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
        let pairs = digits.chunks(2);
        pairs
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<String, Broken> {
        let mut text = String::new();
        decoder.decode(block, |name, value, _| {
            let name = std::str::from_utf8(name.as_bytes()).unwrap();
            text += &format!("{name}={} ", value.to_str().unwrap());
        })?;
        Ok(text)
    }

    /// RFC 7541, appendix C.3 and C.4: three requests on one connection, without and with Huffman's code.
    #[test]
    fn requests_share_a_table() {
        let read_all = |blocks: [&str; 3]| {
            let mut decoder = Decoder::new();
            let texts = blocks.map(|block| read(&mut decoder, &hex(block)).unwrap());
            (texts, decoder.size)
        };
        let expected = (
            [
                ":method=GET :scheme=http :path=/ :authority=www.example.com ".to_owned(),
                ":method=GET :scheme=http :path=/ :authority=www.example.com cache-control=no-cache ".to_owned(),
                ":method=GET :scheme=https :path=/index.html :authority=www.example.com custom-key=custom-value ".to_owned(),
            ],
            164,
        );
        assert_eq!(
            read_all([
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ]),
            expected
        );
        assert_eq!(
            read_all([
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ]),
            expected
        );
    }

    #[test]
    fn a_smaller_table_forgets_and_a_larger_one_is_refused() {
        let mut decoder = Decoder::new();
        read(&mut decoder, &hex("4001 6101 62 4001 6301 64")).unwrap();
        assert_eq!(read(&mut decoder, &hex("bfbe")).unwrap(), "a=b c=d ");
        // Room for one of the two.
        assert_eq!(read(&mut decoder, &hex("3f03 be")).unwrap(), "c=d ");
        assert_eq!(read(&mut decoder, &hex("bf")), Err(Broken));
        assert_eq!(read(&mut decoder, &hex("3fe2 1f")), Err(Broken), "4097");
        assert_eq!(
            read(&mut decoder, &hex("8220")),
            Err(Broken),
            "not at the beginning"
        );
    }

    /// Read, noted, kept and found again, beside one that is in no table and one that depends on it.
    #[test]
    fn what_comes_again_is_the_same() {
        let mut decoders = [Decoder::new(), Decoder::new()];
        for (round, decoder) in [0, 0, 0, 1, 1].into_iter().enumerate() {
            let decoder = &mut decoders[decoder];
            let block =
                hex("4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf 0001 6101 62 0f2f 0163");
            assert_eq!(
                read(decoder, &block).unwrap(),
                "custom-key=custom-value a=b custom-key=c ",
                "{round}"
            );
            let count = [1, 2, 3, 1, 2][round];
            assert_eq!((decoder.entries.len(), decoder.size), (count, count * 54));
        }
        // Secrets are said to be such each time.
        for _ in 0..4 {
            let mut is_secret = false;
            let each = |_: &Name, value: HeaderValue, _| is_secret = value.is_sensitive();
            decoders[0].decode(&hex("1001 6101 62"), each).unwrap();
            assert!(is_secret);
        }
    }

    #[test]
    fn what_is_cut_short_or_points_nowhere_is_refused() {
        for block in [
            "80",
            "ff",
            "c6",
            "40",
            "4001",
            "400161",
            "40016105",
            "40016185ff",
            "7fffffffff7f",
            "0f",
        ] {
            assert_eq!(
                read(&mut Decoder::new(), &hex(block)),
                Err(Broken),
                "{block}"
            );
        }
    }

    #[test]
    fn upper_case_and_line_feeds_make_a_field_invalid() {
        for block in ["0001 4101 62", "0001 6101 0a", "0003 3a61 6201 63"] {
            let mut names = Vec::new();
            let mut decoder = Decoder::new();
            decoder
                .decode(&hex(block), |name, _, _| names.push(name.clone()))
                .unwrap();
            assert_eq!(names, [Name::Invalid], "{block}");
        }
    }

    #[test]
    fn fuzz_header_blocks() {
        crate::fuzz::fuzz("header_blocks", |bytes| {
            let mut decoder = Decoder::new();
            for block in bytes.split(|byte| *byte == 0) {
                let _ = decoder.decode(block, |_, _, size| assert!(size >= OVERHEAD));
                assert!(decoder.size <= TABLE_SIZE);
                assert_eq!(
                    decoder.size,
                    decoder
                        .entries
                        .iter()
                        .map(|field| field.size)
                        .sum::<usize>()
                );
            }
        });
    }
}
