//! A test's own certificate authority. Citadel may be given it as a plugged-in one: so a test can make the certificates of an
//! attacker who has everything but the right identity. And issuers of tokens.

use std::fs;
use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use e2e::echo::Tls;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PublicKeyData as _, SanType,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};

/// Modulus of the key of `rsa.pem`.
const RSA_MODULUS: &str = "1OeXLW5TtcvUcySLvBjmwbs6-e_JIksv_a0KYCn62pHisfcIeIB3hr-LxnQLud-ZbZo85tYb_06Z74XTPesU2cb-MZI34SCC\
    -Fo7tY3wgh8jIc_lF8LbFjwg3wGeFIK0myfcHQfw5qK0baGJza5jKjVHIXnOUgf6gisI5xlCQlb3UStHFPZOH7_YBfuaJ0_k\
    t-k-nDH1JXshPiRD11c2ODpPwZHQDvwm4hNrz9vIfZVKh29295uYeo6qQ0RJdA4WV0zREfQ_PXXKO8BEdJyM6V6Vx1Q2BbKi\
    yDhzG7uwwgPg1cBe0zOI0Q-1JKgX11r5h4DW6OsGF9cLk1mnAKHpQw";

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
    /// SHA-256 of the certificate, in hex.
    pub(crate) hash: String,
    /// SHA-256 of its public key, in base64.
    pub(crate) spki: String,
}

/// An issuer of tokens.
pub(crate) struct Tokens {
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
    pub(crate) fn write(&self, folder: &Path) {
        self.write_with(folder, &self.root.pem());
    }

    /// As [`write`](Self::write), with other roots to trust.
    pub(crate) fn write_with(&self, folder: &Path, roots: &str) {
        let chain = self.intermediate.pem() + &self.root.pem();
        for (name, text) in [
            ("ca-cert.pem", self.intermediate.pem()),
            ("ca-key.pem", self.intermediate_key.clone()),
            ("cert-chain.pem", chain),
            ("root-cert.pem", roots.to_owned()),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    /// The key that signs, PEM.
    pub(crate) fn key(&self) -> &str {
        &self.intermediate_key
    }

    /// A server's certificate, good for an hour.
    pub(crate) fn host(&self, name: &str) -> Leaf {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        self.certify(params, Duration::minutes(-5), Duration::hours(1))
    }

    /// The root, PEM.
    pub(crate) fn root(&self) -> String {
        self.root.pem()
    }

    /// A certificate for `identity`, good for an hour.
    pub(crate) fn leaf(&self, identity: &str) -> Leaf {
        self.leaf_from(identity, Duration::minutes(-5), Duration::hours(1))
    }

    /// A certificate for `identity` of a server that is also called `names`.
    pub(crate) fn leaf_called(&self, identity: &str, names: &[&str]) -> Leaf {
        let mut params = leaf_params(identity);
        let names = names
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names.extend(names);
        self.certify(params, Duration::minutes(-5), Duration::hours(1))
    }

    /// A certificate for `identity` that is good from `begin` to `end`, counted from now.
    pub(crate) fn leaf_from(&self, identity: &str, begin: Duration, end: Duration) -> Leaf {
        self.certify(leaf_params(identity), begin, end)
    }

    fn certify(&self, mut params: CertificateParams, begin: Duration, end: Duration) -> Leaf {
        let key = KeyPair::generate().unwrap();
        params.not_before = OffsetDateTime::now_utc() + begin;
        params.not_after = OffsetDateTime::now_utc() + end;
        let leaf = params.signed_by(&key, &self.intermediate).unwrap();
        Leaf {
            chain: leaf.pem() + &self.intermediate.pem(),
            key: key.serialize_pem(),
            hash: format!("{:x}", Sha256::digest(leaf.der())),
            spki: STANDARD.encode(Sha256::digest(key.subject_public_key_info())),
        }
    }
}

/// A certificate that vouches for itself.
pub(crate) fn self_signed(identity: &str) -> Leaf {
    let key = KeyPair::generate().unwrap();
    let leaf = leaf_params(identity).self_signed(&key).unwrap();
    Leaf {
        chain: leaf.pem(),
        key: key.serialize_pem(),
        ..Leaf::default()
    }
}

fn leaf_params(identity: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params
}

impl Leaf {
    /// The serial number, as proxies and Citadel show it.
    pub(crate) fn serial(&self) -> String {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.chain.as_bytes()).unwrap();
        format!("{:x}", pem.parse_x509().unwrap().serial)
    }

    /// TLS with this certificate, as a sidecar offers it for `alpn`.
    pub(crate) fn tls(&self, authority: &Authority, alpn: &[&str]) -> Tls {
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
    /// An issuer with an RSA key that nobody has; and its public half, PEM.
    pub(crate) fn rsa(issuer: &'static str) -> (Self, &'static str) {
        let jwks = json!({"keys": [{
            "kty": "RSA", "use": "sig", "kid": issuer, "n": RSA_MODULUS, "e": "AQAB",
        }]});
        let without = Self {
            jwks,
            ..Self::new(issuer)
        };
        (without, include_str!("../security/rsa.pem"))
    }

    /// A new key.
    pub(crate) fn new(issuer: &'static str) -> Self {
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
    pub(crate) fn jwks(&self) -> String {
        self.jwks.to_string()
    }

    /// A token as [`token`](Self::token) makes it, whose signature is HMAC with `secret` for a key.
    pub(crate) fn confused(&self, subject: &str, secret: &[u8]) -> String {
        self.sign(
            subject,
            &json!({}),
            Algorithm::HS256,
            &EncodingKey::from_secret(secret),
        )
    }

    /// A token for `subject`, with these claims over the usual ones.
    pub(crate) fn token(&self, subject: &str, claims: &Value) -> String {
        self.sign(subject, claims, Algorithm::ES256, &self.key)
    }

    fn sign(&self, subject: &str, claims: &Value, by: Algorithm, key: &EncodingKey) -> String {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut all = json!({"iss": self.issuer, "sub": subject, "iat": now, "exp": now + 3600});
        for (name, value) in claims.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        let mut header = Header::new(by);
        header.kid = Some(self.issuer.to_owned());
        jsonwebtoken::encode(&header, &all, key).unwrap()
    }
}
