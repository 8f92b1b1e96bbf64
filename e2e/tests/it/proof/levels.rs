//! Levels of policies, with our proxy and with a real Envoy at the server: what is said of a port goes before what is said of its
//! workload, that before the namespace's word, and that before the mesh's; and policies are for those whom their namespace and
//! selector mean.

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;
use serde_json::{Value, json};

use super::{ENVOY, Stage};
use crate::SETTLED;

/// The server, of whose mode nothing is said at first; the other one has a real Envoy.
const SERVER: &str = "levels";
/// Whose namespace speaks for the mesh.
const ROOT: &str = "istio-system";
const PORTS: [(Protocol, u16); 2] = [(Protocol::Http1, 8001), (Protocol::Tcp, 8004)];
/// The rule of the last two is plain text, but mutual TLS for one port.
const CLIENTS: [&str; 6] = ["outside", "plain", "auto", "mtls", "ports", "ports-envoy"];

/// Who gets through to a port.
#[derive(Clone, Copy)]
enum Mode {
    Disable,
    Permissive,
    Strict,
}

impl Mode {
    fn lets_in(self, client: &str, protocol: Protocol) -> bool {
        match (client, protocol) {
            ("auto", _) => true,
            ("mtls", _) | ("ports" | "ports-envoy", Protocol::Http1) => {
                !matches!(self, Mode::Disable)
            }
            _ => !matches!(self, Mode::Strict),
        }
    }
}

fn servers() -> [String; 2] {
    ["", ENVOY].map(|of| format!("{SERVER}{of}"))
}

/// What is said, after all that was said before, holds.
pub(super) async fn hold(stage: &Stage) {
    use Mode::{Disable, Permissive, Strict};
    for (step, said, wanted) in [
        ("nothing is said", String::new(), [Permissive, Permissive]),
        ("of the mesh", whole(ROOT, "STRICT"), [Strict, Strict]),
        (
            "of the namespace",
            whole("servers", "PERMISSIVE"),
            [Permissive, Permissive],
        ),
        (
            "of the workload",
            workloads("STRICT", &json!({})),
            [Strict, Strict],
        ),
        (
            "of its ports",
            workloads(
                "STRICT",
                &json!({"8001": {"mode": "PERMISSIVE"}, "8004": {"mode": "DISABLE"}}),
            ),
            [Permissive, Disable],
        ),
        (
            "of one of them no more",
            workloads("UNSET", &json!({"8001": {"mode": "STRICT"}})),
            [Strict, Permissive],
        ),
        (
            "of the workload no more",
            workloads("UNSET", &json!({})),
            [Permissive, Permissive],
        ),
        (
            "of the namespace no more",
            whole("servers", "UNSET"),
            [Strict, Strict],
        ),
        (
            "of the mesh no more",
            whole(ROOT, "UNSET"),
            [Permissive, Permissive],
        ),
    ] {
        if !said.is_empty() {
            stage.apply(&said).await;
        }
        let mut wrong = Vec::new();
        let settled = eventually(step, SETTLED, async || {
            wrong = mistakes(stage, wanted).await;
            wrong.is_empty()
        });
        let settled = settled.await;
        assert!(settled.is_ok(), "{step}: {}", wrong.join("\n"));
    }
    policies_are_for_those_whom_they_mean(stage).await;
    lines_are_no_requests(stage).await;
}

fn whole(namespace: &str, mode: &str) -> String {
    let meta = json!({"name": "levels-whole", "namespace": namespace});
    document(
        "PeerAuthentication",
        &meta,
        &json!({"mtls": {"mode": mode}}),
    )
}

fn workloads(mode: &str, ports: &Value) -> String {
    let one = |name: &String| {
        let meta = json!({"name": name, "namespace": "servers"});
        let mut spec = json!({"selector": {"matchLabels": {"app": name}}, "mtls": {"mode": mode}});
        if ports.as_object().is_some_and(|ports| !ports.is_empty()) {
            spec["portLevelMtls"] = ports.clone();
        }
        document("PeerAuthentication", &meta, &spec)
    };
    servers().iter().map(one).collect()
}

