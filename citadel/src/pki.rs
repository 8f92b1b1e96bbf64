//! Pure X.509: keys, signing requests, certificates, chains. No IO, no clock, no state: whoever calls says what time it is.

mod bundle;
mod certificate;
mod crl;
mod csr;
mod key;
mod san;
mod verify;

pub use bundle::{Bundle, InvalidBundle, certificates_from_pem, to_pem};
pub use certificate::{
    Certificate, IssuerKey, LeafProfile, MintError, Validity, issuer_of, mint_leaf, mint_root,
};
pub use crl::{mint_crl, revoked_by};
pub use csr::{InvalidCsr, SigningRequest};
pub use key::{Curve, InvalidKey, PrivateKey, PublicKey, fingerprint};
pub use san::{InvalidSan, San, serial_of, uri_sans};
pub use verify::{VerifyError, verify_chain};

#[cfg(test)]
mod tests;
