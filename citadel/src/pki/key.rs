//! Private and public keys. A private key never shows in `Debug` or in an error, and every form of it that we make or are given
//! by a library is wiped.
//!
//! Private keys may come as PKCS#8, PKCS#1 (`RSA PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`); the last two are wrapped as
//! PKCS#8, the only form that the signing library reads.

use std::fmt;
use std::sync::Arc;

use pem_rfc7468::LineEnding;
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm,
    SigningKey, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as ParsedKey;
use zeroize::Zeroizing;

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const VERSION_0: &[u8] = &[0x02, 0x01, 0x00];
/// `rsaEncryption` with its NULL parameters.
const RSA_ALGORITHM: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// `id-ecPublicKey` on `prime256v1`.
const P256_ALGORITHM: &[u8] = &[
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
    0x03, 0x01, 0x07,
];
/// `id-ecPublicKey` on `secp384r1`.
const P384_ALGORITHM: &[u8] = &[
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22,
];
/// The range of RSA moduli that we certify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
const RSA_MIN_EXPONENT: u64 = 65537;

/// The curve of a new ECDSA key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Curve {
    /// P-256.
    #[default]
    #[value(name = "P256")]
    P256,
    /// P-384.
    #[value(name = "P384")]
    P384,
}

/// A private key that can sign; its bytes are wiped when nobody needs them any more.
#[derive(Clone)]
pub struct PrivateKey(Arc<Zeroizing<KeyPair>>);

/// A public key that is good enough to be certified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    info: SubjectPublicKeyInfo,
    der: Vec<u8>,
}

/// Why a key was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidKey {
    /// The text holds no private key in PEM.
    #[error("no private key in PEM (PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY)")]
    NoKey,
    /// The key is in a form, or of a kind, that cannot sign.
    #[error(
        "unusable private key: need RSA (2048 to 4096 bits), ECDSA P-256 or P-384 with its public key, or Ed25519"
    )]
    Unusable,
    /// The random number generator or the library failed.
    #[error("generate a private key: {0}")]
    Generate(rcgen::Error),
    /// The public key's algorithm is unknown or its encoding is broken.
    #[error("unsupported public key: need RSA, ECDSA P-256 or P-384, or Ed25519")]
    Unsupported,
    /// An RSA key of an unacceptable size.
    #[error("weak public key: RSA of {0} bits, need 2048 to 8192")]
    RsaSize(usize),
    /// An RSA key with a small or even exponent.
    #[error("weak public key: RSA exponent must be odd and at least 65537")]
    RsaExponent,
}

impl PrivateKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, InvalidKey> {
        Self::generate_on(Curve::P256)
    }

    /// A new ECDSA key.
    pub fn generate_on(curve: Curve) -> Result<Self, InvalidKey> {
        let algorithm = match curve {
            Curve::P256 => &PKCS_ECDSA_P256_SHA256,
            Curve::P384 => &PKCS_ECDSA_P384_SHA384,
        };
        let pair = KeyPair::generate_for(algorithm).map_err(InvalidKey::Generate)?;
        Ok(Self(Arc::new(pair.into())))
    }

    /// The first private key of `pem`.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| InvalidKey::NoKey)?;
        let key = Zeroizing::new(key);
        match &*key {
            PrivateKeyDer::Pkcs8(key) => Self::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => {
                Self::from_pkcs8(&wrap(RSA_ALGORITHM, key.secret_pkcs1_der()))
            }
            PrivateKeyDer::Sec1(key) => {
                let der = key.secret_sec1_der();
                Self::from_pkcs8(&wrap(P256_ALGORITHM, der))
                    .or_else(|_| Self::from_pkcs8(&wrap(P384_ALGORITHM, der)))
            }
            _ => Err(InvalidKey::Unusable),
        }
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der));
        let pair = KeyPair::try_from(&der).map_err(|_| InvalidKey::Unusable)?;
        Ok(Self(Arc::new(pair.into())))
    }

    /// PKCS#8 in PEM. Only for the store and for a peer's own key: never log it.
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem_rfc7468::encode_string("PRIVATE KEY", LineEnding::LF, self.0.serialized_der())
            .expect("a key is short enough to be written as text")
            .into()
    }

    /// The public half.
    pub fn public(&self) -> Result<PublicKey, InvalidKey> {
        PublicKey::from_der(&self.0.subject_public_key_info())
    }

    /// The DER of the public half's `SubjectPublicKeyInfo`.
    pub fn spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&**self.0)
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl PublicKey {
    /// Reads a DER `SubjectPublicKeyInfo` and refuses what is too weak to be certified.
    pub fn from_der(spki: &[u8]) -> Result<Self, InvalidKey> {
        let (rest, parsed) = x509_parser::x509::SubjectPublicKeyInfo::from_der(spki)
            .map_err(|_| InvalidKey::Unsupported)?;
        if !rest.is_empty() {
            return Err(InvalidKey::Unsupported);
        }
        if let ParsedKey::RSA(rsa) = parsed.parsed().map_err(|_| InvalidKey::Unsupported)? {
            let bits = bit_length(rsa.modulus);
            if !RSA_BITS.contains(&bits) {
                return Err(InvalidKey::RsaSize(bits));
            }
            let exponent = rsa.try_exponent().map_err(|_| InvalidKey::RsaExponent)?;
            if exponent < RSA_MIN_EXPONENT || exponent % 2 == 0 {
                return Err(InvalidKey::RsaExponent);
            }
        }
        let info = SubjectPublicKeyInfo::from_der(spki).map_err(|_| InvalidKey::Unsupported)?;
        Ok(Self {
            info,
            der: spki.to_vec(),
        })
    }

    /// The DER `SubjectPublicKeyInfo`.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn info(&self) -> &SubjectPublicKeyInfo {
        &self.info
    }
}

/// SHA-256 of a `SubjectPublicKeyInfo`, hexadecimal.
pub fn fingerprint(spki: &[u8]) -> String {
    let digest = Sha256::digest(spki);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bits of a big-endian unsigned number.
fn bit_length(number: &[u8]) -> usize {
    let significant = number.iter().skip_while(|byte| **byte == 0);
    let mut bytes = significant.clone();
    match bytes.next() {
        None => 0,
        Some(first) => significant.count() * 8 - first.leading_zeros() as usize,
    }
}

/// `PrivateKeyInfo { version 0, algorithm, privateKey }`.
fn wrap(algorithm: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let parts: [&[u8]; 3] = [
        VERSION_0,
        &tlv(SEQUENCE, algorithm),
        &tlv(OCTET_STRING, key),
    ];
    tlv(SEQUENCE, &Zeroizing::new(parts.concat()))
}

/// A DER tag, length and value.
fn tlv(tag: u8, value: &[u8]) -> Zeroizing<Vec<u8>> {
    // All at once: what grows leaves its old self behind.
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() + 2 + size_of::<usize>()));
    out.push(tag);
    let length = value.len();
    if length < 0x80 {
        out.push(u8::try_from(length).unwrap_or_default());
    } else {
        let bytes = length.to_be_bytes();
        let significant: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
        out.push(0x80 | u8::try_from(significant.len()).unwrap_or_default());
        out.extend(significant);
    }
    out.extend_from_slice(value);
    out
}
