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

impl Seen {
    /// Looks at a connection's first bytes, of which there must be one.
    pub(crate) fn first(bytes: &[u8]) -> Self {
        if bytes[0] != 22 || bytes.get(1).is_some_and(|major| *major != 3) {
            return Seen::Other;
        }
        // The ClientHello may be spread over several records; put it together.
        let mut message = Vec::new();
        let mut rest = bytes;
        loop {
            if let Some(length) = message.get(1..4).map(|length: &[u8]| {
                usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2])
            }) {
                if message[0] != 1 {
                    return Seen::Other;
                }
                if message.len() >= 4 + length {
                    message.drain(..4);
                    message.truncate(length);
                    return Seen::Hello(message);
                }
            }
            let Some((header, body)) = rest.split_at_checked(5) else {
                return Seen::More;
            };
            if header[0] != 22 || header[1] != 3 {
                return Seen::Other;
            }
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let Some((fragment, after)) = body.split_at_checked(length) else {
                return Seen::More;
            };
            if length == 0 {
                return Seen::Other;
            }
            message.extend_from_slice(fragment);
            rest = after;
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
