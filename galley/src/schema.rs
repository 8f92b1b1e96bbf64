//! What Galley reads and what becomes of it: the mesh's kinds (each with a collection), the Kubernetes kinds that services
//! are made of, and the untyped kinds of the 1.4 Mixer.

use proto::kind::{self, Kind, Scope};
use std::{collections::HashMap, sync::LazyLock};

/// Pods, for whoever looks workloads up.
pub const PODS: &str = "k8s/core/v1/pods";

/// A kind whose objects are served as they are.
#[derive(Debug)]
pub struct Served {
    /// API group.
    pub group: &'static str,
    /// Served versions, the preferred one first.
    pub versions: &'static [&'static str],
    /// `VirtualService`.
    pub kind: &'static str,
    /// `virtualservices`.
    pub plural: &'static str,
    /// The collection its objects go to.
    pub collection: String,
    /// The message of its `spec`.
    pub message: &'static str,
    /// Namespaced or not.
    pub scope: Scope,
    /// The row in the table of kinds; none for the untyped kinds.
    pub rules: Option<&'static Kind>,
}

/// A Kubernetes kind that Galley reads but does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KubeKind {
    /// `v1`.
    Namespace,
    /// `v1`.
    Node,
    /// `v1`.
    Service,
    /// `v1`.
    Endpoints,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `v1`.
    Pod,
    /// `v1`.
    ServiceAccount,
    /// `networking.k8s.io/v1`.
    Ingress,
}

/// What an object's `apiVersion` and `kind` say.
#[derive(Clone, Copy, Debug)]
pub enum Lookup {
    /// A kind of the mesh.
    Served(&'static Served),
    /// A Kubernetes kind that services are made of.
    Kube(KubeKind),
    /// `IstioOperator`, which only installers read.
    Operator,
    /// A kind of the mesh, in a version that it does not have.
    Version(&'static Served),
    /// One of the mesh's groups, but no such kind; the kind that was perhaps meant.
    Unknown(Option<&'static str>),
    /// None of our business.
    Foreign,
}

/// Kinds of the 1.4 Mixer without a message of their own; `(kind, plural)`.
const UNTYPED: &[(&str, &str)] = &[
    ("apikey", "apikeys"),
    ("authorization", "authorizations"),
    ("bypass", "bypasses"),
    ("checknothing", "checknothings"),
    ("circonus", "circonuses"),
    ("cloudwatch", "cloudwatches"),
    ("denier", "deniers"),
    ("dogstatsd", "dogstatsds"),
    ("edge", "edges"),
    ("fluentd", "fluentds"),
    ("kubernetesenv", "kubernetesenvs"),
    ("kubernetes", "kuberneteses"),
    ("listchecker", "listcheckers"),
    ("listentry", "listentries"),
    ("logentry", "logentries"),
    ("memquota", "memquotas"),
    ("metric", "metrics"),
    ("noop", "noops"),
    ("opa", "opas"),
    ("prometheus", "prometheuses"),
    ("quota", "quotas"),
    ("rbac", "rbacs"),
    ("redisquota", "redisquotas"),
    ("reportnothing", "reportnothings"),
    ("signalfx", "signalfxs"),
    ("solarwinds", "solarwindses"),
    ("stackdriver", "stackdrivers"),
    ("statsd", "statsds"),
    ("stdio", "stdios"),
    ("tracespan", "tracespans"),
    ("zipkin", "zipkins"),
];

const STRUCT: &str = "google.protobuf.Struct";

static TABLE: LazyLock<Vec<Served>> = LazyLock::new(|| {
    let typed = kind::KINDS.iter().map(|kind| Served {
        group: kind.group,
        versions: kind.versions,
        kind: kind.kind,
        plural: kind.plural,
        collection: kind.collection.to_owned(),
        message: kind.message,
        scope: kind.scope,
        rules: Some(kind),
    });
    let untyped = UNTYPED
        .iter()
        .map(|(kind, plural)| {
            let collection = format!("istio/config/v1alpha2/legacy/{plural}");
            (*kind, *plural, collection)
        })
        .chain(
            [("adapter", "adapters"), ("template", "templates")]
                .map(|(kind, plural)| (kind, plural, format!("istio/config/v1alpha2/{plural}"))),
        )
        .filter(|(kind, ..)| {
            !kind::KINDS
                .iter()
                .any(|k| k.group == "config.istio.io" && k.kind == *kind)
        })
        .map(|(kind, plural, collection)| Served {
            group: "config.istio.io",
            versions: &["v1alpha2"],
            kind,
            plural,
            collection,
            message: STRUCT,
            scope: Scope::Namespaced,
            rules: None,
        });
    typed.chain(untyped).collect()
});

static BY_NAME: LazyLock<HashMap<(&str, &str), &'static Served>> = LazyLock::new(|| {
    TABLE
        .iter()
        .map(|served| ((served.group, served.kind), served))
        .collect()
});

/// All kinds that are served.
pub fn served() -> &'static [Served] {
    &TABLE
}

