//! The downstream side: the accepted stream and its TLS handshake.

use super::{
    SecretSlots, TlsStats,
    certificate::{CertificateDetails, peer_certificate},
    client_hello::{ClientHello, HelloReader, Seen},
    failure::{Failure, Reason},
    stats::version_name,
    stream::{Count, Layer, RawStream, TransportStream},
    tls_context::{DownstreamTlsContext, Handshake, TlsError, suite_name},
    typed_config,
};
use crate::{
    invalid::{At as _, Invalid},
    listener::{PeerCertificate, TlsInfo},
    stats::Counter,
};
use bytes::BytesMut;
use parking_lot::Mutex;
use proto::envoy::config::core::v3::TransportSocket;
use proto::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext as WireTls;
use std::{
    io::{self, IoSlice},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{io::AsyncReadExt as _, time::Instant};

/// The TLS library takes no longer one either.
const LONGEST_HELLO: usize = 64 << 10;

/// A stream from downstream; clear text to whoever reads it.
pub(crate) type DownstreamStream = TransportStream<Downstream>;

/// Who counts a downstream stream's bytes, and who looks at them.
#[derive(Default)]
pub(crate) struct Downstream {
    meter: Arc<Meter>,
    totals: Option<Arc<dyn ByteTotals>>,
    taps: Vec<Box<dyn Tap>>,
}

/// Statistics that the bytes of connections are added to as they move.
pub(crate) trait ByteTotals: Send + Sync {
    /// What came from clients, and what went to them.
    fn counters(&self) -> (&Counter, &Counter);
}

/// A network filter that looks at the bytes as they pass.
pub(crate) trait Tap: Send {
    /// From the client.
    fn on_read(&mut self, bytes: &[u8]);
    /// To the client.
    fn on_write(&mut self, bytes: &[u8]);
}

/// Bytes of one connection and how it ended, shared with whoever reports them.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    received: AtomicU64,
    sent: AtomicU64,
    is_over: AtomicBool,
    is_reset: AtomicBool,
    is_reset_by_us: AtomicBool,
    reason: Mutex<Option<&'static str>>,
}

/// What is noted of a handshake.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandshakeNotes {
    /// When the client's first bytes were there.
    pub(crate) began: Option<Instant>,
    /// When it was complete.
    pub(crate) ended: Option<Instant>,
    /// Why it failed, or why there is none.
    pub(crate) failure: Option<Failure>,
}

/// How a filter chain secures connections.
pub(crate) enum DownstreamTransport {
    /// Not at all.
    Raw,
    /// TLS.
    Tls(Box<DownstreamTlsContext>),
}

/// Why the transport could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// No context.
    #[error(transparent)]
    Context(#[from] TlsError),
    /// The handshake failed.
    #[error("TLS handshake: {0}")]
    Handshake(#[source] io::Error),
}

impl Meter {
    /// Bytes from the peer.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Bytes to the peer.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Whether the peer has ended its side.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// We end the connection, for this reason in Envoy's words; the last one counts.
    pub(crate) fn because(&self, reason: &'static str) {
        *self.reason.lock() = Some(reason);
    }

    /// Why we ended the connection.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        *self.reason.lock()
    }

    /// We reset the connection.
    pub(crate) fn set_reset_by_us(&self) {
        self.is_reset_by_us.store(true, Relaxed);
    }

    /// Whether we have reset the connection.
    pub(crate) fn is_reset_by_us(&self) -> bool {
        self.is_reset_by_us.load(Relaxed)
    }

    /// The peer has reset the connection.
    pub(crate) fn set_reset(&self) {
        self.is_reset.store(true, Relaxed);
    }

    /// Whether the peer has reset the connection.
    pub(crate) fn is_reset(&self) -> bool {
        self.is_reset.load(Relaxed)
    }
}

