//! TLS inspector: whether the client speaks TLS, which server it asks for, which application protocols it offers.

use super::{Accepted, Look, TlsInspectorStats, TlsInspectorWire};
use crate::{
    listener::{ConnectionInfo, Fingerprints, TransportProtocol},
    transport::{ClientHello, Failure, HelloReader, Reason, Seen, ja3, ja4},
};
use std::{io, sync::Arc};

/// What it does besides looking.
pub(super) struct Options {
    stats: Arc<TlsInspectorStats>,
    wants_ja3: bool,
    wants_ja4: bool,
}

impl Options {
    pub(super) fn new(wire: &TlsInspectorWire, stats: Arc<TlsInspectorStats>) -> Self {
        Self {
            stats,
            wants_ja3: wire.enable_ja3_fingerprinting == Some(true),
            wants_ja4: wire.enable_ja4_fingerprinting == Some(true),
        }
    }

    fn fingerprints(&self, body: &[u8]) -> Option<Box<Fingerprints>> {
        let wants_any = self.wants_ja3 || self.wants_ja4;
        wants_any.then(|| {
            Box::new(Fingerprints {
                ja3: self.wants_ja3.then(|| ja3(body)).flatten(),
                ja4: self.wants_ja4.then(|| ja4(body)).flatten(),
            })
        })
    }
}

/// Looks at the first record.
pub(super) async fn inspect(
    options: &Options,
    accepted: &mut Accepted,
    info: &mut ConnectionInfo,
) -> io::Result<()> {
    let stats = &options.stats;
    let mut reader = HelloReader::default();
    let look = |bytes: &[u8]| look(&mut reader, bytes);
    let Some(found) = accepted.look(look).await? else {
        stats.client_hello_too_large.inc();
        return Err(io::Error::other("the ClientHello is too large"));
    };
    let Some(body) = found else {
        stats.tls_not_found.inc();
        info.handshake.failure = Some(Failure::NotTls(Reason::not_tls(&accepted.ahead)));
        return Ok(());
    };
    stats.tls_found.inc();
    info.fingerprints = options.fingerprints(&body);
    let hello = ClientHello::of(&body);
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
fn look(reader: &mut HelloReader, bytes: &[u8]) -> Look<Option<Vec<u8>>> {
    match reader.look(bytes) {
        Seen::More => Look::More,
        Seen::Other => Look::Done(None),
        Seen::Hello(body) => Look::Done(Some(body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn look(bytes: &[u8]) -> Look<Option<Vec<u8>>> {
        super::look(&mut HelloReader::default(), bytes)
    }

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
        assert!(matches!(look(&bytes[..bytes.len() - 1]), Look::More));
        let Look::Done(Some(body)) = look(&bytes) else {
            panic!("not found")
        };
        let hello = ClientHello::of(&body);
        assert_eq!(hello.server_name.as_deref(), Some("reviews.example.com"));
        assert_eq!(hello.alpn, vec!["istio".into(), "h2".into()]);
        assert!(hello.wants_staple);
        assert!(matches!(look(b"GET / HTTP/1.1"), Look::Done(None)));
    }

    proptest! {
        #[test]
        fn parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..300), cut in 0_usize..300) {
            look(&bytes);
            let mut hello = client_hello();
            hello.truncate(cut.max(1));
            look(&hello);
            let at = cut % hello.len();
            hello[at] ^= bytes[0];
            look(&hello);
        }
    }

    #[test]
    fn fuzz_client_hellos() {
        crate::listener_filter::fuzz_looks("client_hellos", 1, look);
    }
}
