//! What debug pages, dumps and files give away: never a key, never a token. Nor is a proxy's admin port for anybody else.

use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;

use super::{ENVOY, Stage};
use crate::SETTLED;

/// The components' ports with pages.
const PAGES: &[&str] = &[
    "istio-pilot.istio-system:15014",
    "istio-pilot.istio-system:8080",
    "istio-galley.istio-system:15014",
    "istio-citadel.istio-system:15014",
    "istio-sidecar-injector.istio-system:15014",
];
/// Pages with the mesh's configuration, which a component shows in its own pod only.
const PRIVATE: &[(&str, &str)] = &[
    ("istio-pilot", "/debug/configz"),
    ("istio-pilot", "/debug/mesh"),
    ("istio-pilot", "/debug/config_dump?proxyID=POD.auto"),
    (
        "istio-galley",
        "/debug/snapshot?collection=istio/networking/v1alpha3/envoyfilters",
    ),
];
const DUMPS: &[&str] = &[
    "/config_dump?include_eds",
    "/certs",
    "/server_info",
    "/clusters?format=json",
];

/// Nothing secret is on any page, and files with secrets are their owners' only.
pub(super) async fn keep_secrets(stage: &Stage) {
    let secrets = secrets(stage);
    of_components(stage, &secrets).await;
    of_components_alone(stage, &secrets).await;
    of_proxies(stage, &secrets).await;
    files_are_their_owners_only(stage).await;
}

/// How a key or a token begins, as text and in base64, and a key that is really in use here.
fn secrets(stage: &Stage) -> Vec<String> {
    use base64::Engine as _;
    let base64 = &base64::engine::general_purpose::STANDARD;
    let key = stage.authority.key();
    let line = key.lines().nth(1).unwrap().to_owned();
    // A JSON object that begins with "alg" or "typ": a token's header.
    let tokens = ["eyJhbGciOi", "eyJ0eXAiOi"].map(str::to_owned);
    let mut secrets = vec![
        "PRIVATE KEY".to_owned(),
        base64.encode("-----BEGIN PRIVATE KEY")[..28].to_owned(),
        base64.encode("-----BEGIN EC PRIVATE KEY")[..32].to_owned(),
        base64.encode(&key[..48]),
        line,
    ];
    secrets.extend(tokens);
    secrets
}

fn check(secrets: &[String], place: &str, text: &str) {
    for secret in secrets {
        let Some(at) = text.find(secret.as_str()) else {
            continue;
        };
        let around: String = text[..at].chars().rev().take(80).collect();
        let around: String = around.chars().rev().collect();
        panic!("{place}: {secret} after …{around}");
    }
}

async fn of_components(stage: &Stage, secrets: &[String]) {
    let get = |address: &str, path: &str| Call::new(Protocol::Http1, address).target(path);
    let listings: Vec<Call> = PAGES.iter().map(|page| get(page, "/debug/")).collect();
    let mut pages = Vec::new();
    for (address, outcome) in PAGES.iter().zip(stage.call("outside", &listings).await) {
        assert_eq!(outcome.status, Some(200), "{address}: {outcome:?}");
        let listed = outcome.text.split("href=\"").skip(1);
        let paths: Vec<&str> = listed.filter_map(|rest| rest.split('"').next()).collect();
        assert!(paths.contains(&"/debug/tasks"), "{address}: {paths:?}");
        pages.extend(paths.iter().map(|path| get(address, path)));
    }
    // Pages about one proxy.
    for page in ["config_dump", "authorizationz", "edsz", "ndsz"] {
        let of = format!("/debug/{page}?proxyID={}.auto", pod(stage).await);
        pages.push(get(PAGES[0], &of));
    }
    let outcomes = stage.call("outside", &pages).await;
    for (call, outcome) in pages.iter().zip(&outcomes) {
        let place = format!("{}{}", call.address, call.target);
        check(secrets, &place, &outcome.text);
    }
    let read = outcomes
        .iter()
        .filter(|outcome| outcome.status == Some(200));
    assert!(read.count() > 20, "there are pages: {outcomes:?}");
}

/// The name of the client's pod in namespace `auto`.
async fn pod(stage: &Stage) -> String {
    let name = stage.in_proxy("auto", &["printenv", "POD_NAME"]).await;
    name.trim().to_owned()
}

