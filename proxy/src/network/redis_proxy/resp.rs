//! The Redis protocol (RESP2): values from bytes and back.

use bytes::{Buf as _, Bytes, BytesMut};

/// The longest string, the longest list and the deepest nesting that are taken.
const LONGEST_STRING: usize = 64 << 20;
const LONGEST_ARRAY: usize = 1 << 20;
const DEEPEST: usize = 8;
/// What a value begins with.
const MARKS: &[u8] = b"+-:$*";
/// The most that is held of a value that is not whole yet.
const LONGEST_WHOLE: usize = LONGEST_STRING + (8 << 20);
/// The longest line that says a length, a number or an error.
const LONGEST_LINE: usize = 64 << 10;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Simple(Bytes),
    Error(Bytes),
    Integer(i64),
    Bulk(Bytes),
    Array(Vec<Value>),
    Null,
    NullArray,
}

/// Bytes that are not the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the Redis protocol")]
pub(super) struct Broken;

/// Takes values off a stream. What it has looked at of one that is not whole yet it does not look at again.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Where the next element of the value begins.
    at: usize,
    /// How many elements are still to come of the lists that are open, the innermost last.
    open: Vec<usize>,
    /// Lines of words are commands too: how people type them.
    takes_lines: bool,
}

/// More bytes are needed, or they are broken.
enum Stop {
    More,
    Broken,
}

impl Value {
    /// An error of ours.
    pub(super) fn error(text: impl Into<String>) -> Self {
        Self::Error(Bytes::from(text.into()))
    }

    /// A fixed answer.
    pub(super) fn simple(text: &'static str) -> Self {
        Self::Simple(Bytes::from_static(text.as_bytes()))
    }

    /// Whether it says that something went wrong.
    pub(super) fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// Writes it.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let line = |out: &mut BytesMut, mark: u8, text: &[u8]| {
            out.extend_from_slice(&[mark]);
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        };
        match self {
            Self::Simple(text) => line(out, b'+', text),
            Self::Error(text) => line(out, b'-', text),
            Self::Integer(number) => line(out, b':', number.to_string().as_bytes()),
            Self::Bulk(bytes) => {
                line(out, b'$', bytes.len().to_string().as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Array(values) => {
                line(out, b'*', values.len().to_string().as_bytes());
                for value in values {
                    value.encode(out);
                }
            }
            Self::Null => out.extend_from_slice(b"$-1\r\n"),
            Self::NullArray => out.extend_from_slice(b"*-1\r\n"),
        }
    }
}

impl Decoder {
    /// For what clients say.
    pub(super) fn of_client() -> Self {
        Decoder {
            takes_lines: true,
            ..Decoder::default()
        }
    }

    /// A command in a line of words, if that is what comes next.
    fn words(bytes: &mut BytesMut) -> Result<Option<Value>, Stop> {
        let mut at = 0;
        let text = line(bytes, &mut at)?;
        let words: Vec<Value> = text
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .map(|word| Value::Bulk(Bytes::copy_from_slice(word)))
            .collect();
        bytes.advance(at);
        Ok((!words.is_empty()).then_some(Value::Array(words)))
    }

    /// Takes the next whole value off the front; none when there is not all of it yet.
    pub(super) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Value>, Broken> {
        let is_fresh = self.at == 0 && self.open.is_empty();
        while self.takes_lines
            && is_fresh
            && bytes.first().is_some_and(|mark| !MARKS.contains(mark))
        {
            match Self::words(bytes) {
                Ok(Some(words)) => return Ok(Some(words)),
                // An empty line.
                Ok(None) => {}
                Err(Stop::More) => return Ok(None),
                Err(Stop::Broken) => return Err(Broken),
            }
        }
        match self.measure(bytes) {
            Err(Stop::More) if bytes.len() > LONGEST_WHOLE => return Err(Broken),
            Err(Stop::More) => return Ok(None),
            Err(Stop::Broken) => return Err(Broken),
            Ok(()) => {}
        }
        let mut whole = bytes.split_to(std::mem::take(&mut self.at)).freeze();
        read(&mut whole).map(Some)
    }

    /// Moves on to the end of the value.
    fn measure(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        loop {
            let mut at = self.at;
            let elements = element(bytes, &mut at)?;
            self.at = at;
            if elements > 0 {
                if self.open.len() >= DEEPEST {
                    return Err(Stop::Broken);
                }
                self.open.push(elements);
                continue;
            }
            // The element may have been the last of its list, and the list the last of another.
            while let Some(left) = self.open.last_mut() {
                *left -= 1;
                if *left > 0 {
                    break;
                }
                self.open.pop();
            }
            if self.open.is_empty() {
                return Ok(());
            }
        }
    }
}

/// The line at `at`, without its end; `at` goes behind it.
fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], Stop> {
    let rest = &bytes[*at..];
    let searched = &rest[..rest.len().min(LONGEST_LINE)];
    match searched.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => {
            *at += end + 2;
            Ok(&rest[..end])
        }
        None if rest.len() >= LONGEST_LINE => Err(Stop::Broken),
        None => Err(Stop::More),
    }
}

