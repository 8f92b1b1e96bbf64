//! The one table of the kinds that Pilot follows: [`for_each_kind`] hands it to the macros that make the store, the updates,
//! the reader of files and the MCP sink.

/// Calls a macro with a row for each kind: field of the store, variant of the update, [`super::store::Kind`], wrapper, message,
/// `kind` in manifests, MCP collection, whether a source must have it.
macro_rules! for_each_kind {
    ($then:ident) => {
        $then! {
            virtual_services VirtualServices VirtualService Checked proto::istio::networking::v1alpha3::VirtualService,
                "VirtualService" "istio/networking/v1alpha3/virtualservices" required;
            destination_rules DestinationRules DestinationRule Checked proto::istio::networking::v1alpha3::DestinationRule,
                "DestinationRule" "istio/networking/v1alpha3/destinationrules" required;
            gateways Gateways Gateway Checked proto::istio::networking::v1alpha3::Gateway,
                "Gateway" "istio/networking/v1alpha3/gateways" required;
            sidecars Sidecars Sidecar Checked proto::istio::networking::v1alpha3::Sidecar,
                "Sidecar" "istio/networking/v1alpha3/sidecars" required;
            service_entries ServiceEntries ServiceEntry Checked proto::istio::networking::v1alpha3::ServiceEntry,
                "ServiceEntry" "istio/networking/v1alpha3/serviceentries" required;
            synthetic_service_entries SyntheticServiceEntries SyntheticServiceEntry Synthetic proto::istio::networking::v1alpha3::ServiceEntry,
                "SyntheticServiceEntry" "istio/networking/v1alpha3/synthetic/serviceentries" required;
            workload_entries WorkloadEntries WorkloadEntry Checked proto::istio::networking::v1alpha3::WorkloadEntry,
                "WorkloadEntry" "istio/networking/v1alpha3/workloadentries" optional;
            workload_groups WorkloadGroups WorkloadGroup Checked proto::istio::networking::v1alpha3::WorkloadGroup,
                "WorkloadGroup" "istio/networking/v1alpha3/workloadgroups" optional;
            envoy_filters EnvoyFilters EnvoyFilter Checked proto::istio::networking::v1alpha3::EnvoyFilter,
                "EnvoyFilter" "istio/networking/v1alpha3/envoyfilters" optional;
            peer_authentications PeerAuthentications PeerAuthentication Checked proto::istio::security::v1beta1::PeerAuthentication,
                "PeerAuthentication" "istio/security/v1beta1/peerauthentications" optional;
            request_authentications RequestAuthentications RequestAuthentication Checked proto::istio::security::v1beta1::RequestAuthentication,
                "RequestAuthentication" "istio/security/v1beta1/requestauthentications" optional;
            authorization_policies AuthorizationPolicies AuthorizationPolicy Checked proto::istio::security::v1beta1::AuthorizationPolicy,
                "AuthorizationPolicy" "istio/security/v1beta1/authorizationpolicies" required;
            telemetries Telemetries Telemetry Checked proto::istio::telemetry::v1alpha1::Telemetry,
                "Telemetry" "istio/telemetry/v1alpha1/telemetries" optional;
            wasm_plugins WasmPlugins WasmPlugin Checked proto::istio::extensions::v1alpha1::WasmPlugin,
                "WasmPlugin" "istio/extensions/v1alpha1/wasmplugins" optional;
            authentication_policies AuthenticationPolicies AuthenticationPolicy Checked proto::istio::authentication::v1alpha1::Policy,
                "Policy" "istio/authentication/v1alpha1/policies" optional;
            mesh_policies MeshPolicies MeshPolicy Checked proto::istio::authentication::v1alpha1::Policy,
                "MeshPolicy" "istio/authentication/v1alpha1/meshpolicies" optional;
            cluster_rbac_configs ClusterRbacConfigs ClusterRbacConfig Checked proto::istio::rbac::v1alpha1::RbacConfig,
                "ClusterRbacConfig" "istio/rbac/v1alpha1/clusterrbacconfigs" optional;
            service_roles ServiceRoles ServiceRole Checked proto::istio::rbac::v1alpha1::ServiceRole,
                "ServiceRole" "istio/rbac/v1alpha1/serviceroles" optional;
            service_role_bindings ServiceRoleBindings ServiceRoleBinding Checked proto::istio::rbac::v1alpha1::ServiceRoleBinding,
                "ServiceRoleBinding" "istio/rbac/v1alpha1/servicerolebindings" optional;
            quota_specs QuotaSpecs QuotaSpec Checked proto::istio::mixer::v1::config::client::QuotaSpec,
                "QuotaSpec" "istio/mixer/v1/config/client/quotaspecs" optional;
            quota_spec_bindings QuotaSpecBindings QuotaSpecBinding Checked proto::istio::mixer::v1::config::client::QuotaSpecBinding,
                "QuotaSpecBinding" "istio/mixer/v1/config/client/quotaspecbindings" optional;
        }
    };
}
pub(super) use for_each_kind;
