//! The one table of resource kinds: everything that reads, validates, serves or prints configuration goes by it.

use crate::type_url;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// One for the whole cluster.
    Cluster,
}

/// A kind of resource that Bireme reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, `networking.istio.io`.
    pub group: &'static str,
    /// Served versions, the preferred one first. They differ in name only: the message is the same.
    pub versions: &'static [&'static str],
    /// `VirtualService`.
    pub kind: &'static str,
    /// `virtualservices`.
    pub plural: &'static str,
    /// Short names as `kubectl` takes them.
    pub short_names: &'static [&'static str],
    /// MCP collection, `istio/networking/v1alpha3/virtualservices`.
    pub collection: &'static str,
    /// Full name of the message that is its `spec`, `istio.networking.v1alpha3.VirtualService`.
    pub message: &'static str,
    /// Namespaced or not.
    pub scope: Scope,
}

impl Kind {
    /// The type URL of the kind's message.
    #[must_use]
    pub fn type_url(&self) -> String {
        format!("{}{}", type_url::PREFIX, self.message)
    }

    /// `networking.istio.io/v1`: the group with the preferred version.
    #[must_use]
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.versions[0])
    }
}

/// The collection of service entries that Galley makes of Kubernetes services: Pilot's service registry over MCP.
pub const SYNTHETIC_SERVICE_ENTRIES: &str = "istio/networking/v1alpha3/synthetic/serviceentries";

/// The collection with the one `MeshConfig`.
pub const MESH_CONFIG: &str = "istio/mesh/v1alpha1/MeshConfig";

const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];

macro_rules! kinds {
    ($($group:literal $versions:expr, $kind:literal $plural:literal $short:expr, $collection:literal, $message:literal, $scope:ident;)*) => {
        /// Every kind, in the order of their groups.
        pub static KINDS: &[Kind] = &[$(Kind {
            group: $group, versions: $versions, kind: $kind, plural: $plural, short_names: &$short,
            collection: $collection, message: $message, scope: Scope::$scope,
        }),*];
    };
}

kinds! {
    "networking.istio.io" NETWORKING, "VirtualService" "virtualservices" ["vs"],
        "istio/networking/v1alpha3/virtualservices", "istio.networking.v1alpha3.VirtualService", Namespaced;
    "networking.istio.io" NETWORKING, "DestinationRule" "destinationrules" ["dr"],
        "istio/networking/v1alpha3/destinationrules", "istio.networking.v1alpha3.DestinationRule", Namespaced;
    "networking.istio.io" NETWORKING, "Gateway" "gateways" ["gw"],
        "istio/networking/v1alpha3/gateways", "istio.networking.v1alpha3.Gateway", Namespaced;
    "networking.istio.io" NETWORKING, "ServiceEntry" "serviceentries" ["se"],
        "istio/networking/v1alpha3/serviceentries", "istio.networking.v1alpha3.ServiceEntry", Namespaced;
    "networking.istio.io" NETWORKING, "WorkloadEntry" "workloadentries" ["we"],
        "istio/networking/v1alpha3/workloadentries", "istio.networking.v1alpha3.WorkloadEntry", Namespaced;
    "networking.istio.io" NETWORKING, "WorkloadGroup" "workloadgroups" ["wg"],
        "istio/networking/v1alpha3/workloadgroups", "istio.networking.v1alpha3.WorkloadGroup", Namespaced;
    "networking.istio.io" NETWORKING, "Sidecar" "sidecars" [],
        "istio/networking/v1alpha3/sidecars", "istio.networking.v1alpha3.Sidecar", Namespaced;
    "networking.istio.io" &["v1alpha3"], "EnvoyFilter" "envoyfilters" [],
        "istio/networking/v1alpha3/envoyfilters", "istio.networking.v1alpha3.EnvoyFilter", Namespaced;
    "networking.istio.io" &["v1beta1"], "ProxyConfig" "proxyconfigs" [],
        "istio/networking/v1beta1/proxyconfigs", "istio.networking.v1beta1.ProxyConfig", Namespaced;
    "security.istio.io" SECURITY, "PeerAuthentication" "peerauthentications" ["pa"],
        "istio/security/v1beta1/peerauthentications", "istio.security.v1beta1.PeerAuthentication", Namespaced;
    "security.istio.io" SECURITY, "RequestAuthentication" "requestauthentications" ["ra"],
        "istio/security/v1beta1/requestauthentications", "istio.security.v1beta1.RequestAuthentication", Namespaced;
    "security.istio.io" SECURITY, "AuthorizationPolicy" "authorizationpolicies" ["ap"],
        "istio/security/v1beta1/authorizationpolicies", "istio.security.v1beta1.AuthorizationPolicy", Namespaced;
    "telemetry.istio.io" &["v1", "v1alpha1"], "Telemetry" "telemetries" ["telemetry"],
        "istio/telemetry/v1alpha1/telemetries", "istio.telemetry.v1alpha1.Telemetry", Namespaced;
    "extensions.istio.io" &["v1alpha1"], "WasmPlugin" "wasmplugins" [],
        "istio/extensions/v1alpha1/wasmplugins", "istio.extensions.v1alpha1.WasmPlugin", Namespaced;
    "authentication.istio.io" &["v1alpha1"], "Policy" "policies" [],
        "istio/authentication/v1alpha1/policies", "istio.authentication.v1alpha1.Policy", Namespaced;
    "authentication.istio.io" &["v1alpha1"], "MeshPolicy" "meshpolicies" [],
        "istio/authentication/v1alpha1/meshpolicies", "istio.authentication.v1alpha1.Policy", Cluster;
    "rbac.istio.io" &["v1alpha1"], "ClusterRbacConfig" "clusterrbacconfigs" [],
        "istio/rbac/v1alpha1/clusterrbacconfigs", "istio.rbac.v1alpha1.RbacConfig", Cluster;
    "rbac.istio.io" &["v1alpha1"], "RbacConfig" "rbacconfigs" [],
        "istio/rbac/v1alpha1/rbacconfigs", "istio.rbac.v1alpha1.RbacConfig", Namespaced;
    "rbac.istio.io" &["v1alpha1"], "ServiceRole" "serviceroles" [],
        "istio/rbac/v1alpha1/serviceroles", "istio.rbac.v1alpha1.ServiceRole", Namespaced;
    "rbac.istio.io" &["v1alpha1"], "ServiceRoleBinding" "servicerolebindings" [],
        "istio/rbac/v1alpha1/servicerolebindings", "istio.rbac.v1alpha1.ServiceRoleBinding", Namespaced;
    "config.istio.io" &["v1alpha2"], "attributemanifest" "attributemanifests" [],
        "istio/policy/v1beta1/attributemanifests", "istio.policy.v1beta1.AttributeManifest", Namespaced;
    "config.istio.io" &["v1alpha2"], "handler" "handlers" [],
        "istio/policy/v1beta1/handlers", "istio.policy.v1beta1.Handler", Namespaced;
    "config.istio.io" &["v1alpha2"], "instance" "instances" [],
        "istio/policy/v1beta1/instances", "istio.policy.v1beta1.Instance", Namespaced;
    "config.istio.io" &["v1alpha2"], "rule" "rules" [],
        "istio/policy/v1beta1/rules", "istio.policy.v1beta1.Rule", Namespaced;
    "config.istio.io" &["v1alpha2"], "QuotaSpec" "quotaspecs" [],
        "istio/mixer/v1/config/client/quotaspecs", "istio.mixer.v1.config.client.QuotaSpec", Namespaced;
    "config.istio.io" &["v1alpha2"], "QuotaSpecBinding" "quotaspecbindings" [],
        "istio/mixer/v1/config/client/quotaspecbindings", "istio.mixer.v1.config.client.QuotaSpecBinding", Namespaced;
    "config.istio.io" &["v1alpha2"], "HTTPAPISpec" "httpapispecs" [],
        "istio/config/v1alpha2/httpapispecs", "istio.mixer.v1.config.client.HTTPAPISpec", Namespaced;
    "config.istio.io" &["v1alpha2"], "HTTPAPISpecBinding" "httpapispecbindings" [],
        "istio/config/v1alpha2/httpapispecbindings", "istio.mixer.v1.config.client.HTTPAPISpecBinding", Namespaced;
}

