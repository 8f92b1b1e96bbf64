//! Open TLS connections by the certificate of their peer, so that a revocation list closes those that it names: new handshakes
//! are the verifier's affair, what is open already is this one's.

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Context,
};
use webpki::{CertRevocationList, EndEntityCert};

/// Everybody who has shown a certificate on a connection that is open.
#[derive(Default)]
pub struct Peers(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    next: u64,
    open: BTreeMap<u64, Arc<Peer>>,
    /// The lists in force, by the secret that they came with.
    lists: BTreeMap<String, Arc<[CertRevocationList<'static>]>>,
}

/// One peer's certificate.
struct Peer {
    serial: Box<[u8]>,
    issuer: Box<[u8]>,
    is_revoked: AtomicBool,
    /// Whoever waits for the connection's next bytes.
    reader: AtomicWaker,
}

/// A connection's place among the open ones; it is left when this is dropped.
pub struct Seat {
    peers: Arc<Peers>,
    id: u64,
    peer: Arc<Peer>,
}

impl Peers {
    /// Takes a connection in whose peer has shown `chain`; none if it has shown nothing that could be revoked.
    pub fn enter(self: &Arc<Self>, chain: Option<&[CertificateDer<'_>]>) -> Option<Seat> {
        let leaf = EndEntityCert::try_from(chain?.first()?).ok()?;
        let peer = Arc::new(Peer {
            serial: leaf.serial().into(),
            issuer: leaf.issuer().into(),
            is_revoked: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        });
        let mut inner = self.0.lock();
        // A list may have come since the handshake has looked, and a resumed session was not looked at.
        if inner.lists.values().any(|lists| peer.is_in(lists)) {
            peer.revoke();
        }
        inner.next += 1;
        let id = inner.next;
        inner.open.insert(id, peer.clone());
        Some(Seat {
            peers: self.clone(),
            id,
            peer,
        })
    }

    /// Puts the lists of a secret in force, and closes what they name.
    pub fn revoke(&self, secret: &str, lists: &Arc<[CertRevocationList<'static>]>) {
        let mut inner = self.0.lock();
        if lists.is_empty() {
            inner.lists.remove(secret);
            return;
        }
        inner.lists.insert(secret.to_owned(), lists.clone());
        let revoked = inner.open.values().filter(|peer| peer.is_in(lists));
        let count = revoked.inspect(|peer| peer.revoke()).count();
        if count > 0 {
            tracing::info!(target: "connection", secret, count, "connections of revoked certificates are closed");
        }
    }
}

impl Peer {
    /// Whether a list names it: its issuer's own, or, if there is none, any. An authority that has taken another's place goes on
    /// with what that one has revoked, and serial numbers are too long to meet by chance.
    fn is_in(&self, lists: &[CertRevocationList<'_>]) -> bool {
        let is_own = |list: &CertRevocationList<'_>| list.issuer() == &*self.issuer;
        let has_own = lists.iter().any(is_own);
        lists.iter().any(|list| {
            (is_own(list) || !has_own) && matches!(list.find_serial(&self.serial), Ok(Some(_)))
        })
    }

    fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Release);
        self.reader.wake();
    }
}

impl Seat {
    /// An error once the peer's certificate is revoked; until then whoever reads is woken when that happens.
    pub fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.peer.reader.register(context.waker());
        self.check_now()
    }

    /// The same without waiting for it.
    pub fn check_now(&self) -> io::Result<()> {
        if self.peer.is_revoked.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer's certificate is revoked",
            ));
        }
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.peers.0.lock().open.remove(&self.id);
    }
}
