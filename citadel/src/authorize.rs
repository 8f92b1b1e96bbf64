//! May the caller have what it asks for? Everybody authenticated may have a certificate for itself, in this trust domain;
//! nobody may have another's.

use std::fmt;

use crate::authenticate::Caller;

/// A workload's identity: a service account in a trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Trust domain, as it stands in the URI.
    pub trust_domain: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// Why a text is no identity of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidIdentity {
    /// A token's subject that is not a service account.
    #[error("subject {0:?} is not system:serviceaccount:NAMESPACE:ACCOUNT")]
    Subject(String),
    /// A URI that is not of the form that Istio gives out.
    #[error("{0:?} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    Uri(String),
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

impl Identity {
    /// From a token's `sub`.
    pub fn from_subject(trust_domain: &str, subject: &str) -> Result<Self, InvalidIdentity> {
        let invalid = || InvalidIdentity::Subject(subject.to_owned());
        let rest = subject
            .strip_prefix("system:serviceaccount:")
            .ok_or_else(invalid)?;
        let (namespace, service_account) = rest.split_once(':').ok_or_else(invalid)?;
        Self::checked(&uri_trust_domain(trust_domain), namespace, service_account)
    }

    /// From a certificate's URI name.
    pub fn from_spiffe(uri: &str) -> Result<Self, InvalidIdentity> {
        let invalid = || InvalidIdentity::Uri(uri.to_owned());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts.as_slice() else {
            return Err(invalid());
        };
        Self::checked(trust_domain, namespace, service_account)
    }

    fn checked(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidIdentity> {
        for part in [trust_domain, namespace, service_account] {
            if !is_name(part) {
                return Err(InvalidIdentity::Name(part.to_owned()));
            }
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            service_account,
        } = self;
        write!(
            f,
            "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
        )
    }
}

/// The identity to certify: the caller's own, if it is of our trust domain.
pub fn authorize<'a>(caller: &'a Caller, trust_domain: &str) -> Result<&'a Identity, Denied> {
    let ours = uri_trust_domain(trust_domain);
    if caller.identity.trust_domain != ours {
        return Err(Denied::TrustDomain {
            theirs: caller.identity.trust_domain.clone(),
            ours,
        });
    }
    Ok(&caller.identity)
}

/// QUIRK: Istio replaces `@` (of Google service accounts) because it cannot stand in a URI's host.
fn uri_trust_domain(trust_domain: &str) -> String {
    trust_domain.replace('@', ".")
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
            Identity::from_subject("cluster.local", "system:serviceaccount:default:bookinfo")
                .unwrap();
        assert_eq!(
            identity.to_string(),
            "spiffe://cluster.local/ns/default/sa/bookinfo"
        );
        assert_eq!(
            Identity::from_spiffe(&identity.to_string()).unwrap(),
            identity
        );
    }

    #[test]
    fn at_sign_in_the_trust_domain_becomes_a_dot() {
        let identity = Identity::from_subject("a@b.com", "system:serviceaccount:n:s").unwrap();
        assert_eq!(identity.trust_domain, "a.b.com");
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
            assert!(Identity::from_subject("td", subject).is_err(), "{subject}");
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
            assert!(Identity::from_spiffe(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn a_caller_of_another_trust_domain_is_denied() {
        let caller = Caller {
            identity: Identity::from_spiffe("spiffe://other/ns/a/sa/b").unwrap(),
            authenticator: "test",
        };
        assert!(authorize(&caller, "cluster.local").is_err());
        assert!(authorize(&caller, "other").is_ok());
    }
}