/// The kind that a manifest's `apiVersion` and `kind` name. The version must be one that is served.
#[must_use]
pub fn by_api_version_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/')?;
    KINDS.iter().find(|known| {
        known.group == group && known.kind == kind && known.versions.contains(&version)
    })
}

/// The kind whose resources an MCP collection holds.
#[must_use]
pub fn by_collection(collection: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.collection == collection)
}

/// The kind with this plural name in this group.
#[must_use]
pub fn by_plural(group: &str, plural: &str) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|kind| kind.group == group && kind.plural == plural)
}

/// The kind that a user means by `vs`, `virtualservice`, `VirtualServices` or `virtualservices.networking.istio.io`.
#[must_use]
pub fn by_user_name(name: &str) -> Option<&'static Kind> {
    let name = name.to_ascii_lowercase();
    let (name, group) = name
        .split_once('.')
        .map_or((name.as_str(), None), |(name, group)| (name, Some(group)));
    KINDS.iter().find(|kind| {
        group.is_none_or(|group| group == kind.group)
            && (name == kind.plural
                || name == kind.kind.to_ascii_lowercase()
                || kind.short_names.contains(&name))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_a_message_that_is_known() {
        for kind in KINDS {
            assert!(
                crate::descriptor::message(kind.message).is_some(),
                "{}",
                kind.message
            );
        }
    }

    #[test]
    fn collections_and_plurals_are_unique() {
        let collections: HashSet<_> = KINDS.iter().map(|kind| kind.collection).collect();
        let plurals: HashSet<_> = KINDS.iter().map(|kind| (kind.group, kind.plural)).collect();
        assert_eq!(
            (collections.len(), plurals.len()),
            (KINDS.len(), KINDS.len())
        );
    }

    #[test]
    fn users_name_kinds_as_they_do_with_kubectl() {
        for name in [
            "vs",
            "VirtualService",
            "virtualservices",
            "virtualservices.networking.istio.io",
        ] {
            assert_eq!(
                by_user_name(name).map(|kind| kind.kind),
                Some("VirtualService")
            );
        }
        assert!(by_user_name("nothing").is_none());
    }
}
