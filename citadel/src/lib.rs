//! Certificates for the mesh: Citadel.
//!
//! Flow: [`args`] → [`bootstrap`] → a request comes in at [`server`] → [`authenticate`] (client certificate, token) →
//! [`authorize`] (the caller's own identity, our trust domain) → [`ca`] signs with [`pki`] → [`ledger`] makes it durable →
//! answer. [`revocation`] takes back what was given, [`trust`] makes of roots and revocations what everybody is to believe, and
//! [`server::TrustDiscovery`] pushes it to every agent. [`admin`] is the operator's way in, [`command`] the other end of it.
//!
//! - A new way to prove who one is: a file in `authenticate/` and a line in [`bootstrap`].
//! - A root of our own is kept and replaced by [`root`].
//! - Under Kubernetes, [`kubernetes`] keeps the root in a Secret and hands it to every namespace as a ConfigMap; tokens are
//!   reviewed by the API server.
//! - A new kind of authority: a file in `ca/` that implements [`ca::CertificateAuthority`], and a line in [`bootstrap`].
//! - What a certificate says: `pki/certificate.rs`.

pub mod admin;
pub mod args;
pub mod authenticate;
pub mod authorize;
pub mod bootstrap;
pub mod ca;
pub mod command;
pub mod features;
pub mod kubernetes;
pub mod ledger;
pub mod metrics;
pub mod pki;
pub mod probe;
pub mod program;
pub mod revocation;
pub mod root;
mod root_file;
pub mod server;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trust;
