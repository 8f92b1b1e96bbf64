//! How exact a quota of a fixed window is that proxies fetch ahead: counted by one Mixer, and by three with one Redis of which
//! one is killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto_component::task;
use serde_json::json;
use tokio::time::Instant;

use super::programs::{
    Place, Program, Proxy, app, cluster, cluster_of, eventually, get, http_filter, http_listener,
    of_route, route,
};

const QUOTA: &str = r"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: quota, namespace: istio-system}
spec: {{handler}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: requestcount, namespace: istio-system}
spec: {compiledTemplate: quota, params: {dimensions: {}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: quota, namespace: istio-system}
spec: {actions: [{handler: quota, instances: [requestcount]}]}
";
const LIMIT: usize = 400;
const PROXIES: usize = 3;
/// Of each proxy.
const CLIENTS: usize = 4;

#[tokio::test]
async fn a_quota_is_exact_within_what_workers_have_in_flight() {
    let quota = json!({
        "name": "requestcount.instance.istio-system", "maxAmount": LIMIT, "validDuration": "600s",
        "rateLimitAlgorithm": "FIXED_WINDOW",
    });
    let handler = json!({"compiledAdapter": "memquota", "params": {"quotas": [quota]}});
    let places = [Place::new()];
    let _mixer = places[0].start(&rules(&handler)).await;
    let proxies = proxies(&places).await;
    is_exact(&proxies, Clients::start(&proxies)).await;
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn three_replicas_keep_a_quota_and_one_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _redis = redis(folder.path(), &socket).await;
    let quota = json!({
        "name": "requestcount.instance.istio-system", "maxAmount": LIMIT, "validDuration": "600s",
    });
    let server = format!("unix://{}", socket.display());
    let params = json!({"redisServerUrl": server, "quotas": [quota], "failPolicy": "FAIL_CLOSE"});
    let rules = rules(&json!({"compiledAdapter": "redisquota", "params": params}));
    let places = [Place::new(), Place::new(), Place::new()];
    let mut replicas = Vec::new();
    for place in &places {
        replicas.push(place.start(&rules).await);
    }
    let proxies = proxies(&places).await;
    let clients = Clients::start(&proxies);
    eventually("clients are at it", async || {
        (clients.passed.load(Ordering::Relaxed) >= LIMIT / 3).then_some(())
    })
    .await;
    // SIGKILL. Who had a question there asks it again elsewhere, and it is charged once.
    drop(replicas.swap_remove(1));
    is_exact(&proxies, clients).await;
    let mut failed = 0;
    for (proxy, _) in &proxies {
        failed += proxy
            .stat("http_mixer_filter.total_remote_call_retries")
            .await;
    }
    assert!(failed > 0, "nobody has met the one that was killed");
}

fn rules(handler: &serde_json::Value) -> String {
    QUOTA.replace("{{handler}}", &handler.to_string())
}

/// A Redis of our own that listens on `socket`.
async fn redis(folder: &Path, socket: &Path) -> Program {
    let mut names = ["redis-server", "valkey-server"].into_iter();
    let program = names.find(|name| {
        let found = Command::new(name).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    });
    let (folder, socket) = (folder.display().to_string(), socket.display().to_string());
    let arguments = [
        "--port",
        "0",
        "--unixsocket",
        &socket,
        "--save",
        "",
        "--dir",
        &folder,
    ];
    let mut command = Command::new(program.expect("redis-server or valkey-server"));
    command.args(arguments);
    let redis = Program::run(command, &Path::new(&folder).join("log"));
    eventually("Redis listens", async || {
        tokio::net::UnixStream::connect(&socket).await.ok()
    })
    .await;
    redis
}

/// Proxies that ask the Mixers in `places`, and where they listen.
async fn proxies(places: &[Place]) -> Vec<(Proxy, SocketAddr)> {
    let again = json!({"maxRetry": 10, "baseRetryWait": "0.010s", "maxRetryWait": "0.100s"});
    let filter = http_filter(json!({"transport": {"networkFailPolicy": again}}));
    let quota =
        json!({"quotaSpec": [{"rules": [{"quotas": [{"quota": "requestcount", "charge": 1}]}]}]});
    let routes = [route("/", Some(of_route(quota)))];
    let listeners = [http_listener("inbound", &filter, &routes)];
    let clusters = [
        cluster("app", app().await),
        cluster_of("policy", places),
        cluster_of("telemetry", places),
    ];
    let mut proxies = Vec::new();
    for _ in 0..PROXIES {
        let proxy = Proxy::start(&listeners, &clusters).await;
        let to = proxy.address("inbound").await;
        proxies.push((proxy, to));
    }
    proxies
}

/// Those who use the quota up.
struct Clients {
    /// Of each proxy; when what passed did.
    by_proxy: Vec<Vec<tokio::task::JoinHandle<Vec<Instant>>>>,
    passed: Arc<AtomicUsize>,
}

impl Clients {
    fn start(proxies: &[(Proxy, SocketAddr)]) -> Self {
        let passed: Arc<AtomicUsize> = Arc::default();
        let client = |to| task::spawn("client", use_up(to, passed.clone()));
        let of = |(_, to): &(Proxy, SocketAddr)| (0..CLIENTS).map(|_| client(*to)).collect();
        Self {
            by_proxy: proxies.iter().map(of).collect(),
            passed: passed.clone(),
        }
    }
}

/// The bound: a worker passes no more than was granted, but for what it asked for and has not heard of, which is two questions
/// of what the last second needed, or of ten.
async fn is_exact(proxies: &[(Proxy, SocketAddr)], clients: Clients) {
    let (mut passed, mut in_flight) = (0, 0);
    for of_proxy in clients.by_proxy {
        let mut times = Vec::new();
        for client in of_proxy {
            times.extend(client.await.unwrap());
        }
        passed += times.len();
        in_flight += 2 * most_in_a_second(&times).max(10);
    }
    assert!(
        (LIMIT..=LIMIT + in_flight).contains(&passed),
        "{passed} passed of {LIMIT}, with {in_flight} in flight"
    );
    // Most were never asked about.
    for (proxy, _) in proxies {
        let asked = proxy.stat("http_mixer_filter.total_remote_calls").await;
        assert!(asked < 100, "{asked} calls");
    }
}

/// Asks ten times a second until nothing passes any more; when what passed did.
async fn use_up(to: SocketAddr, count: Arc<AtomicUsize>) -> Vec<Instant> {
    // Two seconds' worth; the time itself may go by while the machine hangs.
    const ENOUGH: usize = 20;
    let mut passed = vec![];
    let mut refused = 0;
    while refused < ENOUGH {
        let answer = get(to, "/", &[]).await;
        if answer.starts_with("HTTP/1.1 200 ") {
            passed.push(Instant::now());
            count.fetch_add(1, Ordering::Relaxed);
            refused = 0;
        } else {
            refused += 1;
            let why = "Quota is exhausted for: requestcount";
            assert!(answer.contains(why), "{answer}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    passed
}

/// The most that passed in any second.
fn most_in_a_second(passed: &[Instant]) -> usize {
    let in_second_from = |first: &Instant| {
        let second = *first..*first + Duration::from_secs(1);
        passed.iter().filter(|time| second.contains(time)).count()
    };
    passed.iter().map(in_second_from).max().unwrap_or(0)
}