/// Every collection that may be asked for.
pub fn collections() -> Vec<String> {
    let made = [kind::SYNTHETIC_SERVICE_ENTRIES, kind::MESH_CONFIG, PODS].map(str::to_owned);
    TABLE
        .iter()
        .map(|served| served.collection.clone())
        .chain(made)
        .collect()
}

/// The collection of each type that may be asked for over xDS: `group/version/Kind`, in every version.
pub fn type_urls() -> HashMap<String, String> {
    TABLE
        .iter()
        .flat_map(|served| {
            served.versions.iter().map(|version| {
                let name = format!("{}/{version}/{}", served.group, served.kind);
                (name, served.collection.clone())
            })
        })
        .chain(collections().into_iter().map(|name| (name.clone(), name)))
        .collect()
}

/// What an object's `apiVersion` and `kind` say.
pub fn lookup(api_version: &str, kind: &str) -> Lookup {
    if let Some(kube) = kube(api_version, kind) {
        return Lookup::Kube(kube);
    }
    if (api_version, kind) == ("install.istio.io/v1alpha1", "IstioOperator") {
        return Lookup::Operator;
    }
    let Some((group, version)) = api_version.split_once('/') else {
        return Lookup::Foreign;
    };
    match BY_NAME.get(&(group, kind)) {
        Some(served) if served.versions.contains(&version) => Lookup::Served(served),
        Some(served) => Lookup::Version(served),
        None if TABLE.iter().any(|served| served.group == group) => Lookup::Unknown(nearest(
            kind,
            TABLE
                .iter()
                .filter(|served| served.group == group)
                .map(|served| served.kind),
        )),
        None => Lookup::Foreign,
    }
}

/// The candidate that is most like `name`, if any is like it.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = name.len() / 3 + 1;
    candidates
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn kube(api_version: &str, kind: &str) -> Option<KubeKind> {
    Some(match (api_version, kind) {
        ("v1", "Namespace") => KubeKind::Namespace,
        ("v1", "Node") => KubeKind::Node,
        ("v1", "Service") => KubeKind::Service,
        ("v1", "Endpoints") => KubeKind::Endpoints,
        ("v1", "Pod") => KubeKind::Pod,
        ("v1", "ServiceAccount") => KubeKind::ServiceAccount,
        ("discovery.k8s.io/v1", "EndpointSlice") => KubeKind::EndpointSlice,
        ("networking.k8s.io/v1", "Ingress") => KubeKind::Ingress,
        _ => return None,
    })
}

/// Edits (insert, delete, replace a letter) between two words, whatever their case.
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_and_mistakes_are_told_apart() {
        let is = |api_version, kind| lookup(api_version, kind);
        assert!(
            matches!(is("networking.istio.io/v1", "Gateway"), Lookup::Served(s) if s.kind == "Gateway")
        );
        assert!(matches!(
            is("networking.istio.io/v9", "Gateway"),
            Lookup::Version(_)
        ));
        assert!(matches!(
            is("networking.istio.io/v1", "VirtualServce"),
            Lookup::Unknown(Some("VirtualService"))
        ));
        assert!(
            matches!(is("config.istio.io/v1alpha2", "denier"), Lookup::Served(s) if s.rules.is_none())
        );
        assert!(matches!(
            is("v1", "Service"),
            Lookup::Kube(KubeKind::Service)
        ));
        assert!(matches!(is("apps/v1", "Deployment"), Lookup::Foreign));
    }

    #[test]
    fn every_collection_is_named_once() {
        let mut all = collections();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
