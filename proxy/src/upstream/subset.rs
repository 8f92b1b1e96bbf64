//! Subsets: the hosts of a cluster grouped by their metadata; a request that names the keys of a selector goes to the group
//! with its values, or where the fallback says.

use super::{
    Host, Locality, LocalityEndpoints,
    host_set::{BuildOptions, HostSets},
    load_balancer::{
        LoadBalancerContext,
        policy::{Balancing, LocalityRule},
        subset_config::{Selector, SelectorFallback, SubsetConfig, SubsetFallback},
    },
    stats::ClusterStats,
};
use prost_types::{Struct, Value, value::Kind};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The values of a selector's keys, in the keys' order.
type Values = Vec<Value>;

/// Every group of a cluster.
pub(super) struct Subsets {
    selectors: Vec<Groups>,
    default: Option<HostSets>,
    balancing: Balancing,
    fallback: SubsetFallback,
    panics_to_any: bool,
}

/// The groups of one selector.
struct Groups {
    selector: Selector,
    /// By the values' text, which tells them apart.
    groups: HashMap<String, HostSets>,
}

impl Subsets {
    /// Groups the hosts of `localities`.
    pub(super) fn build(
        localities: &[LocalityEndpoints],
        config: &SubsetConfig,
        options: BuildOptions<'_>,
    ) -> Self {
        // Inside a subset there are no subsets, and locality weights only when asked for.
        let mut balancing = options.balancing.clone();
        balancing.subsets = None;
        if !config.is_locality_aware && balancing.locality == LocalityRule::Weighted {
            balancing.locality = LocalityRule::ZoneAware {
                enabled: 0.0,
                minimum: u64::MAX,
            };
        }
        let build = |members: Vec<LocalityEndpoints>| {
            let scale = config
                .scales_localities
                .then(|| scale(localities, &members));
            let options = BuildOptions {
                balancing: &balancing,
                scale: scale.as_ref(),
                ..options
            };
            HostSets::without_subsets(members, options)
        };
        let selectors = config
            .selectors
            .iter()
            .map(|selector| Groups {
                groups: group(localities, selector, config.is_list_any)
                    .into_iter()
                    .map(|(values, mut members)| {
                        if selector.is_single {
                            keep_first(&mut members);
                        }
                        (values, build(members))
                    })
                    .collect(),
                selector: selector.clone(),
            })
            .collect();
        let default = (config.fallback == SubsetFallback::Default
            || config
                .selectors
                .iter()
                .any(|one| one.fallback == SelectorFallback::Policy(SubsetFallback::Default)))
        .then(|| build(filter(localities, &config.default_subset)));
        Self {
            selectors,
            default,
            fallback: config.fallback,
            panics_to_any: config.panics_to_any,
            balancing,
        }
    }

    /// How many groups there are.
    pub(super) fn count(&self) -> usize {
        self.selectors.iter().map(|one| one.groups.len()).sum()
    }

    /// Chooses a host for a request. `any` are all hosts.
    pub(super) fn choose(
        &self,
        any: &HostSets,
        context: &LoadBalancerContext<'_>,
        random: u64,
        attempt: u32,
        stats: &ClusterStats,
    ) -> Option<Arc<Host>> {
        let pick = |sets: &HostSets| sets.choose(context, &self.balancing, random, attempt, stats);
        let mut fallback = self.fallback;
        if let Some(criteria) = context.metadata_match
            && !criteria.fields.is_empty()
        {
            match self.find(criteria) {
                Found::Group(sets) => {
                    stats.lb_subsets_selected.inc();
                    return pick(sets);
                }
                Found::Fallback(policy) => fallback = policy,
                Found::Nothing => {}
            }
        }
        let chosen = match fallback {
            SubsetFallback::None => return None,
            SubsetFallback::Any => pick(any),
            SubsetFallback::Default => self.default.as_ref().and_then(pick),
        };
        if chosen.is_some() {
            stats.lb_subsets_fallback.inc();
        } else if self.panics_to_any {
            stats.lb_subsets_fallback_panic.inc();
            return pick(any);
        }
        chosen
    }

