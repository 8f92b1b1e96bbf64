//! Security policies by namespace: who must speak mutual TLS, which tokens count, who may do what.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::istio::security::v1beta1::{
    self as wire, authorization_policy::Action, peer_authentication::mutual_tls::Mode,
};
use proto::istio::r#type::v1beta1::WorkloadSelector;

use crate::config::{Config, by_age};
use crate::model::Proxy;

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

/// All policies by namespace, oldest first.
#[derive(Debug, Default)]
pub struct PolicyIndex {
    peer: HashMap<String, Vec<Config<wire::PeerAuthentication>>>,
    request: HashMap<String, Vec<Config<wire::RequestAuthentication>>>,
    authorization: HashMap<String, Vec<Config<wire::AuthorizationPolicy>>>,
    root: String,
}

impl PolicyIndex {
    /// Builds the index.
    pub fn new<'a>(
        peer: impl Iterator<Item = &'a Config<wire::PeerAuthentication>>,
        request: impl Iterator<Item = &'a Config<wire::RequestAuthentication>>,
        authorization: impl Iterator<Item = &'a Config<wire::AuthorizationPolicy>>,
        root: &str,
    ) -> Self {
        PolicyIndex {
            peer: by_namespace(peer),
            request: by_namespace(request),
            authorization: by_namespace(authorization),
            root: root.to_owned(),
        }
    }

    /// What holds for the connections to `proxy`'s workload.
    #[must_use]
    pub fn peer_policy(&self, proxy: &Proxy) -> PeerPolicy {
        let mut policy = PeerPolicy {
            mode: self.namespace_mode(&proxy.namespace),
            by_port: BTreeMap::new(),
        };
        // A policy with a selector in the root namespace is ignored.
        if proxy.namespace == self.root {
            return policy;
        }
        let selected = list(&self.peer, &proxy.namespace).iter().find(|config| {
            selector_labels(config.spec.selector.as_ref())
                .is_some_and(|labels| proxy.is_selected_by(labels))
        });
        let Some(config) = selected else {
            return policy;
        };
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

    /// What clients expect of services in `namespace`: policies for single workloads do not count.
    #[must_use]
    pub fn namespace_mode(&self, namespace: &str) -> MtlsMode {
        [namespace, self.root.as_str()]
            .into_iter()
            .filter_map(|place| {
                list(&self.peer, place)
                    .iter()
                    .find(|config| selector_labels(config.spec.selector.as_ref()).is_none())
            })
            .find_map(|config| {
                config
                    .spec
                    .mtls
                    .as_ref()
                    .and_then(|mtls| to_mode(mtls.mode()))
            })
            .unwrap_or(MtlsMode::Permissive)
    }

    /// The token rules for `proxy`'s workload: the root namespace's first.
    #[must_use]
    pub fn request_authentications(
        &self,
        proxy: &Proxy,
    ) -> Vec<&Config<wire::RequestAuthentication>> {
        self.applicable(&self.request, proxy, |config| config.spec.selector.as_ref())
    }

    /// The authorization policies with `action` for `proxy`'s workload: the root namespace's first.
    #[must_use]
    pub fn authorization_policies(
        &self,
        proxy: &Proxy,
        action: Action,
    ) -> Vec<&Config<wire::AuthorizationPolicy>> {
        let mut policies = self.applicable(&self.authorization, proxy, |config| {
            config.spec.selector.as_ref()
        });
        policies.retain(|config| config.spec.action() == action);
        policies
    }

    /// Where the mesh-wide resources are.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    fn applicable<'a, T>(
        &'a self,
        all: &'a HashMap<String, Vec<Config<T>>>,
        proxy: &Proxy,
        selector: impl Fn(&Config<T>) -> Option<&WorkloadSelector>,
    ) -> Vec<&'a Config<T>> {
        let mut places = vec![self.root.as_str()];
        if proxy.namespace != self.root {
            places.push(&proxy.namespace);
        }
        places
            .into_iter()
            .flat_map(|place| list(all, place))
            .filter(|config| {
                selector_labels(selector(config)).is_none_or(|labels| proxy.is_selected_by(labels))
            })
            .collect()
    }
}

fn by_namespace<'a, T: 'a>(
    configs: impl Iterator<Item = &'a Config<T>>,
) -> HashMap<String, Vec<Config<T>>> {
    let mut all: HashMap<String, Vec<Config<T>>> = HashMap::new();
    for config in by_age(configs) {
        all.entry(config.meta.namespace.clone())
            .or_default()
            .push(Arc::clone(config));
    }
    all
}

fn list<'a, T>(all: &'a HashMap<String, Vec<Config<T>>>, namespace: &str) -> &'a [Config<T>] {
    all.get(namespace).map_or(&[], Vec::as_slice)
}

/// The labels of a selector that selects something in particular.
fn selector_labels(selector: Option<&WorkloadSelector>) -> Option<&BTreeMap<String, String>> {
    selector
        .map(|selector| &selector.match_labels)
        .filter(|labels| !labels.is_empty())
}

fn to_mode(mode: Mode) -> Option<MtlsMode> {
    match mode {
        Mode::Unset => None,
        Mode::Disable => Some(MtlsMode::Disable),
        Mode::Permissive => Some(MtlsMode::Permissive),
        Mode::Strict => Some(MtlsMode::Strict),
    }
}
