//! What a client says before a handshake begins, as far as the TLS library does not tell.

/// What a ClientHello says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// The server that it asks for.
    pub(crate) server_name: Option<String>,
    /// The application protocols that it offers.
    pub(crate) alpn: Vec<Box<str>>,
    /// It would like to see an OCSP response.
    pub(crate) wants_staple: bool,
}

/// What a connection begins with.
pub(crate) enum Seen {
    /// It is too early to say.
    More,
    /// Not TLS.
    Other,
    /// A ClientHello: its body.
    Hello(Vec<u8>),
}

/// Looks at a connection's first bytes as they come; what it has seen it does not look at again, in however small pieces a
/// client sends and however many records it makes of them.
#[derive(Default)]
pub(crate) struct HelloReader {
    /// The records' contents, put together: a ClientHello may be spread over several.
    message: Vec<u8>,
    /// How many of the connection's bytes that was.
    seen: usize,
}

impl HelloReader {
    /// Looks at all bytes so far, of which there must be one.
    pub(crate) fn look(&mut self, bytes: &[u8]) -> Seen {
        if self.seen == 0 && (bytes[0] != 22 || bytes.get(1).is_some_and(|major| *major != 3)) {
            return Seen::Other;
        }
        loop {
            if let Some([kind, length @ ..]) = self.message.first_chunk::<4>() {
                let [high, middle, low] = length.map(usize::from);
                let length = high << 16 | middle << 8 | low;
                if *kind != 1 {
                    return Seen::Other;
                }
                if let Some(body) = self.message.get(4..4 + length) {
                    return Seen::Hello(body.to_vec());
                }
            }
            let Some((header, body)) = bytes[self.seen..].split_at_checked(5) else {
                return Seen::More;
            };
            if header[0] != 22 || header[1] != 3 {
                return Seen::Other;
            }
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let Some(fragment) = body.get(..length) else {
                return Seen::More;
            };
            if length == 0 {
                return Seen::Other;
            }
            self.message.extend_from_slice(fragment);
            self.seen += 5 + length;
        }
    }
}

impl ClientHello {
    /// Reads a ClientHello's body; one that cannot be read says nothing: it is TLS all the same, and the handshake will refuse it.
    pub(crate) fn of(body: &[u8]) -> Self {
        Self::read(body).unwrap_or_default()
    }

    fn read(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        reader.take(2 + 32)?;
        reader.vector8()?;
        reader.vector16()?;
        reader.vector8()?;
        let mut hello = Self::default();
        if reader.0.is_empty() {
            return Some(hello);
        }
        let mut extensions = Reader(reader.vector16()?);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let mut data = Reader(extensions.vector16()?);
            match kind {
                0 => {
                    let mut names = Reader(data.vector16()?);
                    // Only host names (0) are in use.
                    if names.take(1)? == [0] {
                        hello.server_name =
                            Some(String::from_utf8(names.vector16()?.to_vec()).ok()?);
                    }
                }
                16 => {
                    let mut names = Reader(data.vector16()?);
                    while !names.0.is_empty() {
                        hello
                            .alpn
                            .push(String::from_utf8_lossy(names.vector8()?).into());
                    }
                }
                // OCSP (1) is the only kind of status there is.
                5 => hello.wants_staple = data.take(1)? == [1],
                _ => {}
            }
        }
        Some(hello)
    }
}

/// Takes from the front of what is left.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<usize> {
        self.take(2)
            .map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }

    pub(super) fn vector8(&mut self) -> Option<&'a [u8]> {
        let count = usize::from(self.take(1)?[0]);
        self.take(count)
    }

    pub(super) fn vector16(&mut self) -> Option<&'a [u8]> {
        let count = self.u16()?;
        self.take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello without extensions, in records of one byte each.
    fn in_tiny_records() -> Vec<u8> {
        let mut message = vec![1, 0, 0, 2 + 32 + 1 + 2 + 1];
        message.resize(4 + 2 + 32 + 1 + 2 + 1, 0);
        let record = |byte: u8| [22, 3, 1, 0, 1, byte];
        message.into_iter().flat_map(record).collect()
    }

    #[test]
    fn records_that_were_read_are_not_read_again() {
        let mut bytes = in_tiny_records();
        let mut reader = HelloReader::default();
        for end in 1..bytes.len() {
            assert!(matches!(reader.look(&bytes[..end]), Seen::More));
            // Whoever looked at this once more would not take it for TLS.
            let seen = reader.seen;
            assert_eq!(seen, end / 6 * 6);
            bytes[..seen].fill(0);
        }
        assert!(matches!(reader.look(&bytes), Seen::Hello(_)));
    }
}
