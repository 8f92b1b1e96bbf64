//! TLS inspector: whether the client speaks TLS, which server it asks for, which application protocols it offers.

use super::{Accepted, Look, TlsInspectorStats};
use crate::listener::{ConnectionInfo, TransportProtocol};
use std::io;

/// What a ClientHello says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hello {
    server_name: Option<String>,
    alpn: Vec<Box<str>>,
}

/// Looks at the first record.
pub(super) async fn inspect(
    accepted: &mut Accepted,
    info: &mut ConnectionInfo,
    stats: &TlsInspectorStats,
) -> io::Result<()> {
    let looked = accepted.look(parse).await.inspect_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            &stats.connection_closed
        } else {
            &stats.read_error
        }
        .inc();
    })?;
    let Some(found) = looked else {
        stats.client_hello_too_large.inc();
        return Err(io::Error::other("the ClientHello is too large"));
    };
    let Some(hello) = found else {
        stats.tls_not_found.inc();
        return Ok(());
    };
    stats.tls_found.inc();
    if hello.server_name.is_some() {
        &stats.sni_found
    } else {
        &stats.sni_not_found
    }
    .inc();
    if hello.alpn.is_empty() {
        &stats.alpn_not_found
    } else {
        &stats.alpn_found
    }
    .inc();
    info.transport_protocol = TransportProtocol::Tls;
    info.server_name = hello
        .server_name
        .map(|name| name.to_ascii_lowercase().into());
    if !hello.alpn.is_empty() {
        info.application_protocols = hello.alpn;
    }
    Ok(())
}

/// `Done(None)` when it is not TLS.
fn parse(bytes: &[u8]) -> Look<Option<Hello>> {
    if bytes[0] != 22 || bytes.get(1).is_some_and(|major| *major != 3) {
        return Look::Done(None);
    }
    // The ClientHello may be spread over several records; put it together.
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        if let Some(length) = message.get(1..4).map(|length: &[u8]| {
            usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2])
        }) {
            if message[0] != 1 {
                return Look::Done(None);
            }
            if message.len() >= 4 + length {
                // A ClientHello that cannot be read is TLS all the same; the handshake will refuse it.
                return Look::Done(Some(hello(&message[4..4 + length]).unwrap_or_default()));
            }
        }
        let Some((header, body)) = rest.split_at_checked(5) else {
            return Look::More;
        };
        if header[0] != 22 || header[1] != 3 {
            return Look::Done(None);
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let Some((fragment, after)) = body.split_at_checked(length) else {
            return Look::More;
        };
        if length == 0 {
            return Look::Done(None);
        }
        message.extend_from_slice(fragment);
        rest = after;
    }
}

fn hello(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    let mut hello = Hello::default();
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
                    hello.server_name = Some(String::from_utf8(names.vector16()?.to_vec()).ok()?);
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
            _ => {}
        }
    }
    Some(hello)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2)
            .map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let count = usize::from(self.take(1)?[0]);
        self.take(count)
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let count = self.u16()?;
        self.take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client_hello() -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"istio".to_vec(), b"h2".to_vec()];
        let mut client =
            rustls::ClientConnection::new(config.into(), "reviews.example.com".try_into().unwrap())
                .unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn name_and_protocols_are_found_once_the_hello_is_whole() {
        let bytes = client_hello();
        assert!(matches!(parse(&bytes[..bytes.len() - 1]), Look::More));
        let Look::Done(Some(hello)) = parse(&bytes) else {
            panic!("not found")
        };
        assert_eq!(hello.server_name.as_deref(), Some("reviews.example.com"));
        assert_eq!(hello.alpn, vec!["istio".into(), "h2".into()]);
        assert!(matches!(parse(b"GET / HTTP/1.1"), Look::Done(None)));
    }

    proptest! {
        #[test]
        fn parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..300), cut in 0_usize..300) {
            parse(&bytes);
            let mut hello = client_hello();
            hello.truncate(cut.max(1));
            parse(&hello);
            let at = cut % hello.len();
            hello[at] ^= bytes[0];
            parse(&hello);
        }
    }

    #[test]
    fn fuzz_client_hellos() {
        crate::listener_filter::fuzz_looks("client_hellos", 1, parse);
    }
}
