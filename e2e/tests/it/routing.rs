//! What Pilot makes of routing resources, seen by requests: one mesh, a client with our proxy and one with a real Envoy, a
//! gateway of each, and servers that say who they are. A [`row::Row`] is a configuration, the calls, and what must be seen of them.

mod entries;
mod filters;
mod gateway;
mod inside;
mod mirrors;
mod patches;
mod remote;
mod row;
mod rows;
mod rules;
mod secured;
mod telemetry;
mod warm;

use std::collections::BTreeSet;

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;

use crate::authority::Authority;
use crate::scene::{self, Scene};
use crate::{SETTLED, proof};
use row::Row;

const SETTINGS: &str = "mixer.policy.enabled=false,mixer.telemetry.enabled=false,\
    gateways.istio-egressgateway.enabled=false";
/// Namespaces of the clients; the second's proxy is an Envoy.
const CLIENTS: [&str; 2] = ["open", "open-envoy"];
/// Services of the servers of one label, a rule for each.
const BALANCED: &[(&str, &str, &str)] = &[
    (
        "hashed",
        "app: app",
        "loadBalancer: {consistentHash: {httpHeaderName: x-user}}",
    ),
    (
        "hashed-query",
        "app: app",
        "loadBalancer: {consistentHash: {httpQueryParameterName: user, maglev: {tableSize: 65537}}}",
    ),
    (
        "hashed-cookie",
        "app: app",
        "loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 60s}}}",
    ),
    (
        "hashed-source",
        "app: app",
        "loadBalancer: {consistentHash: {useSourceIp: true}}",
    ),
    (
        "pooled",
        "app: app",
        "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}",
    ),
    (
        "flaky",
        "flaky: 'yes'",
        "loadBalancer: {simple: ROUND_ROBIN}",
    ),
    (
        "ejecting",
        "flaky: 'yes'",
        "outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 300s, maxEjectionPercent: 100}",
    ),
];

#[tokio::test]
#[ignore = "needs root, iptables and Envoy: set ENVOY to its path"]
async fn routes_lead_where_they_say_with_both_data_planes() {
    // Pods have a /tmp of their own.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let envoy = proof::envoy(folder.path());
    let values = e2e::mesh::project().join("e2e/tests/routing/values.yaml");
    let arguments = ["--set", SETTINGS, "-f", values.to_str().unwrap()];
    let mut scene = Scene::up("e2e-routing", &arguments).await;
    let authority = Authority::new("routing");
    let rows = all(&authority);
    let workloads = inside::manifests(&envoy, folder.path());
    let [one, two] = set(&scene, &envoy, &authority, workloads, &rows).await;
    hold(&scene, &rows).await;
    mirrors::are_a_share(&scene).await;
    gateway::holds(&scene, &authority.root()).await;
    telemetry::is_counted(&scene).await;
    telemetry::is_told(&scene).await;
    warm::warms_up(&scene, &[&one, &two]).await;
    patches::are_started_with(&scene, &envoy).await;
    inside::is_guarded(&scene).await;
    sidecars_are_closed(&scene).await;
    assert_eq!(scene.mesh.end().await, "");
}

/// The rows; who calls by TLS trusts `authority`.
fn all(authority: &Authority) -> Vec<Row> {
    let mut rows = rows::all();
    rows.extend(entries::rows(&authority.root()));
    rows.extend(rules::rows());
    rows.extend(secured::rows());
    rows.extend(remote::rows());
    rows.extend(mirrors::rows());
    rows.extend(filters::rows());
    rows.extend(patches::rows(&authority.root()));
    rows.extend(inside::rows());
    rows
}

/// Everything in the mesh, with further `workloads`; where the two servers are.
async fn set(
    scene: &Scene,
    envoy: &str,
    authority: &Authority,
    mut workloads: String,
    rows: &[Row],
) -> [String; 2] {
    for name in ["servers", "outside"] {
        workloads += &scene::namespace(name, false);
    }
    for (namespace, proxy) in CLIENTS.into_iter().zip([None, Some(envoy)]) {
        workloads += &scene::namespace(namespace, true);
        // They are in the first of two regions.
        let annotations = secured::annotations();
        workloads += &secured::secrets(authority, namespace);
        workloads += &scene::client_with(namespace, proxy, &annotations).replace(
            "metadata: {labels: {app: client}",
            "metadata: {labels: {app: client, patched: 'yes', istio-locality: r1.z1}",
        );
    }
    workloads += &scene::client("outside", None);
    workloads += &secrets(authority);
    let (servers, configuration) = include_str!("../routing/base.yaml")
        .split_once("{{services}}")
        .unwrap();
    let services: String = BALANCED.iter().map(balanced).collect();
    scene.apply(&(workloads + servers + &services)).await;
    gateway::add(scene, envoy).await;
    // Clients, servers, and one without a sidecar.
    scene
        .are_ready(CLIENTS.len() + inside::SERVERS.len() + 5)
        .await;
    let mut text = [
        configuration,
        entries::CONFIGURATION,
        filters::CONFIGURATION,
        patches::CONFIGURATION,
        secured::CONFIGURATION,
        remote::CONFIGURATION,
        mirrors::CONFIGURATION,
    ]
    .concat();
    text += &rules::configuration();
    let ip = async |name| scene.pod_ip_of("servers", "name", name).await;
    let [one, two, broken] = [ip("one").await, ip("two").await, ip("broken").await];
    for (name, ip) in [
        ("{{one}}", &one),
        ("{{two}}", &two),
        ("{{broken}}", &broken),
    ] {
        text = text.replace(name, ip);
    }
    text += &warm::manifest(&[&one]);
    for (index, row) in rows.iter().enumerate() {
        text += &row.manifest(index);
    }
    scene.apply(&text).await;
    [one, two]
}