    fn find(&self, criteria: &Struct) -> Found<'_> {
        let mut keys: BTreeSet<&str> = criteria.fields.keys().map(String::as_str).collect();
        // Each round has fewer keys: it ends.
        loop {
            let fitting = self.selectors.iter().find(|one| {
                one.selector.keys.len() == keys.len()
                    && one
                        .selector
                        .keys
                        .iter()
                        .all(|key| keys.contains(key.as_str()))
            });
            let Some(groups) = fitting else {
                return Found::Nothing;
            };
            let values: Option<Values> = groups
                .selector
                .keys
                .iter()
                .map(|key| criteria.fields.get(key).cloned())
                .collect();
            let group = values.and_then(|values| groups.groups.get(&text(&values)));
            if let Some(sets) = group.filter(|sets| !sets.is_empty()) {
                return Found::Group(sets);
            }
            match &groups.selector.fallback {
                SelectorFallback::Inherit => return Found::Nothing,
                SelectorFallback::Policy(policy) => return Found::Fallback(*policy),
                SelectorFallback::Keys(chosen) => {
                    keys.retain(|key| chosen.contains(*key));
                }
            }
        }
    }
}

enum Found<'a> {
    Group(&'a HostSets),
    Fallback(SubsetFallback),
    Nothing,
}

/// The hosts of each combination of values of the selector's keys.
fn group(
    localities: &[LocalityEndpoints],
    selector: &Selector,
    is_list_any: bool,
) -> BTreeMap<String, Vec<LocalityEndpoints>> {
    let mut groups: BTreeMap<String, Vec<LocalityEndpoints>> = BTreeMap::new();
    for one in localities {
        for host in &one.hosts {
            for values in combinations(host, selector, is_list_any) {
                let members = groups.entry(text(&values)).or_default();
                let is_same = |last: &LocalityEndpoints| {
                    Arc::ptr_eq(&last.locality, &one.locality) && last.priority == one.priority
                };
                match members.last_mut().filter(|last| is_same(last)) {
                    Some(last) => last.hosts.push(host.clone()),
                    None => members.push(LocalityEndpoints {
                        hosts: vec![host.clone()],
                        locality: one.locality.clone(),
                        ..*one
                    }),
                }
            }
        }
    }
    groups
}

/// What a host's metadata says about the keys: one combination, or several where lists stand for their values.
fn combinations(host: &Host, selector: &Selector, is_list_any: bool) -> Vec<Values> {
    let Some(fields) = host.metadata_of("envoy.lb") else {
        return Vec::new();
    };
    let mut found: Vec<Values> = vec![Vec::new()];
    for key in &selector.keys {
        let Some(value) = fields.fields.get(key) else {
            return Vec::new();
        };
        let values = match &value.kind {
            Some(Kind::ListValue(list)) if is_list_any => list.values.clone(),
            _ => vec![value.clone()],
        };
        found = found
            .into_iter()
            .flat_map(|before| {
                values.iter().map(move |value| {
                    let mut longer = before.clone();
                    longer.push(value.clone());
                    longer
                })
            })
            .collect();
    }
    found
}

/// A text that differs where the values do.
fn text(values: &[Value]) -> String {
    use prost::Message as _;
    let mut text = String::new();
    for value in values {
        if let Some(Kind::StringValue(value)) = &value.kind {
            text.push('"');
            text.push_str(value);
        } else {
            text.push('#');
            for byte in value.encode_to_vec() {
                text.push(char::from(byte));
            }
        }
        text.push('\0');
    }
    text
}

fn filter(localities: &[LocalityEndpoints], criteria: &Struct) -> Vec<LocalityEndpoints> {
    let fits =
        |host: &&Arc<Host>| super::cluster_config::has_all(host.metadata_of("envoy.lb"), criteria);
    localities
        .iter()
        .map(|one| LocalityEndpoints {
            hosts: one.hosts.iter().filter(fits).cloned().collect(),
            locality: one.locality.clone(),
            ..*one
        })
        .filter(|one| !one.hosts.is_empty())
        .collect()
}

fn keep_first(members: &mut Vec<LocalityEndpoints>) {
    members.truncate(1);
    for one in members {
        one.hosts.truncate(1);
    }
}

