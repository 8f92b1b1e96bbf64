//! Security policies by namespace: who must speak mutual TLS, which tokens count, who may do what.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use proto::istio::rbac::v1alpha1::{EnforcementMode, ServiceRole, ServiceRoleBinding};
use proto::istio::security::v1beta1::{
    self as wire, JwtRule, authorization_policy::Action, peer_authentication::mutual_tls::Mode,
};

mod legacy;

pub use legacy::{Legacy, TokenPolicy};

use super::PushContext;
use super::attachment::{self, Attached};
use crate::config::store::ConfigStore;
use crate::config::{Config, by_namespace};
use crate::jwks::{KeySource, Wanted};
use crate::model::{ClusterName, Proxy, Service, ServicePort};

/// How long a key set may take of which no rule says it.
const KEYS_COME_WITHIN: Duration = Duration::from_secs(5);

/// How a server takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// The mutual-TLS settings of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    /// For ports that are not named.
    pub mode: MtlsMode,
    /// By workload port.
    pub by_port: BTreeMap<u32, MtlsMode>,
    /// A PeerAuthentication says so; else the 1.4 line's policies may.
    pub is_set: bool,
}

impl PeerPolicy {
    /// The same for a workload that has no certificate: what would take both takes plaintext. STRICT stays, and lets nobody in.
    #[must_use]
    pub fn without_certificates(mut self) -> Self {
        let modes = self.by_port.values_mut().chain([&mut self.mode]);
        for mode in modes.filter(|mode| **mode == MtlsMode::Permissive) {
            *mode = MtlsMode::Disable;
        }
        self
    }

    /// The mode of a workload port.
    #[must_use]
    pub fn mode_of(&self, port: u32) -> MtlsMode {
        self.by_port.get(&port).copied().unwrap_or(self.mode)
    }
}

/// Where the keys of a token rule come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// They are in the rule.
    Inline,
    /// The proxy fetches them from this cluster.
    Cluster(String),
    /// Pilot fetches them.
    Fetched(KeySource),
}

/// The resources of which an index is made.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Everything.
    pub store: &'a ConfigStore,
    /// Where mesh-wide resources are.
    pub root: &'a str,
    /// `cluster.local`.
    pub domain: &'a str,
}

/// All policies by namespace, oldest first.
#[derive(Debug, Default)]
pub struct PolicyIndex {
    legacy: Legacy,
    peer: HashMap<String, Vec<Config<wire::PeerAuthentication>>>,
    request: HashMap<String, Vec<Config<wire::RequestAuthentication>>>,
    authorization: HashMap<String, Vec<Config<wire::AuthorizationPolicy>>>,
    root: String,
}

impl PolicyIndex {
    /// Builds the index.
    #[must_use]
    pub fn new(sources: &Sources<'_>) -> Self {
        let store = sources.store;
        PolicyIndex {
            legacy: Legacy::new(sources),
            peer: by_namespace(store.peer_authentications.values()),
            request: by_namespace(store.request_authentications.values()),
            authorization: by_namespace(store.authorization_policies.values()),
            root: sources.root.to_owned(),
        }
    }

