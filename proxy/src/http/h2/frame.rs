//! Frames as bytes (RFC 9113, 4 and 6).

/// The bytes of a frame's head.
pub(super) const HEAD: usize = 9;
/// The longest frame that either end may send unless the other has said more, which we never do.
pub(super) const MAX_LENGTH: usize = 16 << 10;
/// What a client says first.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The windows that either end begins with.
pub(super) const INITIAL_WINDOW: u32 = 65_535;
/// No window may be larger.
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS.
pub(super) const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub(super) const ACK: u8 = 1;
/// Of HEADERS and CONTINUATION.
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// The bytes of RST_STREAM, and of WINDOW_UPDATE: four behind the head.
pub(super) const RESET: u64 = HEAD as u64 + 4;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;
pub(super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// The head that bytes begin with.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEAD>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & !(1 << 31),
        })
    }

    /// The bytes of the whole frame.
    pub(super) fn wire(self) -> u64 {
        (HEAD + self.length) as u64
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Adds it to what goes out.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let [_, a, b, c] = length_bytes(self.length);
        let [e, f, g, h] = self.stream.to_be_bytes();
        out.extend_from_slice(&[a, b, c, self.kind, self.flags, e, f, g, h]);
    }

    /// The payload without padding; `None` when there is more padding than payload.
    pub(super) fn unpadded(self, payload: &[u8]) -> Option<&[u8]> {
        if !self.has(PADDED) {
            return Some(payload);
        }
        let (padding, rest) = payload.split_first()?;
        rest.get(..rest.len().checked_sub(usize::from(*padding))?)
    }

    /// The block of HEADERS without padding, and the stream that it depends on.
    pub(super) fn block(self, payload: &[u8]) -> Option<(&[u8], Option<u32>)> {
        let payload = self.unpadded(payload)?;
        if !self.has(WITH_PRIORITY) {
            return Some((payload, None));
        }
        let (priority, block) = payload.split_at_checked(5)?;
        Some((block, number(priority)))
    }
}

/// The four bytes of a frame's length; the first is zero.
pub(super) fn length_bytes(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// A number of 31 bits.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes) & !(1 << 31))
}

/// Adds a frame of one number.
pub(super) fn put_number(kind: u8, stream: u32, number: u32, out: &mut Vec<u8>) {
    put(kind, 0, stream, &number.to_be_bytes(), out);
}

/// Adds a frame.
pub(super) fn put(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    let length = payload.len();
    Head {
        length,
        kind,
        flags,
        stream,
    }
    .put(out);
    out.extend_from_slice(payload);
}
