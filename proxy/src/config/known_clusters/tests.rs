use super::*;
use crate::{stats::Store, transport::SecretSlots, upstream::ClusterConfig};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What happens to one of a few clusters.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A version comes that wants the endpoints of this service, or of none.
    Begin(u8, Option<u8>),
    /// What is on its way is there.
    Activate(u8),
    /// What was on its way when this one came is there, too late.
    ActivateOld(u8),
    Remove(u8),
    /// Somebody asks what has changed.
    Ask,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8, proptest::option::weighted(0.9, 0..4_u8)).prop_map(|(name, service)| Step::Begin(name, service)),
        3 => (0..6_u8).prop_map(Step::Activate),
        1 => (0..6_u8).prop_map(Step::ActivateOld),
        2 => (0..6_u8).prop_map(Step::Remove),
        2 => Just(Step::Ask),
    ]
}

fn cluster(name: u8, service: Option<u8>) -> Arc<Cluster> {
    let text = match service {
        Some(service) => format!(
            "{{name: c{name}, type: EDS, eds_cluster_config: {{service_name: s{service}, eds_config: {{{}}}}}}}",
            // Two sources.
            if service % 2 == 0 {
                "ads: {}"
            } else {
                "path_config_source: {path: /eds.yaml}"
            }
        ),
        None => format!("{{name: c{name}, type: STATIC}}"),
    };
    let wire = proto::yaml::from_str(&text).unwrap();
    let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
    Cluster::new(config, &Arc::<Store>::default().root()).unwrap()
}

/// What the counts are to say: gathered from all entries.
fn gathered(clusters: &KnownClusters) -> BTreeMap<Source, BTreeSet<Arc<str>>> {
    let mut names: BTreeMap<Source, BTreeSet<Arc<str>>> = BTreeMap::new();
    for (_, entry) in clusters.iter() {
        for cluster in entry.active.iter().chain(&entry.warming) {
            if let Some((source, service)) = service(cluster) {
                names
                    .entry(source.clone())
                    .or_default()
                    .insert(service.clone());
            }
        }
    }
    names
}

fn counted(names: &EndpointNames) -> BTreeMap<Source, BTreeSet<Arc<str>>> {
    let names = names.iter();
    names
        .map(|(source, names)| (source.clone(), names.names().cloned().collect()))
        .collect()
}

proptest! {
    #[test]
    fn names_counted_are_names_gathered(steps in proptest::collection::vec(step(), 1..120)) {
        let mut clusters = KnownClusters::default();
        let mut told = BTreeMap::new();
        let mut old: BTreeMap<u8, Arc<Cluster>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Begin(name, service) => {
                    let new = cluster(name, service);
                    let before = clusters.get(new.name()).and_then(|entry| entry.warming.clone());
                    old.extend(before.map(|before| (name, before)));
                    clusters.begin(&new, &Any::default(), "1");
                }
                Step::Activate(name) => {
                    let entry = clusters.get(&format!("c{name}"));
                    if let Some(warming) = entry.and_then(|entry| entry.warming.clone()) {
                        prop_assert!(clusters.activate(&warming));
                    }
                }
                Step::ActivateOld(name) => {
                    if let Some(old) = old.get(&name) {
                        prop_assert!(!clusters.activate(old));
                    }
                }
                Step::Remove(name) => clusters.remove(&format!("c{name}")),
                Step::Ask => {
                    if let Some(changed) = clusters.changed_services() {
                        told = counted(&changed);
                    }
                    prop_assert_eq!(&told, &gathered(&clusters));
                }
            }
            prop_assert_eq!(counted(&clusters.services.wanted), gathered(&clusters));
        }
    }
}