impl Downstream {
    fn add(&self, received: u64, sent: u64) {
        let counters = self.totals.as_ref().map(|totals| totals.counters());
        let (all_received, all_sent) = counters.unzip();
        for (count, own, all) in [
            (received, &self.meter.received, all_received),
            (sent, &self.meter.sent, all_sent),
        ] {
            if count == 0 {
                continue;
            }
            own.fetch_add(count, Relaxed);
            if let Some(all) = all {
                all.add(count);
            }
        }
    }
}

impl Count for Downstream {
    fn received(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.meter.is_over.store(true, Relaxed);
        }
        self.add(bytes.len() as u64, 0);
        for tap in &mut self.taps {
            tap.on_read(bytes);
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        self.add(0, bytes.len() as u64);
        for tap in &mut self.taps {
            tap.on_write(bytes);
        }
    }

    fn sent_vectored(&mut self, bytes: &[IoSlice<'_>], count: usize) {
        self.add(0, count as u64);
        if self.taps.is_empty() {
            return;
        }
        let mut left = count;
        for slice in bytes {
            let part = &slice[..slice.len().min(left)];
            left -= part.len();
            for tap in &mut self.taps {
                tap.on_write(part);
            }
        }
    }

    fn moved(&self, received: u64, sent: u64) {
        self.add(received, sent);
    }

    fn sees_bytes(&self) -> bool {
        !self.taps.is_empty()
    }

    fn was_reset(&mut self) {
        self.meter.set_reset();
    }
}

impl DownstreamTransport {
    /// Checks a transport socket; none is raw.
    pub(crate) fn build(
        wire: Option<&TransportSocket>,
        secrets: &SecretSlots,
    ) -> Result<Self, Invalid> {
        let Some(any) = typed_config(wire)? else {
            return Ok(Self::Raw);
        };
        let wire: WireTls = proto::any::unpack(any).at("typed_config")?;
        Ok(Self::Tls(Box::new(
            DownstreamTlsContext::new(&wire, secrets).at("typed_config")?,
        )))
    }

    /// Sets the transport up on an accepted socket between these addresses; `stats` are only asked for when there is TLS, and
    /// `notes` only made then.
    pub(crate) async fn accept<'a>(
        &self,
        raw: RawStream,
        addresses: Option<(IpAddr, IpAddr)>,
        notes: &mut HandshakeNotes,
        stats: impl FnOnce() -> &'a TlsStats,
    ) -> Result<(DownstreamStream, Option<Arc<TlsInfo>>), HandshakeError> {
        match self {
            Self::Raw => Ok((DownstreamStream::raw(raw), None)),
            Self::Tls(context) => {
                let stats = stats();
                let (local, remote) = addresses.unzip();
                let handshake = context.handshake(local, remote).inspect_err(|error| {
                    if matches!(error, TlsError::SecretMissing(_)) {
                        stats.secrets_not_ready(true);
                    }
                    notes.failure = Some(Failure::of_context(error));
                })?;
                if handshake.is_updated {
                    stats.context_updated();
                }
                // What a listener filter saw was before: of a PROXY head, say.
                notes.failure = None;
                let (raw, hello) = read_hello(raw, notes).await;
                if hello.wants_staple {
                    let name = hello.server_name.as_deref();
                    let shown = handshake.certificates.choose(name, &[]);
                    stats.staple_requested(shown.is_some_and(|pair| pair.key.ocsp.is_some()));
                }
                let acceptor = tokio_rustls::TlsAcceptor::from(handshake.config.clone());
                let stream = acceptor
                    .accept(raw)
                    .await
                    .inspect_err(|error| {
                        stats.failed(error);
                        // What is not TLS at all has been looked at already.
                        if notes.failure.is_none() {
                            notes.failure = Failure::of_handshake(error);
                        }
                    })
                    .map_err(HandshakeError::Handshake)?;
                notes.ended = Some(Instant::now());
                let session = stream.get_ref().1;
                stats.succeeded(session);
                let info = Arc::new(tls_info(session, &handshake));
                let seat = context.peers().enter(session.peer_certificates());
                let layer = Layer::Tls(Box::new(stream.into()));
                let stream = TransportStream::new(layer, Downstream::default());
                Ok((stream.with_seat(seat), Some(info)))
            }
        }
    }
}

