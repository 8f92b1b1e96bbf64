//! May the caller have what it asks for? Everybody authenticated may have a certificate for itself, in this trust domain;
//! another's may have only who stands on the list of [`Impersonators`].

use std::collections::BTreeSet;

use proto_component::kubernetes::token::service_account;
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
    /// It asks for another's identity.
    #[error("{caller} may not ask for the identity {wanted}")]
    Impersonation {
        /// The caller's identity.
        caller: String,
        /// What it asks for.
        wanted: String,
    },
    /// It asks for something that is no identity.
    #[error("the identity {wanted:?} that is asked for: {reason}")]
    Wanted {
        /// What it asks for.
        wanted: String,
        /// What is wrong with it.
        reason: InvalidIdentity,
    },
}

/// Accounts (`NAMESPACE/ACCOUNT`) that may have the certificates of others, such as a proxy that stands for a whole node.
#[derive(Debug, Clone, Default)]
pub struct Impersonators(BTreeSet<(String, String)>);

impl Impersonators {
    /// Reads `NAMESPACE/ACCOUNT` entries.
    pub fn parse(entries: &[String]) -> Result<Self, InvalidIdentity> {
        let pair = |entry: &String| {
            let parts = entry.trim().split_once('/');
            let parts = parts.filter(|(namespace, account)| is_name(namespace) && is_name(account));
            let parts = parts.ok_or_else(|| InvalidIdentity::Name(entry.clone()))?;
            Ok((parts.0.to_owned(), parts.1.to_owned()))
        };
        entries
            .iter()
            .filter(|entry| !entry.trim().is_empty())
            .map(pair)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn contains(&self, identity: &SpiffeId) -> bool {
        let account = (
            identity.namespace().to_owned(),
            identity.service_account().to_owned(),
        );
        self.0.contains(&account)
    }
}

/// The identity of a token's `sub`.
pub fn from_subject(trust_domain: &str, subject: &str) -> Result<SpiffeId, InvalidIdentity> {
    let invalid = || InvalidIdentity::Subject(subject.to_owned());
    let (namespace, service_account) = service_account(subject).ok_or_else(invalid)?;
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

/// The identity to certify: the caller's own, or the one that it asks for if it may; both of our trust domain.
pub fn authorize(
    caller: &Caller,
    wanted: Option<&str>,
    trust_domain: &str,
    impersonators: &Impersonators,
) -> Result<SpiffeId, Denied> {
    // QUIRK: an `@` cannot stand in a URI's host; identities carry a `.` instead.
    let ours = trust_domain.replace('@', ".");
    let check = |identity: SpiffeId| {
        if identity.trust_domain() == ours {
            return Ok(identity);
        }
        Err(Denied::TrustDomain {
            theirs: identity.trust_domain().to_owned(),
            ours: ours.clone(),
        })
    };
    let own = check(caller.identity.clone())?;
    let Some(wanted) = wanted.filter(|wanted| *wanted != own.to_string()) else {
        return Ok(own);
    };
    if !impersonators.contains(&own) {
        return Err(Denied::Impersonation {
            caller: own.to_string(),
            wanted: wanted.to_owned(),
        });
    }
    let identity = from_uri(wanted).map_err(|reason| Denied::Wanted {
        wanted: wanted.to_owned(),
        reason,
    })?;
    check(identity)
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
        let nobody = Impersonators::default();
        assert!(authorize(&caller, None, "cluster.local", &nobody).is_err());
        assert!(authorize(&caller, None, "other", &nobody).is_ok());
    }

    #[test]
    fn only_those_on_the_list_get_another_identity() {
        let caller = |account: &str| Caller {
            identity: from_subject("td", &format!("system:serviceaccount:system:{account}"))
                .unwrap(),
            authenticator: "test",
        };
        let list = Impersonators::parse(&["system/node".to_owned(), String::new()]).unwrap();
        let ask = |account: &str, wanted| authorize(&caller(account), wanted, "td", &list);
        let other = "spiffe://td/ns/a/sa/b";
        assert_eq!(ask("node", Some(other)).unwrap().to_string(), other);
        assert!(ask("edge", Some(other)).is_err());
        let own = "spiffe://td/ns/system/sa/edge";
        assert_eq!(ask("edge", Some(own)).unwrap().to_string(), own);
        for bad in ["spiffe://other/ns/a/sa/b", "b", "spiffe://td/ns/a/sa/.."] {
            assert!(ask("node", Some(bad)).is_err(), "{bad}");
        }
        assert!(Impersonators::parse(&["node".to_owned()]).is_err());
    }
}
