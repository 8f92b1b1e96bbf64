//! What is kept over push contexts: after any change proxies are sent what a Pilot would make that has kept nothing.

use std::time::Duration;

use pilot::model::Proxy;
use pilot::networking::View;
use pilot::xds::discovery::Current;
use pilot::xds::generate::{Generated, generate};
use pilot::xds::name::Name;
use pilot::xds::{Cache, ResourceType};
use proto::envoy::config::core::v3::Node;

use super::mesh::Pilot;

const PATIENCE: Duration = Duration::from_secs(30);

fn entry(name: &str, protocol: &str, address: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         hosts: [{name}.default.svc.cluster.local]\n  addresses: [10.96.0.{}]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 9080, name: main, protocol: {protocol}}}]\n  endpoints: [{{address: {address}, labels: {{version: v1}}}}]\n",
        name.len()
    )
}

fn route(name: &str, kind: &str, timeout: &str) -> String {
    let (options, to) = match kind {
        "http" => (format!("timeout: {timeout}, "), name),
        _ => (String::new(), "bb"),
    };
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         hosts: [{name}]\n  {kind}: [{{{options}route: [{{destination: {{host: {to}}}}}]}}]\n"
    )
}

fn rule(name: &str, connections: u32) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         host: {name}\n  trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {connections}}}}}}}\n  \
         subsets: [{{name: v1, labels: {{version: v1}}}}]\n"
    )
}

fn sidecar(hosts: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: Sidecar\nmetadata: {{name: default, namespace: default}}\nspec:\n  \
         egress: [{{hosts: [{hosts}]}}]\n"
    )
}

fn proxy() -> Proxy {
    let node = Node {
        id: "sidecar~10.1.0.1~web.default~default.svc.cluster.local".to_owned(),
        ..Node::default()
    };
    Proxy::try_from(&node).unwrap()
}

/// Everything that the proxy is sent, in order.
fn made(current: &Current, cache: &Cache, proxy: &Proxy) -> Vec<(ResourceType, Generated)> {
    let view = View::new(proxy, &current.push);
    let mut all = Vec::new();
    let clusters = generate(&view, ResourceType::Cluster, [].iter(), cache);
    let clusters: Vec<Name> = clusters.into_iter().map(|made| made.name).collect();
    let routes: Vec<Name> = ["9080", "80", "http_proxy"].map(Name::from).to_vec();
    for kind in ResourceType::ALL {
        let names = match kind {
            ResourceType::Endpoint => clusters.iter(),
            ResourceType::Route => routes.iter(),
            _ => [].iter(),
        };
        let resources = generate(&view, kind, names, cache);
        all.extend(resources.into_iter().map(|made| (kind, made)));
    }
    all
}

/// Waits until what is made differs from `before`, and checks it.
async fn settle(
    pilot: &Pilot,
    before: &[(ResourceType, u64)],
    step: &str,
) -> Vec<(ResourceType, u64)> {
    let proxy = proxy();
    let changed = async {
        loop {
            let current = pilot.discovery.current();
            let kept = made(&current, &current.cache, &proxy);
            let anew = made(&current, &Cache::default(), &proxy);
            assert_eq!(kept.len(), anew.len(), "{step}");
            for ((kind, kept), (_, anew)) in kept.iter().zip(&anew) {
                assert_eq!(
                    (&kept.name, kept.any()),
                    (&anew.name, anew.any()),
                    "{step}: {kind:?}"
                );
            }
            let hashes: Vec<_> = kept.iter().map(|(kind, made)| (*kind, made.hash)).collect();
            if hashes != before {
                return hashes;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, changed).await.expect(step)
}

#[tokio::test]
async fn what_is_kept_is_what_would_be_made_anew() {
    let base = |address: &str| {
        entry("a", "HTTP", address)
            + &entry("bb", "HTTP", "10.1.0.3")
            + &entry("ccc", "TCP", "10.1.0.4")
    };
    let routes = |timeout: &str| route("a", "http", timeout) + &route("bb", "http", "9s");
    let one = "10.1.0.2";
    let steps = [
        ("services", base(one)),
        ("routes", base(one) + &routes("1s")),
        ("another timeout", base(one) + &routes("2s")),
        ("an endpoint", base("10.1.0.9") + &routes("2s")),
        (
            "a timeout after an endpoint",
            base("10.1.0.9") + &routes("3s"),
        ),
        ("the proxy's own endpoint", base("10.1.0.1") + &routes("3s")),
        ("a rule", base(one) + &routes("3s") + &rule("a", 7)),
        ("another rule", base(one) + &routes("3s") + &rule("a", 8)),
        (
            "a route of connections",
            base(one) + &routes("3s") + &rule("a", 8) + &route("ccc", "tcp", ""),
        ),
        (
            "no route of connections",
            base(one) + &routes("3s") + &rule("a", 8),
        ),
        (
            "another service",
            base(one) + &entry("dddd", "HTTP", "10.1.0.5") + &routes("3s"),
        ),
        (
            "a host without a service",
            base(one) + &routes("3s") + &route("elsewhere.test", "http", "1s"),
        ),
        (
            "a wildcard",
            base(one)
                + &routes("3s")
                + &route("any", "http", "4s")
                    .replace("hosts: [any]", "hosts: [\"*.default.svc.cluster.local\"]"),
        ),
        (
            "a sidecar",
            base(one) + &routes("3s") + &sidecar("./bb.default.svc.cluster.local"),
        ),
        (
            "a timeout through a sidecar",
            base(one)
                + &routes("3s").replace("9s", "8s")
                + &sidecar("./bb.default.svc.cluster.local"),
        ),
        (
            "another sidecar",
            base(one) + &routes("3s") + &sidecar("./a.default.svc.cluster.local"),
        ),
        ("no sidecar", base(one) + &routes("4s")),
        ("nothing but services", base(one)),
    ];
    let pilot = Pilot::start_empty().await;
    let mut last = Vec::new();
    for (step, config) in steps {
        pilot.apply(&config).await;
        last = settle(&pilot, &last, step).await;
    }
}
