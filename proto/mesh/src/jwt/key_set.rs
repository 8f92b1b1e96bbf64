//! Key sets: JSON Web Keys made ready for the verifiers that check certificates, too. RSA (PKCS #1 and PSS), P-256, P-384 and
//! Ed25519; symmetric keys in a public set would let anybody sign and are left out, as are those that are not for signatures.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::SignatureVerificationAlgorithm;
use serde::Deserialize;
use serde_json::Value;
use webpki::ring;

use super::{Failure, Token};

/// The keys of one issuer.
#[derive(Debug, Default)]
pub struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    family: Family,
    /// What a certificate would hold as `subjectPublicKey`.
    public: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

#[derive(Deserialize)]
struct WireSet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct WireKey {
    kty: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a key set; keys of unknown kinds and broken ones are left out.
    ///
    /// # Errors
    /// When it is no JSON Web Key Set.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let set: WireSet = serde_json::from_slice(text)?;
        let keys = set.keys.into_iter();
        let keys = keys.filter_map(|key| Key::new(WireKey::deserialize(key).ok()?));
        Ok(KeySet(keys.collect()))
    }

    /// True when no token can be verified.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Verifies a token's signature, and nothing else.
    ///
    /// # Errors
    /// [`Failure::BadAlgorithm`], [`Failure::NoMatchingKey`] or [`Failure::BadSignature`].
    pub fn verify(&self, token: &Token<'_>) -> Result<(), Failure> {
        let (family, verifier) = algorithm(&token.algorithm).ok_or(Failure::BadAlgorithm)?;
        let fits = |key: &&Key| {
            let id = key.id.is_none() || token.key_id.is_none() || key.id == token.key_id;
            let named = key
                .algorithm
                .as_ref()
                .is_none_or(|name| *name == token.algorithm);
            id && named && key.family == family
        };
        let mut has_key = false;
        for key in self.0.iter().filter(fits) {
            has_key = true;
            if key.verify(token, verifier) {
                return Ok(());
            }
        }
        Err(if has_key {
            Failure::BadSignature
        } else {
            Failure::NoMatchingKey
        })
    }
}

impl Key {
    fn new(wire: WireKey) -> Option<Self> {
        if wire.purpose.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let decode = |text: &Option<String>| {
            URL_SAFE_NO_PAD
                .decode(text.as_ref()?.trim_end_matches('='))
                .ok()
        };
        let (family, public) = match (wire.kty.as_deref()?, wire.crv.as_deref()) {
            ("RSA", _) => (
                Family::Rsa,
                rsa_public_key(&decode(&wire.n)?, &decode(&wire.e)?),
            ),
            ("EC", Some(curve @ ("P-256" | "P-384"))) => {
                let (x, y) = (decode(&wire.x)?, decode(&wire.y)?);
                let family = if curve == "P-256" {
                    Family::P256
                } else {
                    Family::P384
                };
                (family, [&[4][..], &x, &y].concat())
            }
            ("OKP", Some("Ed25519")) => (Family::Ed25519, decode(&wire.x)?),
            _ => return None,
        };
        Some(Key {
            id: wire.kid,
            algorithm: wire.alg,
            family,
            public,
        })
    }

    fn verify(&self, token: &Token<'_>, verifier: &dyn SignatureVerificationAlgorithm) -> bool {
        let signature = match self.family {
            Family::P256 | Family::P384 => ecdsa_to_der(&token.signature),
            Family::Rsa | Family::Ed25519 => Some(token.signature.clone()),
        };
        signature.is_some_and(|signature| {
            let verified =
                verifier.verify_signature(&self.public, token.signed.as_bytes(), &signature);
            verified.is_ok()
        })
    }
}

fn algorithm(name: &str) -> Option<(Family, &'static dyn SignatureVerificationAlgorithm)> {
    Some(match name {
        "RS256" => (Family::Rsa, ring::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => (Family::Rsa, ring::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => (Family::Rsa, ring::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => (Family::Rsa, ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY),
        "PS384" => (Family::Rsa, ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY),
        "PS512" => (Family::Rsa, ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY),
        "ES256" => (Family::P256, ring::ECDSA_P256_SHA256),
        "ES384" => (Family::P384, ring::ECDSA_P384_SHA384),
        "EdDSA" => (Family::Ed25519, ring::ED25519),
        _ => return None,
    })
}

/// `RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER }`
fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let body = [der_integer(modulus), der_integer(exponent)].concat();
    [der_header(0x30, body.len()), body].concat()
}

/// JWT's `r || s` as `SEQUENCE { r INTEGER, s INTEGER }`.
fn ecdsa_to_der(raw: &[u8]) -> Option<Vec<u8>> {
    if raw.is_empty() || !raw.len().is_multiple_of(2) {
        return None;
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    let body = [der_integer(r), der_integer(s)].concat();
    Some([der_header(0x30, body.len()), body].concat())
}

fn der_integer(bytes: &[u8]) -> Vec<u8> {
    let start = bytes
        .iter()
        .position(|byte| *byte != 0)
        .unwrap_or(bytes.len().saturating_sub(1));
    let bytes = &bytes[start.min(bytes.len())..];
    // A leading one bit would make it negative.
    let pad = bytes.first().is_none_or(|byte| byte & 0x80 != 0);
    let length = bytes.len() + usize::from(pad);
    let mut out = der_header(0x02, length);
    if pad {
        out.push(0);
    }
    out.extend_from_slice(bytes);
    out
}

fn der_header(tag: u8, length: usize) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes: Vec<u8> = length
                .to_be_bytes()
                .into_iter()
                .skip_while(|byte| *byte == 0)
                .collect();
            out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(8));
            out.extend_from_slice(&bytes);
        }
    }
    out
}
