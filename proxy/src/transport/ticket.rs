//! Session tickets: sessions go to the client, sealed with a key that every proxy which has it can open again.
//!
//! The 80 bytes of a key are used as Envoy uses them (16 name, 32 authentication, 32 encryption), but what is inside is this
//! TLS library's own session, so that tickets are shared among proxies of this kind only.

use crate::{
    invalid::{Invalid, try_all},
    wire::data_source,
};
use proto::envoy::extensions::transport_sockets::tls::v3::TlsSessionTicketKeys;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls::server::ProducesTickets;
use std::sync::Arc;

const KEY_LEN: usize = 80;
const NAME_LEN: usize = 16;

/// Keys for session tickets: the first seals, all open.
#[derive(Debug)]
pub(crate) struct TicketKeys(Vec<TicketKey>);

struct TicketKey {
    name: [u8; NAME_LEN],
    key: LessSafeKey,
}

/// Keys in use by one context.
#[derive(Debug)]
pub(super) struct Tickets {
    keys: Arc<TicketKeys>,
    /// Seconds.
    lifetime: u32,
}

/// What clients are told where the configuration says nothing: two hours, as in Envoy.
const LIFETIME: u32 = 2 * 3600;

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKey").finish_non_exhaustive()
    }
}

impl TicketKey {
    fn new(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() != KEY_LEN {
            return Err(Invalid::new(format!(
                "Incorrect TLS session ticket key length. Length {}, expected length {KEY_LEN}.",
                bytes.len()
            )));
        }
        let (name, secrets) = bytes.split_at(NAME_LEN);
        // Both secrets go into the one key that an AEAD takes.
        let key = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, &secrets[..32]),
            &secrets[32..],
        );
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref())
            .map_err(|_| Invalid::new("not usable as a key"))?;
        let mut own = [0; NAME_LEN];
        own.copy_from_slice(name);
        Ok(Self {
            name: own,
            key: LessSafeKey::new(key),
        })
    }

    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME_LEN + NONCE_LEN + plain.len() + 16);
        ticket.extend_from_slice(&self.name);
        ticket.extend_from_slice(&nonce);
        let mut sealed = plain.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&self.name),
                &mut sealed,
            )
            .ok()?;
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn open(&self, nonce: [u8; NONCE_LEN], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = sealed.to_vec();
        let plain = self.key.open_in_place(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&self.name),
            &mut buffer,
        );
        plain.ok().map(|plain| plain.to_vec())
    }
}

impl TicketKeys {
    /// Checks `wire`.
    pub(super) fn new(wire: &TlsSessionTicketKeys) -> Result<Self, Invalid> {
        let keys = try_all("keys", &wire.keys, |key| TicketKey::new(&data_source(key)?))?;
        if keys.is_empty() {
            return Err(Invalid::new("at least one key is needed").at("keys"));
        }
        Ok(Self(keys))
    }

    /// A key that nobody else has.
    pub(super) fn random() -> Self {
        let mut bytes = [0; KEY_LEN];
        let filled = SystemRandom::new().fill(&mut bytes).ok();
        // Without random numbers there are no tickets.
        Self(
            filled
                .and_then(|()| TicketKey::new(&bytes).ok())
                .into_iter()
                .collect(),
        )
    }
}

impl Tickets {
    /// Tickets sealed with `keys`.
    pub(super) fn new(keys: Arc<TicketKeys>, lifetime: Option<u32>) -> Self {
        Self {
            keys,
            lifetime: lifetime.unwrap_or(LIFETIME),
        }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.0.first()?.seal(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_LEN)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let key = self.keys.0.iter().find(|key| key.name == name)?;
        key.open(nonce.try_into().ok()?, sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};

    fn keys(fills: &[u8]) -> Tickets {
        let wire = TlsSessionTicketKeys {
            keys: fills
                .iter()
                .map(|fill| DataSource {
                    specifier: Some(Specifier::InlineBytes(vec![*fill; KEY_LEN])),
                    ..DataSource::default()
                })
                .collect(),
        };
        Tickets::new(Arc::new(TicketKeys::new(&wire).unwrap()), Some(60))
    }

    #[test]
    fn the_first_key_seals_and_every_key_opens() {
        let (old, rotated, other) = (keys(&[1]), keys(&[2, 1]), keys(&[3]));
        let ticket = old.encrypt(b"session").unwrap();
        assert_eq!(rotated.decrypt(&ticket).unwrap(), b"session");
        assert_eq!(other.decrypt(&ticket), None);
        let mut broken = ticket.clone();
        broken[40] ^= 1;
        assert_eq!(old.decrypt(&broken), None);
        let short = TlsSessionTicketKeys {
            keys: vec![DataSource {
                specifier: Some(Specifier::InlineBytes(vec![0; 48])),
                ..DataSource::default()
            }],
        };
        assert!(TicketKeys::new(&short).is_err());
    }

    proptest! {
        #[test]
        fn tickets_round_trip_and_garbage_never_panics(plain: Vec<u8>, garbage: Vec<u8>) {
            let keys = keys(&[7]);
            let ticket = keys.encrypt(&plain).unwrap();
            prop_assert_eq!(keys.decrypt(&ticket), Some(plain));
            keys.decrypt(&garbage);
        }
    }
}