fn document(kind: &str, meta: &Value, spec: &Value) -> String {
    let version = "security.istio.io/v1";
    let object = json!({"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec});
    format!("---\n{object}\n")
}

async fn mistakes(stage: &Stage, wanted: [Mode; 2]) -> Vec<String> {
    let calls = servers().map(|server| {
        PORTS.map(|(protocol, port)| Call::new(protocol, &format!("{server}.servers:{port}")))
    });
    let mut wrong = Vec::new();
    for client in CLIENTS {
        let outcomes: Vec<Outcome> = stage.call(client, calls.as_flattened()).await;
        let modes = wanted.iter().cycle();
        for ((call, mode), outcome) in calls.as_flattened().iter().zip(modes).zip(outcomes) {
            if outcome.is_served() != mode.lets_in(client, call.protocol) {
                wrong.push(format!("{client} → {}: {outcome:?}", call.address));
            }
        }
    }
    wrong
}

/// Each denies a path of its own.
async fn policies_are_for_those_whom_they_mean(stage: &Stage) {
    let denial = |namespace: &str, app: Option<&str>, path: &str| {
        let name = path.trim_start_matches('/');
        // Without its port it would deny every line of TCP.
        let operation = json!({"operation": {"paths": [path], "ports": ["8001"]}});
        let mut spec = json!({"action": "DENY", "rules": [{"to": [operation]}]});
        if let Some(app) = app {
            spec["selector"] = json!({"matchLabels": {"app": app}});
        }
        let meta = json!({"name": name, "namespace": namespace});
        document("AuthorizationPolicy", &meta, &spec)
    };
    let [own, envoy] = servers();
    let other = "strict".to_owned();
    let (of_mesh, of_workload) = ("/mesh-to-", "/workload-");
    let mut text = denial(ROOT, None, "/mesh")
        + &denial("servers", None, "/namespace")
        + &denial("auto", None, "/elsewhere");
    for name in [&own, &envoy] {
        text += &denial(ROOT, Some(name), &format!("{of_mesh}{name}"));
        text += &denial("servers", Some(name), &format!("{of_workload}{name}"));
        text += &denial("auto", Some(name), &format!("/elsewhere-{name}"));
    }
    stage.apply(&text).await;
    let mut cases = Vec::new();
    for server in [&own, &envoy, &other] {
        let mut case = |path: &str, is_denied: bool| {
            let address = format!("{server}.servers:8001");
            let status = if is_denied { 403 } else { 200 };
            cases.push((Call::new(Protocol::Http1, &address).target(path), status));
        };
        case("/mesh", true);
        case("/namespace", true);
        case("/elsewhere", false);
        for name in [&own, &envoy] {
            case(&format!("{of_mesh}{name}"), name == server);
            case(&format!("{of_workload}{name}"), name == server);
            case(&format!("/elsewhere-{name}"), false);
        }
    }
    let calls: Vec<Call> = cases.iter().map(|(call, _)| call.clone()).collect();
    let mut wrong = Vec::new();
    let settled = eventually("policies are for whom they mean", SETTLED, async || {
        let outcomes = stage.call("auto", &calls).await;
        let cases = cases.iter().zip(outcomes);
        let is_wrong =
            |((_, status), outcome): &(&(Call, u16), Outcome)| outcome.status != Some(*status);
        let cases = cases.filter(is_wrong);
        wrong = cases
            .map(|((call, status), outcome)| {
                format!(
                    "{}{}: wanted {status}, got {outcome:?}",
                    call.address, call.target
                )
            })
            .collect();
        wrong.is_empty()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{}", wrong.join("\n"));
}

/// What a rule says of requests never holds for a line: one that allows lets nobody in by it, one that denies does so without it.
async fn lines_are_no_requests(stage: &Stage) {
    let line = |port: u16| {
        servers().map(|server| Call::new(Protocol::Tcp, &format!("{server}.servers:{port}")))
    };
    let calls = [line(8004), line(8005)];
    let outcomes = stage.call("auto", calls.as_flattened()).await;
    assert!(outcomes.iter().all(Outcome::is_served), "{outcomes:?}");
    let rule = |operation: Value| json!([{"to": [{"operation": operation}]}]);
    let mut text = String::new();
    for server in servers() {
        let mut policy = |name: &str, action: &str, rules: Value| {
            let meta = json!({"name": format!("{server}-{name}"), "namespace": "servers"});
            let selector = json!({"matchLabels": {"app": server}});
            let spec = json!({"selector": selector, "action": action, "rules": rules});
            text += &document("AuthorizationPolicy", &meta, &spec);
        };
        let any = rule(json!({"ports": ["8001", "8002", "8003", "8005"]}));
        policy("rest", "ALLOW", any);
        let of_requests = rule(json!({"paths": ["*"], "ports": ["8004"]}));
        policy("requests", "ALLOW", of_requests);
        let from = json!([{"from": [{"source": {"namespaces": ["auto"]}}], "to": [{"operation": {"ports": ["8004"]}}]}]);
        policy("auto", "ALLOW", from);
        let of_a_path = rule(json!({"paths": ["/nowhere"], "ports": ["8005"]}));
        policy("path", "DENY", of_a_path);
    }
    stage.apply(&text).await;
    let mut seen = Vec::new();
    let settled = eventually("rules about requests let no line in", SETTLED, async || {
        seen.clear();
        for client in ["auto", "mtls"] {
            let outcomes = stage.call(client, calls.as_flattened()).await;
            seen.extend(outcomes.iter().map(Outcome::is_served));
        }
        // To ports 8004, 8004, 8005, 8005 from each.
        seen == [true, true, false, false, false, false, false, false]
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{seen:?}");
}
