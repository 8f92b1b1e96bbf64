//! Bodies by length, by chunks or to the end of the connection, decoded piece by piece from what has been read.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;

use super::head::fields;

/// The trailers of a message may not be longer.
const MAX_TRAILERS: usize = 60 << 10;
/// A chunk's extensions may not be longer.
const MAX_EXTENSIONS: usize = 4 << 10;
/// A chunk's size has at most so many digits.
const MAX_DIGITS: u8 = 15;
/// No more trailers than this.
const MAX_TRAILER_COUNT: usize = 100;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// By chunks.
    Chunked,
    /// Where the connection ends.
    UntilClose,
}

/// What a step of decoding gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// A piece of the body.
    Data(Bytes),
    /// The body is over, and these came after it.
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// More must be read first.
    More,
}

/// A body that is not framed as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not framed as it says")]
pub(crate) struct InvalidBody;

/// Where decoding stands.
#[derive(Debug, Clone)]
pub(crate) struct Decoder(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    Size { value: u64, digits: u8 },
    Extension { value: u64, length: usize },
    SizeEnd { value: u64 },
    Chunk(u64),
    ChunkReturn,
    ChunkEnd,
    Trailers,
    Done,
}

impl Decoder {
    /// A body that begins.
    pub(crate) fn new(framing: Framing) -> Self {
        Decoder(match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::UntilClose => State::UntilClose,
            Framing::Chunked => START,
        })
    }

    /// Nothing more will come.
    pub(crate) fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// How many bytes are sure to come next.
    pub(crate) fn expected(&self) -> usize {
        match self.0 {
            State::Length(length) | State::Chunk(length) => {
                usize::try_from(length).unwrap_or(usize::MAX)
            }
            State::Done => 0,
            _ => usize::MAX,
        }
    }

    /// The next piece out of `input`.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, InvalidBody> {
        loop {
            match &mut self.0 {
                State::Done => return Ok(Decoded::End),
                _ if input.is_empty() => return Ok(Decoded::More),
                State::UntilClose => return Ok(Decoded::Data(input.split().freeze())),
                State::Length(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        self.0 = State::Done;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::Chunk(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        self.0 = State::ChunkReturn;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::Trailers => return self.trailers(input),
                _ => self.line(input)?,
            }
        }
    }

    /// The connection has ended: an error if the body had not.
    pub(crate) fn close(&mut self) -> Result<(), InvalidBody> {
        match self.0 {
            State::Done | State::UntilClose => {
                self.0 = State::Done;
                Ok(())
            }
            _ => Err(InvalidBody),
        }
    }

    /// One byte of what stands between chunks.
    fn line(&mut self, input: &mut BytesMut) -> Result<(), InvalidBody> {
        let byte = input[0];
        input.advance(1);
        self.0 = match (self.0, byte) {
            (State::Size { value, digits: 1.. }, b';') => State::Extension { value, length: 0 },
            // QUIRK: Envoy lets blanks stand between the size and the end of the line.
            (State::Size { value, digits: 1.. }, b' ' | b'\t') => {
                State::Extension { value, length: 0 }
            }
            (State::Size { value, digits: 1.. }, b'\r') => State::SizeEnd { value },
            (State::Size { value, digits }, byte) if digits < MAX_DIGITS => {
                let digit = char::from(byte).to_digit(16).ok_or(InvalidBody)?;
                State::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (State::Extension { value, .. }, b'\r') => State::SizeEnd { value },
            (State::Extension { value, length }, byte)
                if byte != b'\n' && byte != 0 && length < MAX_EXTENSIONS =>
            {
                State::Extension {
                    value,
                    length: length + 1,
                }
            }
            (State::SizeEnd { value: 0 }, b'\n') => State::Trailers,
            (State::SizeEnd { value }, b'\n') => State::Chunk(value),
            (State::ChunkReturn, b'\r') => State::ChunkEnd,
            (State::ChunkEnd, b'\n') => START,
            _ => return Err(InvalidBody),
        };
        Ok(())
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Decoded, InvalidBody> {
        if input.starts_with(b"\r\n") {
            input.advance(2);
            self.0 = State::Done;
            return Ok(Decoded::End);
        }
        let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else {
            if input.len() > MAX_TRAILERS {
                return Err(InvalidBody);
            }
            return Ok(Decoded::More);
        };
        let block = input.split_to(end + 4).freeze();
        let mut slots = [httparse::EMPTY_HEADER; MAX_TRAILER_COUNT];
        let Ok(httparse::Status::Complete((_, parsed))) =
            httparse::parse_headers(&block, &mut slots)
        else {
            return Err(InvalidBody);
        };
        let trailers =
            fields(&block, parsed, 0, |_, value| Some(value)).map_err(|_| InvalidBody)?;
        self.0 = State::Done;
        Ok(Decoded::Trailers(trailers))
    }
}

/// The bytes of trailers, as Envoy counts what comes.
pub(crate) fn trailer_bytes(trailers: &HeaderMap) -> usize {
    let fields = trailers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 3);
    fields.sum()
}

const START: State = State::Size {
    value: 0,
    digits: 0,
};

fn take(input: &mut BytesMut, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(input.len());
    *left -= count as u64;
    input.split_to(count).freeze()
}
