//! Destination rules by namespace: which one a client has to follow for a host.
//!
//! Order (Istio): the client's own namespace, then what the service's namespace exports, then the root namespace; in each the
//! most specific host wins. Rules of one namespace for one host are merged: subsets united, the oldest traffic policy.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::istio::networking::v1alpha3 as wire;
use proto_mesh::host;
use proto_mesh::visibility::Visibility;

use super::host_index::HostIndex;
use crate::config::{Config, by_age};

/// The rules of one namespace for one host, merged.
#[derive(Clone, Debug)]
pub struct DestinationRule {
    /// Fully qualified, or a wildcard.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// Names of the resources it was made of.
    pub names: Vec<String>,
    /// Clients it is for; empty: all.
    pub selector: BTreeMap<String, String>,
    /// For the host as a whole.
    pub traffic_policy: Option<wire::TrafficPolicy>,
    /// In order of declaration.
    pub subsets: Vec<wire::Subset>,
    visibility: Visibility,
}

impl DestinationRule {
    /// The subset of this name.
    #[must_use]
    pub fn subset(&self, name: &str) -> Option<&wire::Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }
}

/// The rules of one namespace, oldest first.
#[derive(Debug, Default)]
struct Rules {
    all: Vec<Arc<DestinationRule>>,
    by_host: HostIndex,
}

/// All destination rules.
#[derive(Debug, Default)]
pub struct DestinationRuleIndex {
    by_namespace: HashMap<String, Rules>,
    root: String,
    /// Subsets that were declared twice for one host.
    pub duplicate_subsets: Vec<String>,
    has_selectors: bool,
    has_failover_labels: bool,
}

impl DestinationRuleIndex {
    /// Builds the index.
    pub fn new<'a>(
        configs: impl Iterator<Item = &'a Config<wire::DestinationRule>>,
        root: &str,
        domain: &str,
        default: &[String],
    ) -> Self {
        let mut index = DestinationRuleIndex {
            root: root.to_owned(),
            ..Self::default()
        };
        for config in by_age(configs) {
            index.add(config, domain, default);
        }
        let has_selectors = index.iter().any(|rule| !rule.selector.is_empty());
        let has_failover_labels = index.iter().any(|rule| {
            let subsets = rule.subsets.iter().map(|subset| &subset.traffic_policy);
            subsets
                .chain([&rule.traffic_policy])
                .flatten()
                .any(has_failover_labels_in)
        });
        (index.has_selectors, index.has_failover_labels) = (has_selectors, has_failover_labels);
        index
    }

    fn add(&mut self, config: &Config<wire::DestinationRule>, domain: &str, default: &[String]) {
        let (meta, spec) = (&config.meta, &config.spec);
        let visibility = Visibility::new(&spec.export_to, default, &meta.namespace);
        let host = host::resolve(&spec.host, &meta.namespace, domain);
        let selector: BTreeMap<String, String> = spec
            .workload_selector
            .iter()
            .flat_map(|selector| selector.match_labels.clone())
            .collect();
        let rules = self.by_namespace.entry(meta.namespace.clone()).or_default();
        let existing = rules.by_host.of(&host).into_iter().find(|position| {
            let rule = &rules.all[*position];
            rule.host == host && rule.selector == selector && rule.visibility == visibility
        });
        let Some(existing) = existing else {
            rules.by_host.add(&host, rules.all.len());
            rules.all.push(Arc::new(DestinationRule {
                host,
                namespace: meta.namespace.clone(),
                names: vec![meta.name.clone()],
                selector,
                traffic_policy: spec.traffic_policy.clone(),
                subsets: spec.subsets.clone(),
                visibility,
            }));
            return;
        };
        let rule = Arc::make_mut(&mut rules.all[existing]);
        rule.names.push(meta.name.clone());
        if rule.traffic_policy.is_none() {
            rule.traffic_policy.clone_from(&spec.traffic_policy);
        }
        for subset in &spec.subsets {
            if rule.subset(&subset.name).is_some() {
                self.duplicate_subsets
                    .push(format!("{}/{} {}", meta.namespace, meta.name, subset.name));
            } else {
                rule.subsets.push(subset.clone());
            }
        }
    }

    /// The rule that a client in `client` with `labels` follows for `service_host`, declared in `service`.
    #[must_use]
    pub fn select(
        &self,
        client: &str,
        labels: &BTreeMap<String, String>,
        service_host: &str,
        service: &str,
    ) -> Option<&Arc<DestinationRule>> {
        let own = (client != self.root)
            .then(|| self.most_specific(client, client, labels, service_host))
            .flatten();
        own.or_else(|| self.most_specific(service, client, labels, service_host))
            .or_else(|| self.most_specific(&self.root, client, labels, service_host))
    }

    fn most_specific(
        &self,
        namespace: &str,
        client: &str,
        labels: &BTreeMap<String, String>,
        service_host: &str,
    ) -> Option<&Arc<DestinationRule>> {
        let matches = |rule: &&Arc<DestinationRule>| {
            let is_selected = namespace == client
                && rule
                    .selector
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value));
            (rule.selector.is_empty() || is_selected)
                && (namespace == client || rule.visibility.is_visible_to(client))
        };
        let rules = self.by_namespace.get(namespace)?;
        // With equal hosts a rule for this very workload goes first; the list is oldest first and the first best is kept.
        let is_better = |best: &Arc<DestinationRule>, rule: &Arc<DestinationRule>| {
            host::compare_specificity(&rule.host, &best.host) == Ordering::Less
                || (rule.host == best.host && best.selector.is_empty() && !rule.selector.is_empty())
        };
        let choose = |positions: &mut dyn Iterator<Item = usize>| {
            positions
                .map(|position| &rules.all[position])
                .filter(matches)
                .reduce(|old, rule| if is_better(old, rule) { rule } else { old })
        };
        // Names go before wildcards.
        choose(&mut rules.by_host.named(service_host).iter().copied())
            .or_else(|| choose(&mut rules.by_host.covering(service_host)))
    }

    /// True when some rule is only for certain workloads.
    #[must_use]
    pub fn has_selectors(&self) -> bool {
        self.has_selectors
    }

    /// True when some rule prefers endpoints by the client's labels.
    #[must_use]
    pub fn has_failover_labels(&self) -> bool {
        self.has_failover_labels
    }

    /// Every rule.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_namespace.values().flat_map(|rules| &rules.all)
    }
}

fn has_failover_labels_in(policy: &wire::TrafficPolicy) -> bool {
    let ports = policy.port_level_settings.iter();
    ports
        .map(|port| port.load_balancer.as_ref())
        .chain([policy.load_balancer.as_ref()])
        .flatten()
        .any(|balancer| {
            let zones = balancer.zone_aware_lb_setting.as_ref();
            let zones = zones.map(|setting| &setting.failover_priority);
            let localities = balancer.locality_lb_setting.as_ref();
            let localities = localities.map(|setting| &setting.failover_priority);
            zones
                .or(localities)
                .is_some_and(|labels| !labels.is_empty())
        })
}
