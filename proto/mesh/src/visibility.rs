//! Who can see a resource: `exportTo`.

use std::collections::BTreeSet;

/// The namespaces that a resource is exported to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody (`*`).
    Public,
    /// Nobody (`~`).
    Nobody,
    /// These namespaces; `.` has been replaced by the resource's own.
    Namespaces(BTreeSet<String>),
}

impl Visibility {
    /// Reads an `exportTo` list of a resource in namespace `own`. An empty list means `default`, which is another such list
    /// (of the mesh configuration); if that is empty too, everybody.
    #[must_use]
    pub fn new(export_to: &[String], default: &[String], own: &str) -> Self {
        let list = if export_to.is_empty() {
            default
        } else {
            export_to
        };
        if list.is_empty() || list.iter().any(|entry| entry == "*") {
            return Self::Public;
        }
        let namespaces: BTreeSet<String> = list
            .iter()
            .filter(|entry| *entry != "~")
            .map(|entry| {
                if entry == "." {
                    own.to_owned()
                } else {
                    entry.clone()
                }
            })
            .collect();
        if namespaces.is_empty() {
            return Self::Nobody;
        }
        Self::Namespaces(namespaces)
    }

    /// True when workloads of `namespace` can see the resource.
    #[must_use]
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        match self {
            Self::Public => true,
            Self::Nobody => false,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }

    /// True when only the resource's own namespace can see it.
    #[must_use]
    pub fn is_private_to(&self, own: &str) -> bool {
        matches!(self, Self::Namespaces(namespaces) if namespaces.len() == 1 && namespaces.contains(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_to_names_who_sees() {
        let list = |entries: &[&str]| entries.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (export_to, default, sees_own, sees_other) in [
            (&[][..], &[][..], true, true),
            (&["*"], &["."], true, true),
            (&["."], &[], true, false),
            (&[], &["."], true, false),
            (&["other"], &[], false, true),
            (&[".", "other"], &[], true, true),
            (&["~"], &[], false, false),
        ] {
            let visibility = Visibility::new(&list(export_to), &list(default), "own");
            assert_eq!(visibility.is_visible_to("own"), sees_own, "{export_to:?}");
            assert_eq!(
                visibility.is_visible_to("other"),
                sees_other,
                "{export_to:?}"
            );
        }
        assert!(Visibility::new(&list(&["."]), &[], "own").is_private_to("own"));
    }
}