/// Reads what a client begins with, as the TLS library does not tell all of it.
async fn read_hello(mut raw: RawStream, notes: &mut HandshakeNotes) -> (RawStream, ClientHello) {
    let mut seen = BytesMut::from(std::mem::take(&mut raw.ahead));
    // As much as nearly every client says; without it 64 bytes would be read first.
    seen.reserve(4 << 10);
    let mut reader = HelloReader::default();
    let hello = loop {
        if !seen.is_empty() {
            notes.began.get_or_insert_with(Instant::now);
        }
        match (!seen.is_empty()).then(|| reader.look(&seen)) {
            Some(Seen::Hello(body)) => break ClientHello::of(&body),
            Some(Seen::Other) => {
                let reason = Failure::Handshake(Reason::not_tls(&seen));
                notes.failure = Some(reason);
                break ClientHello::default();
            }
            Some(Seen::More) if seen.len() >= LONGEST_HELLO => break ClientHello::default(),
            Some(Seen::More) | None => {}
        }
        // At a connection's end the handshake will find what there is to be found.
        match raw.read_buf(&mut seen).await {
            Ok(1..) => {}
            Ok(0) => break ClientHello::default(),
            Err(error) => {
                notes.failure = Failure::of_handshake(&error);
                break ClientHello::default();
            }
        }
    };
    raw.ahead = seen.freeze();
    (raw, hello)
}

fn tls_info(session: &rustls::ServerConnection, handshake: &Handshake) -> TlsInfo {
    let own = handshake.certificates.choose(session.server_name(), &[]);
    let own = own.map(|pair| &pair.details);
    let peer = session.peer_certificates().and_then(|chain| {
        let verifier = &handshake.verifier;
        let is_validated = !verifier.is_lenient() || verifier.is_valid_client(chain);
        peer_certificate(chain, is_validated)
    });
    session_info(session, session.server_name(), own, peer)
}

/// As Envoy's TLS library calls them.
fn group_name(group: rustls::NamedGroup) -> Option<&'static str> {
    Some(match group {
        rustls::NamedGroup::secp256r1 => "P-256",
        rustls::NamedGroup::secp384r1 => "P-384",
        rustls::NamedGroup::secp521r1 => "P-521",
        rustls::NamedGroup::X25519 => "X25519",
        rustls::NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        other => other.as_str()?,
    })
}

/// What a session, its own certificate and the peer's come to.
pub(super) fn session_info(
    session: &rustls::CommonState,
    server_name: Option<&str>,
    own: Option<&Arc<CertificateDetails>>,
    peer: Option<PeerCertificate>,
) -> TlsInfo {
    TlsInfo {
        alpn: session
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        server_name: server_name.map(str::to_owned),
        version: version_name(session),
        cipher: session
            .negotiated_cipher_suite()
            .map(|suite| suite_name(suite.suite()))
            .unwrap_or_default(),
        peer: peer.map(Arc::new),
        group: (session.negotiated_key_exchange_group()).and_then(|group| group_name(group.name())),
        local: own.cloned().unwrap_or_default(),
    }
}

impl DownstreamStream {
    /// A stream without transport security.
    pub(crate) fn raw(raw: RawStream) -> Self {
        TransportStream::new(Layer::Raw(raw), Downstream::default())
    }

    /// The connection's byte counts.
    pub(crate) fn meter(&self) -> Arc<Meter> {
        self.count.meter.clone()
    }

    /// Its bytes are added to `totals` from now on, and those at once that have moved before.
    pub(crate) fn add_up_in(&mut self, totals: Arc<dyn ByteTotals>) {
        let (received, sent) = totals.counters();
        received.add(self.count.meter.received());
        sent.add(self.count.meter.sent());
        self.count.totals = Some(totals);
    }

    /// Lets `tap` see every byte from now on.
    pub(crate) fn add_tap(&mut self, tap: Box<dyn Tap>) {
        self.count.taps.push(tap);
    }
}
