//! May the caller have what it asks for? Everybody authenticated may have a certificate for itself, in this trust domain;
//! nobody may have another's.

use proto_mesh::spiffe::{InvalidSpiffeId, SpiffeId};

use crate::authenticate::Caller;

/// Why a text is no identity of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidIdentity {
    /// A token's subject that is not a service account.
    #[error("subject {0:?} is not system:serviceaccount:NAMESPACE:ACCOUNT")]
    Subject(String),
    /// Not of the form that Istio gives out.
    #[error(transparent)]
    Form(#[from] InvalidSpiffeId),
    /// A part that Kubernetes would not allow as a name.
    #[error("{0:?} is not a valid name")]
    Name(String),
}

/// Why a caller does not get a certificate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denied {
    /// It belongs to another mesh.
    #[error("the caller's trust domain {theirs:?} is not this CA's ({ours:?})")]
    TrustDomain {
        /// The caller's.
        theirs: String,
        /// This CA's.
        ours: String,
    },
}

/// The identity of a token's `sub`.
pub fn from_subject(trust_domain: &str, subject: &str) -> Result<SpiffeId, InvalidIdentity> {
    let invalid = || InvalidIdentity::Subject(subject.to_owned());
    let rest = subject
        .strip_prefix("system:serviceaccount:")
        .ok_or_else(invalid)?;
    let (namespace, service_account) = rest.split_once(':').ok_or_else(invalid)?;
    checked(SpiffeId::new(trust_domain, namespace, service_account)?)
}

/// The identity of a certificate's URI name.
pub fn from_uri(uri: &str) -> Result<SpiffeId, InvalidIdentity> {
    checked(uri.parse()?)
}

/// Stricter than SPIFFE: each part must be a name that Kubernetes allows.
fn checked(identity: SpiffeId) -> Result<SpiffeId, InvalidIdentity> {
    let parts = [
        identity.trust_domain(),
        identity.namespace(),
        identity.service_account(),
    ];
    if let Some(part) = parts.into_iter().find(|part| !is_name(part)) {
        return Err(InvalidIdentity::Name(part.to_owned()));
    }
    Ok(identity)
}

/// The identity to certify: the caller's own, if it is of our trust domain.
pub fn authorize<'a>(caller: &'a Caller, trust_domain: &str) -> Result<&'a SpiffeId, Denied> {
    // QUIRK: an `@` cannot stand in a URI's host; identities carry a `.` instead.
    let ours = trust_domain.replace('@', ".");
    if caller.identity.trust_domain() != ours {
        return Err(Denied::TrustDomain {
            theirs: caller.identity.trust_domain().to_owned(),
            ours,
        });
    }
    Ok(&caller.identity)
}

/// A DNS subdomain, as Kubernetes checks namespaces and service accounts.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
            })
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_of_a_service_account_becomes_an_identity() {
        let identity =
            from_subject("cluster.local", "system:serviceaccount:default:bookinfo").unwrap();
        assert_eq!(
            identity.to_string(),
            "spiffe://cluster.local/ns/default/sa/bookinfo"
        );
        assert_eq!(from_uri(&identity.to_string()).unwrap(), identity);
    }

    #[test]
    fn at_sign_in_the_trust_domain_becomes_a_dot() {
        let identity = from_subject("a@b.com", "system:serviceaccount:n:s").unwrap();
        assert_eq!(identity.trust_domain(), "a.b.com");
    }

    #[test]
    fn other_subjects_are_refused() {
        for subject in [
            "",
            "alice",
            "system:node:n1",
            "system:serviceaccount:default",
            "system:serviceaccount:default:",
            "system:serviceaccount::x",
            "system:serviceaccount:default:a/../b",
            "system:serviceaccount:default:a:b",
            "system:serviceaccount:Default:a",
            "system:serviceaccount:default:a/sa/b",
        ] {
            assert!(from_subject("td", subject).is_err(), "{subject}");
        }
    }

    #[test]
    fn other_uris_are_refused() {
        for uri in [
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns/a",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/sa/b/ns/a",
            "spiffe://td/ns/a/sa/..",
        ] {
            assert!(from_uri(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn a_caller_of_another_trust_domain_is_denied() {
        let caller = Caller {
            identity: from_uri("spiffe://other/ns/a/sa/b").unwrap(),
            authenticator: "test",
        };
        assert!(authorize(&caller, "cluster.local").is_err());
        assert!(authorize(&caller, "other").is_ok());
    }
}