/// What others are refused a pod may see itself, but not what is secret in it: a key in somebody's configuration.
async fn of_components_alone(stage: &Stage, secrets: &[String]) {
    let key = serde_json::to_string(stage.authority.key()).unwrap();
    stage
        .apply(&include_str!("../../security/secret.yaml").replace("{{key}}", &key))
        .await;
    let calls: Vec<Call> = PRIVATE
        .iter()
        .map(|(component, path)| {
            Call::new(Protocol::Http1, &format!("{component}.istio-system:15014")).target(path)
        })
        .collect();
    for namespace in ["outside", "auto"] {
        for (call, outcome) in calls.iter().zip(stage.call(namespace, &calls).await) {
            let (at, path) = (&call.address, &call.target);
            assert_eq!(outcome.status, Some(403), "{at}{path}: {outcome:?}");
        }
    }
    let pod = pod(stage).await;
    for (component, path) in PRIVATE {
        let path = path.replace("POD", &pod);
        let url = format!("http://127.0.0.1:15014{path}");
        let get = ["curl", "-sS", "--max-time", "30", &url];
        let mut text = String::new();
        // Where there is something to blot out: as soon as the component knows it.
        let is_told = path.contains("configz") || path.contains("snapshot");
        let shown = eventually(
            "the page has what is to be blotted out",
            SETTLED,
            async || {
                text = stage
                    .in_control_plane(&format!("deploy/{component}"), &get)
                    .await;
                // JSON, not a word about why there is none.
                text.starts_with(['{', '[', '"']) && (!is_told || text.contains("[redacted]"))
            },
        );
        assert!(shown.await.is_ok(), "{component}{path}: {text}");
        check(secrets, &format!("{component}{path}"), &text);
    }
}

async fn of_proxies(stage: &Stage, secrets: &[String]) {
    // `[redacted]`, as JSON has bytes.
    let redacted = "W3JlZGFjdGVkXQ==";
    for namespace in ["auto", "auto-envoy"] {
        for path in DUMPS {
            let request = ["pilot-agent", "request", "GET", path];
            let dump = stage.in_proxy(namespace, &request).await;
            check(secrets, &format!("{namespace} {path}"), &dump);
            if *path == DUMPS[0] {
                let is_there = dump.contains("SecretsConfigDump") && dump.contains("private_key");
                assert!(is_there && dump.contains(redacted), "{namespace}: {dump}");
            }
        }
    }
    // Of these nothing is refused by policies, whatever the port.
    for server in ["disable".to_owned(), format!("disable{ENVOY}")] {
        let pod = stage.pod_ip("servers", &server).await;
        let at =
            |port: u16, path: &str| Call::new(Protocol::Raw, &format!("{pod}:{port}")).target(path);
        let admin = |path: &str| at(15000, path);
        let metrics = at(15090, "/stats/prometheus");
        let paths = [
            "/config_dump",
            "/certs",
            "/server_info",
            "/ready",
            "/quitquitquit",
        ];
        let calls: Vec<Call> = paths.map(admin).into_iter().chain([metrics]).collect();
        for namespace in ["outside", "auto"] {
            let mut outcomes = stage.call(namespace, &calls).await;
            let metrics = outcomes.pop().unwrap();
            assert_eq!(metrics.status, Some(200), "{server}: {metrics:?}");
            for outcome in outcomes {
                let is_refused = outcome.status.is_none_or(|status| status >= 500);
                assert!(is_refused, "{server} from {namespace}: {outcome:?}");
            }
        }
    }
}

/// Keys on disk, and the sockets that give them out.
async fn files_are_their_owners_only(stage: &Stage) {
    // The root's key and the ledger are in there.
    let folder = ["stat", "-c", "%a", "/var/lib/citadel"];
    let mode = stage
        .in_control_plane("deploy/istio-citadel", &folder)
        .await;
    assert_eq!(mode.trim(), "700");
    let socket = ["stat", "-c", "%a %F", "/etc/istio/proxy/SDS"];
    let shown = stage.in_proxy("auto", &socket).await;
    assert_eq!(shown.trim(), "600 socket");
    // A workload's key is in its proxies' memory only.
    let look = "grep -rls 'PRIVATE KEY' /etc/istio /var/run/secrets; echo looked";
    let found = stage.in_proxy("auto", &["sh", "-c", look]).await;
    assert_eq!(found.trim(), "looked");
}
