//! A gateway's credential: what a Kubernetes Secret holds of TLS.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Certificate, key and roots, as PEM; what is not there is empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    /// The certificate with its chain.
    pub chain: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// Who may vouch for clients.
    pub roots: Vec<u8>,
    /// Certificates that are revoked.
    pub revoked: Vec<u8>,
}

/// The credentials of one namespace by the names of their Secrets.
pub type Credentials = Arc<BTreeMap<String, Arc<Credential>>>;

impl Credential {
    /// Reads a Secret's data: the keys of `kubernetes.io/tls`, or those of a generic one. None if there is nothing of TLS in it.
    #[must_use]
    pub fn of<'a>(data: impl Fn(&str) -> Option<&'a [u8]>) -> Option<Self> {
        let first = |keys: &[&str]| {
            let mut found = keys.iter().filter_map(|key| data(key));
            found
                .find(|value| !value.is_empty())
                .unwrap_or_default()
                .to_vec()
        };
        let credential = Credential {
            chain: first(&["tls.crt", "cert"]),
            key: first(&["tls.key", "key"]),
            roots: first(&["ca.crt", "cacert"]),
            revoked: first(&["ca.crl", "crl"]),
        };
        (credential != Credential::default()).then_some(credential)
    }

    /// True when it can stand for a server.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        !self.chain.is_empty() && !self.key.is_empty()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what is in it.
        formatter.write_str("Credential")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_secrets_are_read() {
        let read = |entries: &[(&str, &'static str)]| {
            let data: BTreeMap<&str, &'static str> = entries.iter().copied().collect();
            Credential::of(|key| data.get(key).map(|text| text.as_bytes()))
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for names in [["tls.crt", "tls.key", "ca.crt"], ["cert", "key", "cacert"]] {
            let found = read(&[(names[0], "c"), (names[1], "k"), (names[2], "r")]).unwrap();
            assert_eq!(
                [text(&found.chain), text(&found.key), text(&found.roots)],
                ["c", "k", "r"]
            );
            assert!(found.has_certificate());
            assert_eq!(format!("{found:?}"), "Credential");
        }
        assert!(!read(&[("cacert", "r")]).unwrap().has_certificate());
        assert_eq!(read(&[("password", "x"), ("tls.crt", "")]), None);
    }
}