/// The share of each locality's hosts that a subset has.
#[expect(clippy::cast_precision_loss, reason = "host counts are small")]
fn scale(
    all: &[LocalityEndpoints],
    members: &[LocalityEndpoints],
) -> BTreeMap<(u32, Arc<Locality>), f64> {
    let count = |localities: &[LocalityEndpoints]| {
        let mut counts: BTreeMap<(u32, Arc<Locality>), usize> = BTreeMap::new();
        for one in localities {
            *counts
                .entry((one.priority, one.locality.clone()))
                .or_default() += one.hosts.len();
        }
        counts
    };
    let all = count(all);
    count(members)
        .into_iter()
        .map(|(key, count)| {
            let whole = all.get(&key).copied().unwrap_or(count).max(1);
            (key, count as f64 / whole as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Cluster, ClusterConfig};
    use crate::{stats::Store, transport::SecretSlots};

    fn cluster(subsets: &str) -> Arc<Cluster> {
        let host = |port: u16, fields: &str| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}, metadata: {{filter_metadata: {{envoy.lb: {fields}}}}}}}"
            )
        };
        let text = format!(
            "{{name: a, lb_subset_config: {subsets}, load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{}, {}, {}]}}]}}}}",
            host(1, "{v: one, stage: prod}"),
            host(2, "{v: two, stage: prod}"),
            host(3, "{v: [three, four], stage: test}"),
        );
        let wire = proto::yaml::from_str(&text).unwrap();
        let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
        Cluster::new(config, &Arc::new(Store::default()).root()).unwrap()
    }

    /// The ports that requests with this metadata go to.
    fn ports(cluster: &Cluster, criteria: &[(&str, &str)]) -> BTreeSet<u16> {
        let criteria = Struct {
            fields: criteria
                .iter()
                .map(|(key, value)| {
                    let kind = Some(Kind::StringValue((*value).to_owned()));
                    ((*key).to_owned(), Value { kind })
                })
                .collect(),
        };
        (0..50)
            .filter_map(|random| {
                let context = LoadBalancerContext {
                    random,
                    metadata_match: Some(&criteria),
                    ..LoadBalancerContext::default()
                };
                let host = cluster.choose_host(&context).ok()?;
                Some(host.socket_address()?.port())
            })
            .collect()
    }

    #[test]
    fn requests_go_to_the_subset_of_their_metadata_or_where_the_fallback_says() {
        let selectors = "subset_selectors: [{keys: [v]}, {keys: [stage, v]}]";
        let none = cluster(&format!("{{{selectors}}}"));
        assert_eq!(ports(&none, &[("v", "two")]), [2].into());
        assert_eq!(ports(&none, &[("v", "two"), ("stage", "prod")]), [2].into());
        assert!(ports(&none, &[("v", "two"), ("stage", "test")]).is_empty());
        // No selector has exactly these keys.
        assert!(ports(&none, &[("stage", "prod")]).is_empty());
        assert!(ports(&none, &[]).is_empty());
        assert_eq!(none.stats.lb_subsets_active.value(), 3 + 3);
        let any = cluster(&format!("{{fallback_policy: ANY_ENDPOINT, {selectors}}}"));
        assert_eq!(ports(&any, &[("v", "nine")]), [1, 2, 3].into());
        let default = cluster(&format!(
            "{{fallback_policy: DEFAULT_SUBSET, default_subset: {{stage: prod}}, {selectors}}}"
        ));
        assert_eq!(ports(&default, &[("v", "nine")]), [1, 2].into());
        assert_eq!(ports(&default, &[]), [1, 2].into());
    }

    #[test]
    fn selectors_have_fallbacks_of_their_own() {
        let cluster = cluster(
            "{fallback_policy: ANY_ENDPOINT, subset_selectors: [{keys: [stage]}, \
             {keys: [stage, v], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [stage]}, \
             {keys: [v], fallback_policy: NO_FALLBACK}]}",
        );
        assert_eq!(
            ports(&cluster, &[("v", "nine"), ("stage", "prod")]),
            [1, 2].into()
        );
        assert!(ports(&cluster, &[("v", "nine")]).is_empty());
        assert_eq!(ports(&cluster, &[("stage", "nine")]), [1, 2, 3].into());
    }

    #[test]
    fn a_list_stands_for_its_values_where_that_is_asked_for() {
        let listed = cluster("{list_as_any: true, subset_selectors: [{keys: [v]}]}");
        assert_eq!(ports(&listed, &[("v", "three")]), [3].into());
        assert_eq!(ports(&listed, &[("v", "four")]), [3].into());
        let single = cluster("{subset_selectors: [{keys: [stage], single_host_per_subset: true}]}");
        assert_eq!(ports(&single, &[("stage", "prod")]), [1].into());
    }
}