/// The certificates of the servers that speak TLS, the last of which is somebody else's.
fn secrets(authority: &Authority) -> String {
    let of = |name, authority: &Authority| {
        let identity = "spiffe://cluster.local/ns/servers/sa/default";
        let leaf = authority.leaf_called(identity, &secured::NAMED);
        let files = [
            ("tls.crt", leaf.chain.as_str()),
            ("tls.key", &leaf.key),
            ("ca.crt", &authority.root()),
        ];
        scene::secret("servers", name, &files)
    };
    of("tls", authority) + &of("others-tls", &Authority::new("others"))
}

/// A service and its rule.
fn balanced((name, label, policy): &(&str, &str, &str)) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: servers}}\n\
         spec: {{selector: {{{label}}}, ports: [{{name: http, port: 80, targetPort: 8001}}]}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: servers}}\n\
         spec: {{host: {name}, trafficPolicy: {{{policy}}}}}\n"
    )
}

/// Every row is seen as it says, by the client of each data plane.
async fn hold(scene: &Scene, rows: &[Row]) {
    let seen = CLIENTS.map(|client| async move {
        let mut open: Vec<(usize, &Row)> = rows.iter().enumerate().collect();
        let mut wrong = Vec::new();
        let all = eventually("every row is seen", SETTLED, async || {
            // What has been seen once is not asked again.
            wrong = mistakes(scene, client, &mut open).await;
            wrong.is_empty()
        });
        all.await.err().map(|_| wrong.join("\n"))
    });
    let wrong: Vec<String> = futures::future::join_all(seen)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Tries those that are `open`, and leaves in it those that are not as they should be.
async fn mistakes(scene: &Scene, client: &str, open: &mut Vec<(usize, &Row)>) -> Vec<String> {
    let calls: Vec<Vec<Call>> = open.iter().map(|(index, row)| row.calls(*index)).collect();
    let outcomes = scene.call(client, &calls.concat()).await;
    let mut rest = outcomes.as_slice();
    let mut wrong = Vec::new();
    let mut counts = calls.iter().map(Vec::len);
    open.retain(|(index, row)| {
        let (own, others) = rest.split_at(counts.next().unwrap());
        rest = others;
        let is_seen = row.is_seen(own);
        if !is_seen {
            wrong.push(format!("{client}: row {index}, {}: {own:#?}", row.name));
        }
        !is_seen
    });
    wrong
}

/// With a Sidecar resource clients reach what it names, and nothing else.
async fn sidecars_are_closed(scene: &Scene) {
    let unknown = || Call::new(Protocol::Http1, "app.servers:80").host("nowhere.test");
    let left_out = || Call::new(Protocol::Http1, "two-ports.servers:8080");
    let known = || Call::new(Protocol::Http1, "app.servers:80");
    // At a listener that the resource asks for.
    let bound = || Call::new(Protocol::Http1, "127.0.0.1:8080").host("two-ports.servers:8080");
    let calls = [unknown(), left_out(), known(), bound()];
    let are = |outcomes: &[Outcome], wanted: [bool; 4]| {
        outcomes.iter().map(Outcome::is_served).eq(wanted)
    };
    let becomes = async |what: &str, wanted: [bool; 4]| {
        let mut seen = Vec::new();
        let all = eventually(what, SETTLED, async || {
            seen.clear();
            for client in CLIENTS {
                seen.push(scene.call(client, &calls).await);
            }
            seen.iter().all(|outcomes| are(outcomes, wanted))
        });
        assert!(all.await.is_ok(), "{what}: {seen:#?}");
    };
    becomes("all are open", [true, true, true, false]).await;
    let sidecars =
        CLIENTS.map(|name| include_str!("../routing/sidecar.yaml").replace("{{namespace}}", name));
    scene.apply(&sidecars.concat()).await;
    becomes("only what is named is reached", [false, false, true, true]).await;
}

/// The servers that answered, by name.
fn servers<'a>(outcomes: &'a [Outcome]) -> BTreeSet<&'a str> {
    let name = |outcome: &'a Outcome| {
        outcome
            .text
            .split("server: ")
            .nth(1)?
            .split_whitespace()
            .next()
    };
    outcomes.iter().filter_map(name).collect()
}
