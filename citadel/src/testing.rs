//! For tests: a token issuer, which signs service account tokens and publishes its key; a store and a root.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::ca::{CertificateAuthority, SelfSignedSettings, SignRequest};
use crate::pki::{Certificate, Curve, PrivateKey, San};
use crate::store::Store;

/// An issuer with an ECDSA P-256 key.
pub struct TokenIssuer {
    key: EncodingKey,
    public: String,
    jwks: Value,
}

/// Its `iss`.
pub const ISSUER: &str = "https://issuer.test";
const KEY_ID: &str = "key-1";
/// An uncompressed point is this byte, then x and y.
const POINT: usize = 65;

impl TokenIssuer {
    /// An issuer with a new key.
    ///
    /// # Panics
    /// Without randomness.
    pub fn new() -> Self {
        let pair = rcgen::KeyPair::generate().expect("randomness");
        let public = pair.public_key_raw();
        assert_eq!(public.len(), POINT);
        let (x, y) = public[1..].split_at(32);
        let jwks = json!({"keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]});
        Self {
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            public: pair.public_key_pem(),
            jwks,
        }
    }

    /// Its published keys.
    pub fn jwks(&self) -> String {
        self.jwks.to_string()
    }

    /// Its public key in PEM.
    pub fn public_pem(&self) -> &str {
        &self.public
    }

    /// Good claims for a service account, to be changed at will.
    pub fn claims(namespace: &str, account: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        json!({
            "iss": ISSUER, "aud": ["istio-ca"], "iat": now, "nbf": now, "exp": now + 3600,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
        })
    }

    /// Signs `claims`.
    ///
    /// # Panics
    /// If the library cannot sign.
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(KEY_ID.to_owned());
        encode(&header, claims, &self.key).expect("sign a token")
    }

    /// A good token for a service account.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        self.sign(&Self::claims(namespace, account))
    }
}

impl Default for TokenIssuer {
    fn default() -> Self {
        Self::new()
    }
}

/// A root like that of the defaults.
pub fn settings() -> SelfSignedSettings {
    SelfSignedSettings {
        organization: "cluster.local".to_owned(),
        ttl: Duration::from_secs(3650 * 86400),
        curve: Curve::P256,
    }
}

/// A workload's certificate of `ca` for a day, with a key of its own.
///
/// # Panics
/// When `ca` does not sign it.
pub fn leaf_of(ca: &dyn CertificateAuthority, now: OffsetDateTime) -> Certificate {
    let key = PrivateKey::generate().and_then(|key| key.public());
    let request = SignRequest {
        public_key: &key.expect("a key"),
        sans: &[San::Uri("spiffe://cluster.local/ns/a/sa/b".to_owned())],
        ttl: Duration::from_secs(86400),
        dual_use: false,
    };
    ca.sign(&request, now).expect("a certificate")
}

/// Opens a store that may have been closed just now: sled lets go of its lock a moment after the last handle.
///
/// # Panics
/// When it stays locked.
pub fn open_store(folder: &std::path::Path) -> Store {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(folder) {
            Ok(store) => return store,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}
