//! The 1.4 line's security resources: authentication policies by service, namespace and mesh; roles and who has them.

use std::collections::BTreeMap;

use proto::istio::authentication::v1alpha1::{
    self as wire, Jwt, mutual_tls::Mode, peer_authentication_method::Params, port_selector::Port,
};
use proto::istio::rbac::v1alpha1::{
    EnforcementMode, RbacConfig, ServiceRole, ServiceRoleBinding,
    rbac_config::{Mode as RbacMode, Target},
};
use proto::istio::security::v1beta1::{JwtHeader, JwtRule};

use super::{MtlsMode, Sources};
use crate::config::{Config, by_age};
use crate::model::{Service, ServicePort};

/// The name of policies that have no targets, and of everything there is one of.
const DEFAULT: &str = "default";

/// All of them.
#[derive(Debug, Default)]
pub struct Legacy {
    /// By namespace, oldest first.
    policies: BTreeMap<String, Vec<Config<wire::Policy>>>,
    mesh: Option<Config<wire::Policy>>,
    rbac: Option<Config<RbacConfig>>,
    roles: BTreeMap<(String, String), Config<ServiceRole>>,
    bindings: BTreeMap<String, Vec<Config<ServiceRoleBinding>>>,
}

/// Which tokens count at one port.
#[derive(Clone, Debug)]
pub struct TokenPolicy {
    /// The rules, with the paths that they are for.
    pub rules: Vec<(JwtRule, Vec<wire::jwt::TriggerRule>)>,
    /// Requests without a good token pass.
    pub is_optional: bool,
}

impl Legacy {
    pub(super) fn new(sources: &Sources<'_>) -> Self {
        let store = sources.store;
        let mut index = Legacy {
            mesh: store.mesh_policies.get("/default").cloned(),
            rbac: store.cluster_rbac_configs.get("/default").cloned(),
            ..Legacy::default()
        };
        for config in by_age(store.authentication_policies.values()) {
            index
                .policies
                .entry(config.meta.namespace.clone())
                .or_default()
                .push(Config::clone(config));
        }
        for config in store.service_roles.values() {
            let key = (config.meta.namespace.clone(), config.meta.name.clone());
            index.roles.insert(key, Config::clone(config));
        }
        for config in by_age(store.service_role_bindings.values()) {
            index
                .bindings
                .entry(config.meta.namespace.clone())
                .or_default()
                .push(Config::clone(config));
        }
        index
    }

    /// The policy for a port of `service`: one that names the port, one that names the service, the namespace's, the mesh's.
    fn policy(&self, service: &Service, port: &ServicePort) -> Option<&wire::Policy> {
        let all = self
            .policies
            .get(&service.namespace)
            .map_or(&[][..], Vec::as_slice);
        let with_port = all.iter().find(|config| {
            config
                .spec
                .targets
                .iter()
                .any(|target| target.name == service.name && names_port(&target.ports, port))
        });
        let with_service = || {
            all.iter().find(|config| {
                let mut targets = config.spec.targets.iter();
                targets.any(|target| target.name == service.name && target.ports.is_empty())
            })
        };
        with_port
            .or_else(with_service)
            .map(|config| &config.spec)
            .or_else(|| self.general(&service.namespace))
    }

    fn general(&self, namespace: &str) -> Option<&wire::Policy> {
        let mut own = self.policies.get(namespace).into_iter().flatten();
        own.find(|config| config.meta.name == DEFAULT && config.spec.targets.is_empty())
            .or(self.mesh.as_ref())
            .map(|config| &config.spec)
    }

    /// How a port of `service` takes connections, if any policy says so.
    #[must_use]
    pub fn mode(&self, service: &Service, port: &ServicePort) -> Option<MtlsMode> {
        self.policy(service, port).map(mode_of)
    }

    /// How workloads of `namespace` take connections to ports without a service.
    #[must_use]
    pub fn namespace_mode(&self, namespace: &str) -> Option<MtlsMode> {
        self.general(namespace).map(mode_of)
    }

    /// Which tokens count at a port of `service`.
    #[must_use]
    pub fn tokens(&self, service: &Service, port: &ServicePort) -> Option<TokenPolicy> {
        let policy = self.policy(service, port)?;
        let rules: Vec<_> = policy
            .origins
            .iter()
            .filter_map(|origin| origin.jwt.as_ref())
            .map(|jwt| (to_rule(jwt), jwt.trigger_rules.clone()))
            .collect();
        (!rules.is_empty()).then_some(TokenPolicy {
            rules,
            is_optional: policy.origin_is_optional,
        })
    }

    /// Every token rule with its namespace.
    pub(super) fn token_rules(&self) -> impl Iterator<Item = (String, JwtRule)> {
        let own = self.policies.values().flatten();
        own.chain(&self.mesh).flat_map(|config| {
            let jwts = config
                .spec
                .origins
                .iter()
                .filter_map(|origin| origin.jwt.as_ref());
            jwts.map(|jwt| (config.meta.namespace.clone(), to_rule(jwt)))
        })
    }

    pub(super) fn rbac(&self, service: &Service) -> Option<EnforcementMode> {
        let config = &self.rbac.as_ref()?.spec;
        let is_in = |target: Option<&Target>| {
            target.is_some_and(|target| {
                target.services.contains(&service.host)
                    || target.namespaces.contains(&service.namespace)
            })
        };
        let is_on = match config.mode() {
            RbacMode::Off => false,
            RbacMode::On => true,
            RbacMode::OnWithInclusion => is_in(config.inclusion.as_ref()),
            RbacMode::OnWithExclusion => !is_in(config.exclusion.as_ref()),
        };
        is_on.then(|| config.enforcement_mode())
    }

    pub(super) fn role(&self, namespace: &str, name: &str) -> Option<&ServiceRole> {
        let key = (namespace.to_owned(), name.to_owned());
        self.roles.get(&key).map(|config| &config.spec)
    }

    pub(super) fn bindings(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&str, &ServiceRoleBinding)> {
        let all = self.bindings.get(namespace).into_iter().flatten();
        all.map(|config| (config.meta.name.as_str(), &config.spec))
    }
}

fn names_port(ports: &[wire::PortSelector], port: &ServicePort) -> bool {
    ports.iter().any(|selector| match &selector.port {
        Some(Port::Number(number)) => *number == port.number,
        Some(Port::Name(name)) => *name == port.name,
        None => false,
    })
}

/// Without a method for peers the workload speaks plaintext.
fn mode_of(policy: &wire::Policy) -> MtlsMode {
    for peer in &policy.peers {
        if let Some(Params::Mtls(settings)) = &peer.params {
            #[allow(deprecated, reason = "the old field is still in use")]
            let allows_plain = settings.allow_tls;
            let is_optional = policy.peer_is_optional || allows_plain;
            return match settings.mode() {
                Mode::Strict if !is_optional => MtlsMode::Strict,
                Mode::Strict | Mode::Permissive => MtlsMode::Permissive,
            };
        }
    }
    MtlsMode::Disable
}

fn to_rule(jwt: &Jwt) -> JwtRule {
    let headers = jwt.jwt_headers.iter().map(|name| JwtHeader {
        name: name.clone(),
        prefix: String::new(),
    });
    JwtRule {
        issuer: jwt.issuer.clone(),
        audiences: jwt.audiences.clone(),
        jwks_uri: jwt.jwks_uri.clone(),
        jwks: jwt.jwks.clone(),
        from_headers: headers.collect(),
        from_params: jwt.jwt_params.clone(),
        // The 1.4 line's filter left the token where it was.
        forward_original_token: true,
        ..JwtRule::default()
    }
}
