//! The proof's own certificate authority, which Citadel is given as a plugged-in one: so a test can make the certificates of
//! an attacker who has everything but the right identity. And the issuers of its tokens.

use std::fs;
use std::path::Path;

use e2e::echo::Tls;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, SanType,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A root and the intermediate that signs.
pub(crate) struct Authority {
    root: Issuer,
    intermediate: Issuer,
    intermediate_key: String,
}

/// A certificate and its key, PEM; the chain is without the root.
#[derive(Clone, Default)]
pub(crate) struct Leaf {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// An issuer of tokens.
pub(super) struct Tokens {
    issuer: &'static str,
    key: EncodingKey,
    jwks: Value,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// A new one; the intermediate's key is on P-384.
    pub(crate) fn new(name: &str) -> Self {
        let root = CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap());
        let root = root.unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let intermediate_key = key.serialize_pem();
        let params = ca_params(&format!("{name} intermediate"));
        let intermediate = CertifiedIssuer::signed_by(params, key, &root).unwrap();
        Self {
            root,
            intermediate,
            intermediate_key,
        }
    }

    /// Writes the four files of a plugged-in CA.
    pub(super) fn write(&self, folder: &Path) {
        let chain = self.intermediate.pem() + &self.root.pem();
        for (name, text) in [
            ("ca-cert.pem", self.intermediate.pem()),
            ("ca-key.pem", self.intermediate_key.clone()),
            ("cert-chain.pem", chain),
            ("root-cert.pem", self.root.pem()),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    /// The root, PEM.
    pub(crate) fn root(&self) -> String {
        self.root.pem()
    }

    /// A certificate for `identity`, good for an hour.
    pub(crate) fn leaf(&self, identity: &str) -> Leaf {
        self.leaf_from(identity, Duration::minutes(-5), Duration::hours(1))
    }

    /// A certificate for `identity` that is good from `begin` to `end`, counted from now.
    pub(super) fn leaf_from(&self, identity: &str, begin: Duration, end: Duration) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf_params(identity);
        params.not_before = OffsetDateTime::now_utc() + begin;
        params.not_after = OffsetDateTime::now_utc() + end;
        let leaf = params.signed_by(&key, &self.intermediate).unwrap();
        Leaf {
            chain: leaf.pem() + &self.intermediate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A certificate that vouches for itself.
pub(super) fn self_signed(identity: &str) -> Leaf {
    let key = KeyPair::generate().unwrap();
    let leaf = leaf_params(identity).self_signed(&key).unwrap();
    Leaf {
        chain: leaf.pem(),
        key: key.serialize_pem(),
    }
}

fn leaf_params(identity: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params
}

impl Leaf {
    /// TLS with this certificate, as a sidecar offers it for `alpn`.
    pub(super) fn tls(&self, authority: &Authority, alpn: &[&str]) -> Tls {
        Tls {
            server_name: "outbound_.8001_._.server.servers.svc.cluster.local".to_owned(),
            alpn: alpn.iter().map(ToString::to_string).collect(),
            chain: self.chain.clone(),
            key: self.key.clone(),
            roots: authority.root(),
        }
    }
}

impl Tokens {
    /// A new key.
    pub(super) fn new(issuer: &'static str) -> Self {
        use base64::Engine as _;
        let pair = KeyPair::generate().unwrap();
        let point = pair.public_key_raw();
        let text = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let jwks = json!({"keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": issuer,
            "x": text(&point[1..33]), "y": text(&point[33..]),
        }]});
        Self {
            issuer,
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            jwks,
        }
    }

    /// The public keys.
    pub(super) fn jwks(&self) -> String {
        self.jwks.to_string()
    }

    /// A token for `subject`, with these claims over the usual ones.
    pub(super) fn token(&self, subject: &str, claims: &Value) -> String {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut all = json!({"iss": self.issuer, "sub": subject, "iat": now, "exp": now + 3600});
        for (name, value) in claims.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.issuer.to_owned());
        jsonwebtoken::encode(&header, &all, &self.key).unwrap()
    }
}
