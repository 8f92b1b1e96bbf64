//! What debug pages, dumps and files give away: never a key, never a token. Nor is a proxy's admin port for anybody else.

use e2e::echo::{Call, Protocol};

use super::{ENVOY, Stage};

/// The components' ports with pages.
const PAGES: &[&str] = &[
    "istio-pilot.istio-system:15014",
    "istio-pilot.istio-system:8080",
    "istio-galley.istio-system:15014",
    "istio-citadel.istio-system:15014",
    "istio-sidecar-injector.istio-system:15014",
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
        let of = format!("/debug/{page}?proxyID=client.auto");
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
    for server in ["app".to_owned(), format!("strict{ENVOY}")] {
        let pod = stage.pod_ip("servers", &server).await;
        let admin = |path: &str| Call::new(Protocol::Raw, &format!("{pod}:15000")).target(path);
        let calls = ["/config_dump", "/certs", "/quitquitquit"].map(admin);
        for namespace in ["outside", "auto"] {
            for outcome in stage.call(namespace, &calls).await {
                let is_refused = outcome.status.is_none_or(|status| status >= 400);
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
}
