//! CUSTOM policies, whose verdict is somebody else's, and policies that only look on (AUDIT, dry-run): with our proxy and with a
//! real Envoy at the server.

use e2e::echo::check::{ASKED, CHECKED, REFUSAL};
use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;

use super::{ENVOY, Stage};
use crate::SETTLED;

/// Servers, and who is asked there; nobody answers for the last.
const PROVIDERS: [(&str, &str); 3] = [
    ("permissive", "http-checker"),
    ("strict", "grpc-checker"),
    ("disable", "nobody"),
];
const DENIED: &str = "RBAC: access denied";
/// A path, and what the policies that only look on say of it in the log.
const NOTES: [(&str, &str); 3] = [
    ("/audited", "hint=true deny=allowed allow=denied"),
    ("/dry", "hint=false deny=denied allow=denied"),
    ("/plain", "hint=false deny=allowed allow=allowed"),
];
/// Whose line it is, whether it is audited, and what those policies say of it.
const LINES: [(&str, bool, &str); 3] = [
    ("auto", true, "deny=allowed allow=denied"),
    ("ops", false, "deny=denied allow=denied"),
    ("monitoring", false, "deny=allowed allow=allowed"),
];

/// The policies of all servers.
pub(super) fn manifests() -> String {
    let servers = PROVIDERS
        .iter()
        .flat_map(|(server, provider)| ["", ENVOY].map(|of| (format!("{server}{of}"), provider)));
    servers
        .map(|(server, provider)| {
            include_str!("../../security/checks.yaml")
                .replace("{{name}}", &server)
                .replace("{{provider}}", provider)
        })
        .collect()
}

/// The verdict counts for what the policy names, comes before every other policy, and is no when nobody gives one.
pub(super) async fn hold(stage: &Stage) {
    let mut wrong = Vec::new();
    let settled = eventually("verdicts are as they must be", SETTLED, async || {
        wrong = mistakes(stage).await;
        wrong.is_empty()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{}", wrong.join("\n"));
    connections_are_asked_about(stage).await;
    let servers = ["permissive".to_owned(), format!("permissive{ENVOY}")];
    let lines = servers
        .each_ref()
        .map(|server| Call::new(Protocol::Tcp, &format!("{server}.servers:8004")));
    for (client, ..) in LINES {
        let outcomes = stage.call(client, &lines).await;
        let is_served = outcomes.iter().all(Outcome::is_served);
        assert!(is_served, "{client}: {outcomes:?}");
    }
    for server in servers {
        are_noted(stage, &server).await;
    }
}

/// What must come back: a status, and a part of the text.
type Case = (Call, u16, &'static str);

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (server, provider) in PROVIDERS {
        for of in ["", ENVOY] {
            let get = |path: &str| {
                let address = format!("{server}{of}.servers:8001");
                Call::new(Protocol::Http1, &address).target(path)
            };
            let asked = |path: &str| get(path).header(ASKED, "allow");
            cases.push((get("/plain"), 200, ""));
            if provider == "nobody" {
                cases.push((asked("/asked"), 403, ""));
                continue;
            }
            let vouched = "header x-checked-by: echo\n";
            cases.extend([
                (asked("/asked/x"), 200, vouched),
                (asked("/asked").header(CHECKED, "me"), 200, vouched),
                (get("/asked"), 403, REFUSAL),
                (get("/asked").header(CHECKED, "me"), 403, REFUSAL),
                (get("/asked/x").header(ASKED, "please"), 403, REFUSAL),
                (get("//asked"), 403, REFUSAL),
                (asked("/asked/denied"), 403, DENIED),
                (get("/asked/denied"), 403, REFUSAL),
            ]);
        }
    }
    let notes = NOTES.iter().map(|(path, _)| *path);
    cases.extend(notes.flat_map(|path| {
        ["", ENVOY].map(|of| {
            let address = format!("permissive{of}.servers:8001");
            (
                Call::new(Protocol::Http1, &address).target(path),
                200,
                "echo-served",
            )
        })
    }));
    cases
}

/// A service that speaks gRPC says whose connections may pass; of one that speaks HTTP only nobody can ask about them.
async fn connections_are_asked_about(stage: &Stage) {
    let servers: Vec<(String, bool)> = PROVIDERS
        .iter()
        .flat_map(|(server, provider)| {
            ["", ENVOY].map(|of| (format!("{server}{of}"), *provider == "grpc-checker"))
        })
        .collect();
    let calls: Vec<Call> = servers
        .iter()
        .map(|(server, _)| Call::new(Protocol::Tcp, &format!("{server}.servers:8005")))
        .collect();
    for of in ["", ENVOY] {
        for (client, is_trusted) in [("auto", true), ("mtls", false)] {
            let outcomes = stage.call(&format!("{client}{of}"), &calls).await;
            for ((server, can_ask), outcome) in servers.iter().zip(outcomes) {
                assert_eq!(
                    outcome.is_served(),
                    *can_ask && is_trusted,
                    "{client}{of} → {server}: {outcome:?}"
                );
            }
        }
    }
}

async fn mistakes(stage: &Stage) -> Vec<String> {
    let cases = cases();
    let calls: Vec<Call> = cases.iter().map(|(call, _, _)| call.clone()).collect();
    let outcomes: Vec<Outcome> = stage.call("auto", &calls).await;
    let mut wrong = Vec::new();
    for ((call, status, part), outcome) in cases.iter().zip(outcomes) {
        let is_right = outcome.status == Some(*status) && outcome.text.contains(part);
        if !is_right || outcome.text.contains("x-checked-by: me") {
            wrong.push(format!(
                "{}{} {:?}: wanted {status} with {part:?}, got {outcome:?}",
                call.address, call.target, call.headers
            ));
        }
    }
    wrong
}

/// The log of the server's proxy says what those policies would have done.
async fn are_noted(stage: &Stage, server: &str) {
    let deployment = format!("deploy/{server}");
    let logs = [
        "local",
        "logs",
        "-n",
        "servers",
        &deployment,
        "-c",
        "istio-proxy",
    ];
    let requests = NOTES.map(|(path, note)| format!("seen {path} {note}"));
    let lines = LINES.map(|(client, is_audited, note)| {
        let caller = format!("spiffe://cluster.local/ns/{client}/sa/client");
        format!("seen - hint={is_audited} deny=- allow=- line 8004 by {caller} {note}")
    });
    let mut log = String::new();
    let noted = eventually("what would have been done is logged", SETTLED, async || {
        log = stage.mesh.ctl_ok(&logs).await.unwrap().replace('"', "");
        let mut wanted = requests.iter().chain(&lines);
        wanted.all(|note| log.contains(note))
    });
    let noted = noted.await;
    let seen: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("seen"))
        .collect();
    assert!(noted.is_ok(), "{server}: {}", seen.join("\n"));
}
