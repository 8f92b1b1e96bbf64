//! Bytes of a message as they are written: most parts of a report are numbers of a byte or two, so eight bytes are put down at one
//! go, of which those count that are wanted.

/// Wire types of fields, in the lower bits of their keys.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;

/// What has been written so far. No field here has a number above 15, so that a key is one byte.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// With room behind the end.
    bytes: Vec<u8>,
    end: usize,
}

impl Buffer {
    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// Forgets what was written, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.end = 0;
    }

    /// A field that is a number.
    #[inline]
    pub(super) fn number(&mut self, field: u8, value: u64) {
        self.key(field, VARINT);
        self.varint(value);
    }

    /// A field of eight bytes.
    pub(super) fn fixed(&mut self, field: u8, value: u64) {
        self.key(field, FIXED64);
        self.put(value, 8);
    }

    /// The key and length of a field that is written next.
    #[inline]
    pub(super) fn begin(&mut self, field: u8, length: usize) {
        self.key(field, BYTES);
        self.varint(length as u64);
    }

    /// A field of bytes.
    pub(super) fn field(&mut self, field: u8, bytes: &[u8]) {
        self.begin(field, bytes.len());
        self.append(bytes);
    }

    /// Bytes as they are.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// A field with two numbers, as the entries of maps are. Almost all fit into eight bytes.
    #[inline]
    pub(super) fn pair(&mut self, field: u8, key: u64, value: u64) {
        if (key | value) >= 0x4000 {
            return self.long_pair(field, key, value);
        }
        let ((key, key_length), (value, value_length)) = (small(key), small(value));
        let length = 2 + key_length + value_length;
        let head = u64::from(field << 3 | BYTES) | (length as u64) << 8;
        let key = u64::from(1 << 3 | VARINT) | key << 8;
        let value = u64::from(2 << 3 | VARINT) | value << 8;
        let entry = head | key << 16 | value << (24 + 8 * key_length);
        self.put(entry, 2 + length);
    }

    #[cold]
    fn long_pair(&mut self, field: u8, key: u64, value: u64) {
        self.begin(field, number_len(key) + number_len(value));
        self.number(1, key);
        self.number(2, value);
    }

    #[inline]
    fn key(&mut self, field: u8, wire_type: u8) {
        self.put(u64::from(field << 3 | wire_type), 1);
    }

    #[inline]
    fn varint(&mut self, mut value: u64) {
        if value >= 1 << 56 {
            // The lowest eight groups of seven bits go first.
            for _ in 0..8 {
                self.put(value & 0x7f | 0x80, 1);
                value >>= 7;
            }
        }
        let (word, length) = varint(value);
        self.put(word, length);
    }

    /// The first of the eight bytes of a word.
    #[inline]
    fn put(&mut self, word: u64, length: usize) {
        self.make_room(8);
        let room = self.bytes[self.end..].first_chunk_mut();
        *room.expect("there is room for eight bytes") = word.to_le_bytes();
        self.end += length;
    }

    #[inline]
    fn make_room(&mut self, length: usize) {
        if self.bytes.len() - self.end < length {
            self.grow(length);
        }
    }

    #[cold]
    fn grow(&mut self, length: usize) {
        let length = (self.end + length).max(128).next_power_of_two();
        self.bytes.resize(length, 0);
    }
}

/// A number below 2^14 as it travels, and how many bytes that takes.
#[inline]
fn small(value: u64) -> (u64, usize) {
    if value < 0x80 {
        (value, 1)
    } else {
        (value & 0x7f | 0x80 | value >> 7 << 8, 2)
    }
}

/// The same of one below 2^56.
#[inline]
fn varint(mut value: u64) -> (u64, usize) {
    let (mut word, mut length) = (0, 0);
    while value >= 0x80 {
        word |= (value & 0x7f | 0x80) << (8 * length);
        value >>= 7;
        length += 1;
    }
    (word | value << (8 * length), length + 1)
}

/// The length of a number with its key.
#[inline]
pub(super) fn number_len(value: u64) -> usize {
    1 + prost::encoding::encoded_len_varint(value)
}

/// The length of bytes with their key and length.
#[inline]
pub(super) fn bytes_len(length: usize) -> usize {
    number_len(length as u64) + length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_generated_code_writes_them() {
        let numbers = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, u64::MAX >> bit]);
        let mut buffer = Buffer::default();
        for number in numbers {
            let mut want = vec![3 << 3];
            prost::encoding::encode_varint(number, &mut want);
            assert_eq!(want.len(), number_len(number));
            for value in [0, number] {
                let mut pair = vec![];
                for (field, value) in [(1u8, number), (2, value)] {
                    pair.push(field << 3);
                    prost::encoding::encode_varint(value, &mut pair);
                }
                want.extend([5 << 3 | 2, pair.len() as u8]);
                want.append(&mut pair);
            }
            buffer.clear();
            buffer.number(3, number);
            buffer.pair(5, number, 0);
            buffer.pair(5, number, number);
            assert_eq!(buffer.bytes(), want, "{number:#x}");
        }
    }
}