    /// Where the keys of `rule` come from, for workloads in `namespace`.
    #[must_use]
    pub fn key_place(push: &PushContext, namespace: &str, rule: &JwtRule) -> KeyPlace {
        if !rule.jwks.is_empty() {
            return KeyPlace::Inline;
        }
        if rule.jwks_uri.is_empty() {
            return KeyPlace::Fetched(KeySource::Issuer(rule.issuer.clone()));
        }
        let in_mesh = || {
            let uri = rule.jwks_uri.parse::<http::Uri>().ok()?;
            let is_tls = uri.scheme_str() == Some("https");
            let port = u32::from(uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }));
            let host = uri.host()?;
            let host = if host.ends_with(".svc") {
                format!("{host}.{}", push.domain)
            } else {
                host.to_owned()
            };
            let service = push.services.lookup(&host, namespace)?;
            // Only a service inside is reached as it is; TLS to others would need a destination rule.
            let is_reachable = !service.is_external && service.port(port).is_some();
            is_reachable.then(|| ClusterName::outbound(port, "", &service.host).to_string())
        };
        in_mesh().map_or_else(
            || KeyPlace::Fetched(KeySource::Uri(rule.jwks_uri.clone())),
            KeyPlace::Cluster,
        )
    }

    /// The keys that Pilot has to fetch.
    #[must_use]
    pub fn wanted_keys(&self, push: &PushContext) -> Wanted {
        let mut wanted = Wanted::new();
        let mut want = |namespace: &str, rule: &JwtRule| {
            if let KeyPlace::Fetched(source) = PolicyIndex::key_place(push, namespace, rule) {
                let timeout = rule.timeout.and_then(|timeout| timeout.try_into().ok());
                // Of several rules about one key set the most patient counts.
                let longest = wanted.entry(source).or_default();
                *longest = timeout.unwrap_or(KEYS_COME_WITHIN).max(*longest);
            }
        };
        for (namespace, configs) in &self.request {
            for rule in configs.iter().flat_map(|config| &config.spec.jwt_rules) {
                want(namespace, rule);
            }
        }
        for (namespace, rule) in self.legacy.token_rules() {
            want(&namespace, &rule);
        }
        wanted
    }

    /// True when any AuthorizationPolicy is for `proxy`'s workload.
    #[must_use]
    pub fn has_authorization_policy(&self, proxy: &Proxy) -> bool {
        !self.applicable(&self.authorization, proxy).is_empty()
    }

    /// The resources of the 1.4 line.
    #[must_use]
    pub fn legacy(&self) -> &Legacy {
        &self.legacy
    }

    /// Whether, and how, the 1.4 line's roles guard `service`.
    #[must_use]
    pub fn legacy_rbac(&self, service: &Service) -> Option<EnforcementMode> {
        self.legacy.rbac(service)
    }

    /// The 1.4 line's role `name`.
    #[must_use]
    pub fn role(&self, namespace: &str, name: &str) -> Option<&ServiceRole> {
        self.legacy.role(namespace, name)
    }

    /// The 1.4 line's bindings in `namespace`, with their names.
    pub fn role_bindings(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&str, &ServiceRoleBinding)> {
        self.legacy.bindings(namespace)
    }

    /// What clients of a port of `service` expect.
    #[must_use]
    pub fn service_mode(&self, service: &Service, port: &ServicePort) -> MtlsMode {
        self.set_mode(&service.namespace)
            .or_else(|| self.legacy.mode(service, port))
            .unwrap_or(MtlsMode::Permissive)
    }

    /// What holds for the connections to `proxy`'s workload.
    #[must_use]
    pub fn peer_policy(&self, proxy: &Proxy) -> PeerPolicy {
        let set = self
            .set_mode(&proxy.namespace)
            .or_else(|| self.legacy.namespace_mode(&proxy.namespace));
        let mut policy = PeerPolicy {
            mode: set.unwrap_or(MtlsMode::Permissive),
            by_port: BTreeMap::new(),
            is_set: self.set_mode(&proxy.namespace).is_some(),
        };
        let selected = self.selected_peer(&proxy.namespace, |labels| proxy.is_selected_by(labels));
        let Some(config) = selected else {
            return policy;
        };
        policy.is_set = true;
        if let Some(mode) = config
            .spec
            .mtls
            .as_ref()
            .and_then(|mtls| to_mode(mtls.mode()))
        {
            policy.mode = mode;
        }
        for (port, mtls) in &config.spec.port_level_mtls {
            policy
                .by_port
                .insert(*port, to_mode(mtls.mode()).unwrap_or(policy.mode));
        }
        policy
    }

    /// True when a PeerAuthentication for a single workload turns mutual TLS off on its `port`: clients must not try it there.
    /// What holds for a whole namespace is [`PolicyIndex::service_mode`]'s to say.
    #[must_use]
    pub fn disables_workload(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u32,
    ) -> bool {
        let is_selected = |wanted: &BTreeMap<String, String>| {
            wanted
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        };
        let Some(config) = self.selected_peer(namespace, is_selected) else {
            return false;
        };
        let of_port = config.spec.port_level_mtls.get(&port);
        of_port
            .and_then(|mtls| to_mode(mtls.mode()))
            .or_else(|| to_mode(config.spec.mtls.as_ref()?.mode()))
            == Some(MtlsMode::Disable)
    }

    /// The oldest PeerAuthentication of `namespace` whose selector selects the workload. The root namespace's apply to all
    /// of it: there a policy with a selector is ignored.
    fn selected_peer(
        &self,
        namespace: &str,
        is_selected: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> Option<&Config<wire::PeerAuthentication>> {
        list(&self.peer, namespace)
            .iter()
            .filter(|_| namespace != self.root)
            .find(|config| {
                attachment::labels(config.spec.selector.as_ref()).is_some_and(&is_selected)
            })
    }

    /// What PeerAuthentications say of `namespace` as a whole: policies for single workloads do not count.
    fn set_mode(&self, namespace: &str) -> Option<MtlsMode> {
        [namespace, self.root.as_str()]
            .into_iter()
            .filter_map(|place| {
                list(&self.peer, place)
                    .iter()
                    .find(|config| attachment::labels(config.spec.selector.as_ref()).is_none())
            })
            .find_map(|config| {
                config
                    .spec
                    .mtls
                    .as_ref()
                    .and_then(|mtls| to_mode(mtls.mode()))
            })
    }

    /// The token rules for `proxy`'s workload: the root namespace's first.
    #[must_use]
    pub fn request_authentications(
        &self,
        proxy: &Proxy,
    ) -> Vec<&Config<wire::RequestAuthentication>> {
        self.applicable(&self.request, proxy)
    }

    /// The authorization policies with `action` for `proxy`'s workload: the root namespace's first.
    #[must_use]
    pub fn authorization_policies(
        &self,
        proxy: &Proxy,
        action: Action,
    ) -> Vec<&Config<wire::AuthorizationPolicy>> {
        let mut policies = self.applicable(&self.authorization, proxy);
        policies.retain(|config| config.spec.action() == action);
        policies
    }

    /// Where the mesh-wide resources are.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    fn applicable<'a, T: Attached>(
        &'a self,
        all: &'a HashMap<String, Vec<Config<T>>>,
        proxy: &Proxy,
    ) -> Vec<&'a Config<T>> {
        let mut places = vec![self.root.as_str()];
        if proxy.namespace != self.root {
            places.push(&proxy.namespace);
        }
        places
            .into_iter()
            .flat_map(|place| list(all, place))
            .filter(|config| attachment::is_for(proxy, config))
            .collect()
    }
}

fn list<'a, T>(all: &'a HashMap<String, Vec<Config<T>>>, namespace: &str) -> &'a [Config<T>] {
    all.get(namespace).map_or(&[], Vec::as_slice)
}

fn to_mode(mode: Mode) -> Option<MtlsMode> {
    match mode {
        Mode::Unset => None,
        Mode::Disable => Some(MtlsMode::Disable),
        Mode::Permissive => Some(MtlsMode::Permissive),
        Mode::Strict => Some(MtlsMode::Strict),
    }
}
