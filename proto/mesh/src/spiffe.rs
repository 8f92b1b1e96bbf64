//! SPIFFE ids: the names that certificates give to workloads, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;

/// The scheme with its slashes.
pub const PREFIX: &str = "spiffe://";

/// The trust domain when nothing is said.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// The identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// A text that is no workload's SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no SPIFFE id of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
)]
pub struct InvalidSpiffeId(pub String);

impl SpiffeId {
    /// The identity of a service account. An `@` in the trust domain becomes a `.` (QUIRK: e-mail-like trust domains).
    ///
    /// # Errors
    /// When a part is empty or contains a `/`.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidSpiffeId> {
        let id = Self {
            trust_domain: trust_domain.replace('@', "."),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        };
        let fits = |part: &str| !part.is_empty() && !part.contains('/');
        if fits(&id.trust_domain) && fits(&id.namespace) && fits(&id.service_account) {
            Ok(id)
        } else {
            Err(InvalidSpiffeId(id.to_string()))
        }
    }

    /// The root of trust that it belongs to.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The namespace of the service account.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The id without its scheme, as authorization policies write it.
    #[must_use]
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }

    /// The same workload in another trust domain.
    #[must_use]
    pub fn in_trust_domain(&self, trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            ..self.clone()
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSpiffeId(text.to_owned());
        let rest = text.strip_prefix(PREFIX).ok_or_else(invalid)?;
        let parts: Vec<_> = rest.split('/').collect();
        match parts[..] {
            [trust_domain, "ns", namespace, "sa", service_account]
                if !trust_domain.is_empty()
                    && !namespace.is_empty()
                    && !service_account.is_empty() =>
            {
                Ok(Self {
                    trust_domain: trust_domain.to_owned(),
                    namespace: namespace.to_owned(),
                    service_account: service_account.to_owned(),
                })
            }
            _ => Err(invalid()),
        }
    }
}

/// The trust domain of any SPIFFE URI.
#[must_use]
pub fn trust_domain_of(uri: &str) -> Option<&str> {
    let trust_domain = uri.strip_prefix(PREFIX)?.split('/').next()?;
    (!trust_domain.is_empty()).then_some(trust_domain)
}

/// `identities` (SPIFFE URIs) plus the same in every alias of their trust domain: those of `local` and its `aliases` are one.
#[must_use]
pub fn expand_aliases(identities: &[String], local: &str, aliases: &[String]) -> Vec<String> {
    let mut expanded: Vec<String> = identities.to_vec();
    for identity in identities {
        let Some(trust_domain) = trust_domain_of(identity) else {
            continue;
        };
        if trust_domain != local && !aliases.iter().any(|alias| alias == trust_domain) {
            continue;
        }
        let path = &identity[PREFIX.len() + trust_domain.len()..];
        expanded.push(format!("{PREFIX}{local}{path}"));
        expanded.extend(aliases.iter().map(|alias| format!("{PREFIX}{alias}{path}")));
    }
    expanded.sort();
    expanded.dedup();
    expanded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_have_one_form() {
        let id: SpiffeId = "spiffe://cluster.local/ns/bookinfo/sa/reviews"
            .parse()
            .unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "bookinfo", "reviews")
        );
        assert_eq!(id.principal(), "cluster.local/ns/bookinfo/sa/reviews");
        for text in [
            "",
            "spiffe://",
            "cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/a/ns/b",
            "http://td/ns/a/sa/b",
        ] {
            assert_eq!(
                text.parse::<SpiffeId>(),
                Err(InvalidSpiffeId(text.to_owned()))
            );
        }
    }

    #[test]
    fn an_at_sign_becomes_a_dot() {
        assert_eq!(
            SpiffeId::new("me@corp", "a", "b").unwrap().to_string(),
            "spiffe://me.corp/ns/a/sa/b"
        );
        assert!(SpiffeId::new("td", "a/b", "c").is_err());
    }

    #[test]
    fn aliases_of_the_local_trust_domain_are_one() {
        let aliases = ["old".to_owned()];
        assert_eq!(
            expand_aliases(&["spiffe://old/ns/a/sa/b".into()], "td", &aliases),
            ["spiffe://old/ns/a/sa/b", "spiffe://td/ns/a/sa/b"]
        );
        assert_eq!(
            expand_aliases(&["spiffe://x/ns/a/sa/b".into()], "td", &aliases),
            ["spiffe://x/ns/a/sa/b"]
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".*") {
            let _ = text.parse::<SpiffeId>();
            let _ = trust_domain_of(&text);
            let _ = expand_aliases(&[text], "td", &[]);
        }

        #[test]
        fn an_id_survives_its_text(td in "[a-z.]{1,9}", namespace in "[a-z-]{1,9}", account in "[a-z-]{1,9}") {
            let id = SpiffeId::new(&td, &namespace, &account).unwrap();
            prop_assert_eq!(id.to_string().parse::<SpiffeId>(), Ok(id));
        }
    }
}