fn number(text: &[u8]) -> Result<i64, Stop> {
    let text = std::str::from_utf8(text).map_err(|_| Stop::Broken)?;
    text.parse().map_err(|_| Stop::Broken)
}

fn length(text: &[u8], most: usize) -> Result<Option<usize>, Stop> {
    match number(text)? {
        -1 => Ok(None),
        length => usize::try_from(length)
            .ok()
            .filter(|length| *length <= most)
            .map(Some)
            .ok_or(Stop::Broken),
    }
}

/// Moves `at` behind the element that begins there; of a list only behind its length, which is what comes back.
fn element(bytes: &[u8], at: &mut usize) -> Result<usize, Stop> {
    let text = line(bytes, at)?;
    let (mark, text) = text.split_first().ok_or(Stop::Broken)?;
    match mark {
        b'+' | b'-' => {}
        b':' => {
            number(text)?;
        }
        b'$' => {
            if let Some(length) = length(text, LONGEST_STRING)? {
                let end = *at + length;
                match bytes.get(end..end + 2) {
                    Some(b"\r\n") => *at = end + 2,
                    Some(_) => return Err(Stop::Broken),
                    None => return Err(Stop::More),
                }
            }
        }
        b'*' => return Ok(length(text, LONGEST_ARRAY)?.unwrap_or(0)),
        _ => return Err(Stop::Broken),
    }
    Ok(0)
}

/// Reads a value that is known to be whole.
fn read(whole: &mut Bytes) -> Result<Value, Broken> {
    let mut at = 0;
    let text = line(whole, &mut at).map_err(|_| Broken)?.len();
    let mut text = whole.split_to(text);
    whole.advance(2);
    if text.is_empty() {
        return Err(Broken);
    }
    let mark = text.split_to(1)[0];
    let length = |most| length(&text, most).map_err(|_| Broken);
    Ok(match mark {
        b'+' => Value::Simple(text),
        b'-' => Value::Error(text),
        b':' => Value::Integer(number(&text).map_err(|_| Broken)?),
        b'$' => match length(LONGEST_STRING)? {
            None => Value::Null,
            Some(length) => {
                let bytes = whole.split_to(length);
                whole.advance(2);
                Value::Bulk(bytes)
            }
        },
        _ => match length(LONGEST_ARRAY)? {
            None => Value::NullArray,
            Some(length) => {
                let mut values = Vec::with_capacity(length.min(1024));
                for _ in 0..length {
                    values.push(read(whole)?);
                }
                Value::Array(values)
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let text = proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let leaf = prop_oneof![
            text.prop_map(Value::Bulk),
            "[a-z ]{0,9}".prop_map(|text| Value::Simple(text.into())),
            "[a-z ]{0,9}".prop_map(|text| Value::Error(text.into())),
            any::<i64>().prop_map(Value::Integer),
            Just(Value::Null),
            Just(Value::NullArray),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            proptest::collection::vec(inner, 0..4).prop_map(Value::Array)
        })
    }

    proptest! {
        #[test]
        fn values_round_trip_and_wait_for_their_last_byte(value in values()) {
            let (mut bytes, mut decoder) = (BytesMut::new(), Decoder::default());
            value.encode(&mut bytes);
            let mut part = BytesMut::new();
            for byte in &bytes {
                prop_assert_eq!(decoder.decode(&mut part), Ok(None));
                part.extend_from_slice(&[*byte]);
            }
            prop_assert_eq!(decoder.decode(&mut part), Ok(Some(value.clone())));
            prop_assert!(part.is_empty());
            // Whole, and with another one behind it.
            value.encode(&mut bytes);
            for _ in 0..2 {
                prop_assert_eq!(decoder.decode(&mut bytes), Ok(Some(value.clone())));
            }
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn lines_of_words_are_commands(words in proptest::collection::vec("[a-zA-Z0-9]{1,9}", 1..5)) {
            let mut bytes = BytesMut::from(format!("\r\n{}\r\n", words.join(" ")).as_bytes());
            let wanted = words.into_iter().map(|word| Value::Bulk(word.into())).collect();
            prop_assert_eq!(Decoder::of_client().decode(&mut bytes), Ok(Some(Value::Array(wanted))));
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..200), marks in "[*$:+-]{1,3}[0-9\r\n-]{0,20}") {
            let _ = Decoder::default().decode(&mut BytesMut::from(garbage.as_slice()));
            let _ = Decoder::of_client().decode(&mut BytesMut::from(garbage.as_slice()));
            let _ = Decoder::default().decode(&mut BytesMut::from(marks.as_bytes()));
        }
    }

    #[test]
    fn fuzz_redis() {
        crate::fuzz::fuzz("redis", |bytes| {
            for new in [Decoder::default, Decoder::of_client] {
                let whole = new().decode(&mut BytesMut::from(bytes));
                let (mut decoder, mut part) = (new(), BytesMut::new());
                let piecemeal = bytes.iter().find_map(|byte| {
                    part.extend_from_slice(&[*byte]);
                    decoder.decode(&mut part).transpose()
                });
                assert_eq!(piecemeal.transpose(), whole);
            }
        });
    }
}
