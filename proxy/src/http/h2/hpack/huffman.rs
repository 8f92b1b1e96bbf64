//! The Huffman code of RFC 7541, appendix B. It is canonical, so that the lengths say all: codes of one length count up in the
//! order of their symbols, and those of the next go on from there. The encoder does without, see [`super::Encoder`].

use bytes::BytesMut;
use std::sync::LazyLock;

/// How long the code of each byte is, in bits. The end of the string has thirty.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const LONGEST: usize = 30;
/// Codes up to this length are found in one look.
const SHORT: usize = 9;

struct Code {
    /// By the next [`SHORT`] bits: a byte, and the length of its code; zero where the code is longer.
    short: [(u8, u8); 1 << SHORT],
    /// By length: where the codes of the next length begin, aligned to the left of [`LONGEST`] bits.
    ends: [u32; LONGEST + 1],
    /// By length: what to add to a code, taken as a number, for its place in `symbols`; wraps around.
    offsets: [u32; LONGEST + 1],
    /// Bytes in the order of their codes.
    symbols: [u8; 256],
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut code = Code {
        short: [(0, 0); 1 << SHORT],
        ends: [0; LONGEST + 1],
        offsets: [0; LONGEST + 1],
        symbols: [0; 256],
    };
    let (mut next, mut place) = (0_u32, 0_u32);
    for length in 1..=LONGEST {
        next <<= 1;
        code.offsets[length] = place.wrapping_sub(next);
        for symbol in
            (0..=u8::MAX).filter(|symbol| usize::from(LENGTHS[usize::from(*symbol)]) == length)
        {
            code.symbols[place as usize] = symbol;
            if length <= SHORT {
                let first = (next as usize) << (SHORT - length);
                let count = 1 << (SHORT - length);
                code.short[first..first + count].fill((symbol, LENGTHS[usize::from(symbol)]));
            }
            next += 1;
            place += 1;
        }
        code.ends[length] = next << (LONGEST - length);
    }
    code
});

/// What is not a string in this code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotHuffman;

/// Adds the bytes that `coded` stands for to `out`.
pub(super) fn decode(coded: &[u8], out: &mut BytesMut) -> Result<(), NotHuffman> {
    let code = &*CODE;
    let start = out.len();
    // The shortest code has five bits.
    out.resize(start + coded.len() * 8 / 5, 0);
    let mut places = out[start..].iter_mut();
    let mut coded = coded.iter();
    // The bits that wait, aligned to the left, and their number.
    let (mut bits, mut count) = (0_u64, 0_usize);
    loop {
        while count <= 56
            && let Some(byte) = coded.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let (symbol, length) = match code.short[(bits >> (64 - SHORT)) as usize] {
            (symbol, length @ 1..) if usize::from(length) <= count => (symbol, usize::from(length)),
            _ if count < 8 && is_padding(bits, count) => {
                let unused = places.len();
                out.truncate(out.len() - unused);
                return Ok(());
            }
            (_, 1..) => return Err(NotHuffman),
            (_, 0) => code.long((bits >> (64 - LONGEST)) as u32, count)?,
        };
        *places.next().ok_or(NotHuffman)? = symbol;
        bits <<= length;
        count -= length;
    }
}

/// Whether what is left at the end is the beginning of the end's own code.
fn is_padding(bits: u64, count: usize) -> bool {
    count == 0 || bits >> (64 - count) == (1 << count) - 1
}

impl Code {
    /// The byte of a long code, which the next bits begin with, and the code's length.
    fn long(&self, bits: u32, count: usize) -> Result<(u8, usize), NotHuffman> {
        let length = (SHORT + 1..=LONGEST.min(count))
            .find(|length| bits < self.ends[*length])
            .ok_or(NotHuffman)?;
        let place = (bits >> (LONGEST - length)).wrapping_add(self.offsets[length]);
        self.symbols
            .get(place as usize)
            .map(|symbol| (*symbol, length))
            .ok_or(NotHuffman)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The examples of RFC 7541, appendix C.4 and C.6.
    #[test]
    fn the_examples_are_read() {
        for (coded, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29ad171863c78f0b97c8e9ae82ae43d3",
                "https://www.example.com",
            ),
        ] {
            let mut out = BytesMut::new();
            decode(&hex(coded), &mut out).unwrap();
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn padding_is_the_beginning_of_the_end() {
        let mut out = BytesMut::new();
        // "0" is five zeros; three ones are padding, anything else is not, nor is a whole byte of it.
        assert_eq!(decode(&[0b0000_0111], &mut out), Ok(()));
        assert_eq!(decode(&[0b0000_0110], &mut out), Err(NotHuffman));
        assert_eq!(decode(&[0b0000_0111, 0xff], &mut out), Err(NotHuffman));
        // The end of the string itself must not be written.
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff], &mut out), Err(NotHuffman));
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// The code from the lengths alone, another way than the decoder has it.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut order: Vec<u8> = (0..=255).collect();
        order.sort_by_key(|symbol| (LENGTHS[usize::from(*symbol)], *symbol));
        let mut codes = [0_u64; 256];
        let (mut next, mut last) = (0_u64, 0);
        for symbol in order {
            let length = LENGTHS[usize::from(symbol)];
            next <<= length - last;
            codes[usize::from(symbol)] = next;
            (next, last) = (next + 1, length);
        }
        let mut bits = Vec::new();
        for byte in text {
            let length = LENGTHS[usize::from(*byte)];
            bits.extend(
                (0..length)
                    .rev()
                    .map(|bit| codes[usize::from(*byte)] >> bit & 1 == 1),
            );
        }
        while bits.len() % 8 != 0 {
            bits.push(true);
        }
        bits.chunks(8)
            .map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::from(*bit)))
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_coded_is_read(text: Vec<u8>) {
            let mut out = BytesMut::new();
            decode(&encode(&text), &mut out).unwrap();
            prop_assert_eq!(&out[..], &text[..]);
        }

        #[test]
        fn anything_else_is_refused_or_read(coded: Vec<u8>) {
            let _ = decode(&coded, &mut BytesMut::new());
        }
    }
}
