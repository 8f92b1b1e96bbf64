//! The analyzers, by subject. Each looks at everything and reports what it finds; none depends on another's.

use super::{Context, message::Messages};

mod annotation;
mod authorization;
mod deployment;
mod deprecation;
mod destination_rule;
mod envoy_filter;
mod gateway;
mod injection;
mod kubernetes_gateway;
mod mesh_networks;
mod namespace_scope;
mod schema;
mod service;
mod service_entry;
mod virtual_service;
mod webhook;

/// Looks for one sort of mistake.
pub trait Analyzer: Send + Sync {
    /// `virtualservice.GatewayAnalyzer`; Istio's name where it has one.
    fn name(&self) -> &'static str;
    /// One sentence for `--list-analyzers`.
    fn description(&self) -> &'static str;
    /// Looks.
    fn analyze(&self, context: &Context, messages: &mut Messages);
}

/// An analyzer that is a function.
struct Check {
    name: &'static str,
    description: &'static str,
    check: fn(&Context, &mut Messages),
}

impl Analyzer for Check {
    fn name(&self) -> &'static str {
        self.name
    }

    fn description(&self) -> &'static str {
        self.description
    }

    fn analyze(&self, context: &Context, messages: &mut Messages) {
        (self.check)(context, messages);
    }
}

macro_rules! analyzers {
    ($($name:literal $check:path, $description:literal;)*) => {
        static ALL: &[Check] = &[$(Check {
            name: $name, description: $description, check: $check,
        }),*];
    };
}

analyzers! {
    "schema.ValidationAnalyzer" schema::check, "Every object obeys the rules of its kind";
    "annotations.K8sAnalyzer" annotation::check, "The mesh's annotations are known, in place and readable";
    "authn.BlockedCIDRsAnalyzer" authorization::check_jwks, "Fetching keys is restricted where tokens are verified";
    "auth.AuthorizationPoliciesAnalyzer" authorization::check, "Authorization policies apply to something";
    "auth.ServiceRoleAnalyzer" authorization::check_roles, "Service role bindings name roles that exist";
    "auth.JwtAnalyzer" authorization::check_token_ports, "Token policies name ports that speak HTTP";
    "conditions.ConditionAnalyzer" service::check_conditions, "Objects' status tells of no trouble";
    "deployment.MultiServiceAnalyzer" deployment::check_services, "Services of one deployment agree on its ports";
    "applicationUID.Analyzer" deployment::check_user, "No application runs as the proxy's user";
    "deprecation.DeprecationAnalyzer" deprecation::check, "Nothing deprecated is used";
    "destinationrule.CaCertificateAnalyzer" destination_rule::check_verification, "TLS to upstreams verifies the server";
    "destinationrule.SubsetSelectPodAnalyzer" destination_rule::check_subsets, "Destination rules' hosts and subsets exist";
    "envoyfilter.EnvoyPatchAnalyzer" envoy_filter::check, "Patches use operations that work where they apply";
    "externalcontrolplane.ExternalControlPlaneAnalyzer" webhook::check_addresses, "Webhooks of a remote control plane have an address";
    "gateway.CertificateAnalyzer" gateway::check_certificates, "Gateways of a workload do not share certificates";
    "gateway.ConflictingGatewayAnalyzer" gateway::check_conflicts, "Gateways of a workload do not claim the same host and port";
    "gateway.IngressGatewayPortAnalyzer" gateway::check_ports, "Gateways' ports are reachable through a service";
    "gateway.SecretAnalyzer" gateway::check_secrets, "Gateways' secrets exist and hold certificates";
    "injection.Analyzer" injection::check, "Namespaces say whether they are injected, and pods are";
    "injection.ImageAnalyzer" injection::check_images, "Pods run the proxy that injection would give them";
    "injection.ImageAutoAnalyzer" injection::check_auto_images, "Where the image is `auto`, injection fills it in";
    "k8sgateway.CRDVersionAnalyzer" kubernetes_gateway::check_versions, "The Gateway API is new enough";
    "k8sgateway.SelectorAnalyzer" kubernetes_gateway::check_selectors, "Policies for Kubernetes Gateways use targetRefs";
    "meshnetworks.MeshNetworksAnalyzer" mesh_networks::check, "Networks name clusters that are known";
    "service.PortNameAnalyzer" service::check_port_names, "Services' ports tell their protocol";
    "serviceentry.Analyzer" service_entry::check_addresses, "TCP service entries have addresses";
    "serviceentry.ConflictingServiceEntryProtocolAnalyzer" service_entry::check_protocols, "Service entries agree on protocols";
    "sidecar.SelectorAnalyzer" namespace_scope::check_sidecars, "Sidecars select pods, and no pod twice";
    "telemetry.SelectorAnalyzer" namespace_scope::check_telemetries, "Telemetry objects select pods, and no pod twice";
    "telemetry.ProviderAnalyzer" namespace_scope::check_providers, "Access logging has a provider";
    "virtualservice.ConflictingMeshGatewayHostsAnalyzer" virtual_service::conflicts::check, "No two virtual services for sidecars name the same host";
    "virtualservice.DestinationHostAnalyzer" virtual_service::destinations::check, "Destinations and their ports exist";
    "virtualservice.DestinationRuleAnalyzer" virtual_service::destinations::check_subsets, "Destinations' subsets exist";
    "virtualservice.GatewayAnalyzer" virtual_service::gateways::check, "Virtual services' gateways exist and serve their hosts";
    "virtualservice.JWTClaimRouteAnalyzer" virtual_service::gateways::check_claims, "Where routes match claims, tokens are verified";
    "webhook.Analyzer" webhook::check, "Injection's webhooks do not overlap and lead somewhere";
}

/// Every analyzer.
pub fn all() -> Vec<&'static dyn Analyzer> {
    ALL.iter().map(|check| check as &dyn Analyzer).collect()
}

/// Those of that name, or of the group (`gateway`) that it names; none if nobody is called so.
pub fn named(name: &str) -> Vec<&'static dyn Analyzer> {
    let group = format!("{name}.");
    all()
        .into_iter()
        .filter(|analyzer| analyzer.name() == name || analyzer.name().starts_with(&group))
        .collect()
}

#[cfg(test)]
mod tests;
