//! The kinds of objects that the platform keeps: those of Kubernetes that it acts on, and every kind of the mesh.

use proto::kind::{KINDS, Scope};

/// A kind, whoever defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectKind {
    /// Empty for the core group.
    pub group: &'static str,
    /// The version that is stored.
    pub version: &'static str,
    /// `Deployment`.
    pub kind: &'static str,
    /// `deployments`.
    pub plural: &'static str,
    /// Whether its objects live in a namespace.
    pub is_namespaced: bool,
    /// Whether it configures the mesh rather than the platform.
    pub is_mesh: bool,
}

const fn platform(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    is_namespaced: bool,
) -> ObjectKind {
    ObjectKind {
        group,
        version: "v1",
        kind,
        plural,
        is_namespaced,
        is_mesh: false,
    }
}

/// The platform's own kinds, in the order in which a manifest's objects are worked on.
pub(crate) const PLATFORM_KINDS: &[ObjectKind] = &[
    platform("", "Namespace", "namespaces", false),
    platform("", "ServiceAccount", "serviceaccounts", true),
    platform("", "ConfigMap", "configmaps", true),
    platform("", "Secret", "secrets", true),
    platform("", "Service", "services", true),
    platform("discovery.k8s.io", "EndpointSlice", "endpointslices", true),
    platform("networking.k8s.io", "Ingress", "ingresses", true),
    platform(
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        false,
    ),
    platform(
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        false,
    ),
    platform("apps", "Deployment", "deployments", true),
    platform("", "Pod", "pods", true),
];

const SHORT_NAMES: &[(&str, &str)] = &[
    ("ns", "Namespace"),
    ("sa", "ServiceAccount"),
    ("cm", "ConfigMap"),
    ("svc", "Service"),
    ("ing", "Ingress"),
    ("deploy", "Deployment"),
    ("po", "Pod"),
];

impl ObjectKind {
    /// `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `virtualservice.networking.istio.io`, as kubectl prints it.
    pub(crate) fn qualified(&self) -> String {
        let kind = self.kind.to_ascii_lowercase();
        if self.group.is_empty() {
            kind
        } else {
            format!("{kind}.{}", self.group)
        }
    }
}

fn of_mesh(kind: &'static proto::kind::Kind) -> ObjectKind {
    ObjectKind {
        group: kind.group,
        version: kind.versions[0],
        kind: kind.kind,
        plural: kind.plural,
        is_namespaced: kind.scope == Scope::Namespaced,
        is_mesh: true,
    }
}

/// The kind of a manifest.
pub(crate) fn by_api_version_kind(api_version: &str, kind: &str) -> Option<ObjectKind> {
    let found = PLATFORM_KINDS
        .iter()
        .find(|known| known.kind == kind && known.api_version() == api_version);
    found
        .copied()
        .or_else(|| proto::kind::by_api_version_kind(api_version, kind).map(of_mesh))
}

/// The kind that a user names on the command line: kind, plural or short name, in any case.
pub(crate) fn by_user_name(name: &str) -> Option<ObjectKind> {
    let lower = name.to_ascii_lowercase();
    let long = SHORT_NAMES
        .iter()
        .find(|(short, _)| *short == lower)
        .map_or(lower.as_str(), |(_, kind)| kind);
    let is_named = |kind: &&ObjectKind| {
        kind.kind.eq_ignore_ascii_case(long) || kind.plural == long || kind.qualified() == lower
    };
    PLATFORM_KINDS
        .iter()
        .find(is_named)
        .copied()
        .or_else(|| proto::kind::by_user_name(name).map(of_mesh))
}

/// Every kind there is.
pub(crate) fn all() -> impl Iterator<Item = ObjectKind> {
    PLATFORM_KINDS
        .iter()
        .copied()
        .chain(KINDS.iter().map(of_mesh))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_what_users_call_them() {
        assert_eq!(by_user_name("deploy").unwrap().kind, "Deployment");
        assert_eq!(by_user_name("Pods").unwrap().kind, "Pod");
        assert_eq!(
            by_user_name("ingresses").unwrap().group,
            "networking.k8s.io"
        );
        assert_eq!(by_user_name("vs").unwrap().kind, "VirtualService");
        assert!(by_user_name("nothing").is_none());
        assert_eq!(
            by_api_version_kind("apps/v1", "Deployment").unwrap().plural,
            "deployments"
        );
        assert!(
            by_api_version_kind("networking.istio.io/v1alpha3", "Gateway")
                .unwrap()
                .is_mesh
        );
        assert!(by_api_version_kind("v1", "Deployment").is_none());
    }
}
