//! Who may ask workload `app` for what, and what forged headers are good for: nothing.

use e2e::echo::{Call, Outcome, Protocol};
use serde_json::json;

use super::Stage;
use crate::SETTLED;

const APP: &str = "app.servers:8001";
/// An identity that callers would like to have.
const FORGED: &str = "spiffe://cluster.local/ns/ops/sa/client";

/// Who calls, how, and the status that must come back (0: no answer of the server, whatever else).
type Case = (&'static str, Call, u16);

/// Every case is as it must be, as soon as every proxy knows the policies.
pub(super) async fn hold(stage: &Stage) {
    let mut cases = identities();
    cases.extend(tokens(stage));
    cases.extend(confused_keys(stage));
    cases.extend(replayed(stage));
    let pod = stage.pod_ip("servers", "app").await;
    cases.extend(addresses(stage, &pod).await);
    let start = std::time::Instant::now();
    let mut wrong = mistakes(stage, &cases).await;
    while !wrong.is_empty() && start.elapsed() < SETTLED {
        wrong = mistakes(stage, &cases).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    forged_headers_are_not_believed(stage, &pod).await;
    forwarded_addresses_count_by_who_forwards(stage).await;
    claims_are_the_tokens(stage).await;
}

fn get(path: &str) -> Call {
    Call::new(Protocol::Http1, APP).target(path)
}

fn identities() -> Vec<Case> {
    let lines = || Call::new(Protocol::Tcp, "app.servers:8004");
    vec![
        ("auto", get("/info"), 200),
        ("auto", get("/info/deep"), 200),
        ("auto", get("/moved"), 200),
        ("mtls", get("/moved"), 403),
        ("mtls", get("/info"), 403),
        ("plain", get("/info"), 403),
        ("outside", get("/info"), 403),
        ("monitoring", get("/metrics"), 200),
        ("auto", get("/metrics"), 403),
        ("outside", get("/metrics"), 403),
        ("auto", get("/open"), 200),
        ("outside", get("/open/x"), 200),
        ("auto", get("/nowhere"), 403),
        ("ops", get("/admin/x"), 200),
        ("auto", get("/admin/x"), 403),
        ("mtls", get("/admin/x"), 403),
        ("outside", get("/admin/x"), 403),
        ("auto", lines(), 200),
        ("mtls", lines(), 0),
        ("outside", lines(), 0),
        ("auto", Call::new(Protocol::Http2, "app.servers:8002"), 200),
        ("auto", Call::new(Protocol::Grpc, "app.servers:8003"), 200),
    ]
}

fn tokens(stage: &Stage) -> Vec<Case> {
    let with =
        |path: &str, token: &str| get(path).header("authorization", &format!("Bearer {token}"));
    let none = json!({});
    let inline = stage.inline.token("alice", &none);
    let fetched = stage.fetched.token("bob", &none);
    let admin = stage.inline.token("alice", &json!({"group": "admins"}));
    let impostor = crate::authority::Tokens::new("https://inline.test").token("alice", &none);
    let expired = stage.inline.token("alice", &json!({"exp": 1000}));
    let unsigned =
        "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2lubGluZS50ZXN0Iiwic3ViIjoiYWxpY2UifQ.";
    vec![
        ("auto", get("/api/x"), 403),
        ("auto", with("/api/x", &inline), 200),
        ("outside", with("/api/x", &inline), 200),
        ("auto", with("/api/x", &fetched), 200),
        ("auto", with("/api/x", &impostor), 401),
        ("auto", with("/api/x", &expired), 401),
        ("auto", with("/api/x", unsigned), 401),
        ("auto", with("/open", &expired), 401),
        ("auto", with("/alice", &admin), 200),
        ("auto", with("/alice", &inline), 403),
        ("auto", with("/alice", &fetched), 403),
    ]
}

/// The public key for an HMAC's secret, in whatever form it might be taken.
fn confused_keys(stage: &Stage) -> Vec<Case> {
    use base64::Engine as _;
    let (rsa, pem) = crate::authority::Tokens::rsa("https://rsa.test");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body);
    let field = |tokens: &crate::authority::Tokens, name: &str| {
        let jwks: serde_json::Value = serde_json::from_str(&tokens.jwks()).unwrap();
        jwks["keys"][0][name].as_str().unwrap().to_owned()
    };
    let modulus = field(&rsa, "n");
    let raw = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&modulus);
    let secrets = [
        pem.as_bytes().to_vec(),
        pem.trim_end().as_bytes().to_vec(),
        der.unwrap(),
        modulus.into_bytes(),
        raw.unwrap(),
        rsa.jwks().into_bytes(),
        Vec::new(),
    ];
    let of_rsa = secrets.map(|secret| rsa.confused("mallory", &secret));
    let of_ec = ["x", "y"].map(|name| {
        let secret = field(&stage.inline, name);
        stage.inline.confused("alice", secret.as_bytes())
    });
    let tokens = of_rsa.into_iter().chain(of_ec);
    tokens
        .map(|token| {
            let call = get("/api/x").header("authorization", &format!("Bearer {token}"));
            ("auto", call, 401)
        })
        .collect()
}

/// A token for another cluster is not for this one; a claim's header is what the token says, or is not there.
fn replayed(stage: &Stage) -> Vec<Case> {
    let of = |audience: &str| {
        let claims = json!({"aud": audience, "group": "guests"});
        stage.shared.token("carol", &claims)
    };
    let (own, others) = (of("shop"), of("warehouse"));
    let without = stage.shared.token("carol", &json!({}));
    let header = |token: &str| get("/api/x").header("x-token", &format!("Token {token}"));
    vec![
        ("auto", header(&own), 200),
        ("auto", get(&format!("/api/x?token={own}")), 200),
        (
            "auto",
            get("/api/x").header("cookie", &format!("token={own}")),
            200,
        ),
        ("auto", header(&others), 403),
        ("auto", header(&without), 403),
        ("auto", get(&format!("/open?token={others}")), 403),
        (
            "auto",
            get("/open").header("cookie", &format!("token={others}")),
            403,
        ),
        // Only where the rule looks for it: of those who look there nobody knows the issuer.
        (
            "auto",
            get("/api/x").header("authorization", &format!("Bearer {own}")),
            401,
        ),
    ]
}

/// The pod's own address instead of the service's leads to the same sidecar.
async fn addresses(stage: &Stage, app: &str) -> Vec<Case> {
    let strict = stage.pod_ip("servers", "strict").await;
    let at = |address: &str, path: &str| {
        Call::new(Protocol::Http1, &format!("{address}:8001")).target(path)
    };
    let behind = |address: &str, port: u16| {
        let mut call = Call::new(Protocol::Http1, &format!("{address}:{port}")).target("/admin/x");
        APP.clone_into(&mut call.host);
        call
    };
    vec![
        ("outside", at(app, "/open"), 200),
        ("outside", at(app, "/info"), 403),
        ("outside", at(app, "/admin/x"), 403),
        ("auto", at(app, "/admin/x"), 403),
        ("outside", at(&strict, "/"), 0),
        ("plain", at(&strict, "/"), 0),
        (
            "outside",
            Call::new(Protocol::Tcp, &format!("{strict}:8004")),
            0,
        ),
        // The sidecar's own doors lead nowhere.
        ("outside", behind(app, 15006), 0),
        ("outside", behind(app, 15001), 0),
        ("outside", behind(&strict, 15006), 0),
        ("outside", behind(&strict, 15001), 0),
        ("auto", behind(&strict, 15006), 0),
    ]
}

async fn mistakes(stage: &Stage, cases: &[Case]) -> Vec<String> {
    let mut wrong = Vec::new();
    for namespace in ["auto", "mtls", "plain", "monitoring", "ops", "outside"] {
        let of_caller: Vec<&Case> = cases.iter().filter(|case| case.0 == namespace).collect();
        let calls: Vec<Call> = of_caller.iter().map(|case| case.1.clone()).collect();
        let outcomes = stage.call(namespace, &calls).await;
        for ((_, call, wanted), outcome) in of_caller.into_iter().zip(outcomes) {
            if !is_as_wanted(&outcome, *wanted) {
                wrong.push(format!(
                    "{namespace} → {} {}: wanted {wanted}, got {outcome:?}",
                    call.address, call.target
                ));
            }
        }
    }
    wrong
}

fn is_as_wanted(outcome: &Outcome, wanted: u16) -> bool {
    match wanted {
        0 => !outcome.is_served(),
        200 => outcome.is_served(),
        status => outcome.status == Some(status),
    }
}

async fn forged_headers_are_not_believed(stage: &Stage, pod: &str) {
    let forged = |call: Call| {
        call.header("x-forwarded-client-cert", &format!("By=x;URI={FORGED}"))
            .header("x-forwarded-for", "203.0.113.7")
            .header("x-envoy-original-path", "/open")
            .header("x-envoy-original-dst-host", "127.0.0.1:8001")
            .header("x-envoy-internal", "true")
            .header("x-istio-attributes", "forged")
    };
    let direct = |path: &str| Call::new(Protocol::Http1, &format!("{pod}:8001")).target(path);
    let mut calls = vec![
        forged(get("/admin/x")),
        forged(direct("/admin/x")),
        forged(get("/open")),
    ];
    // Another name for where it goes, by every way that there is to say it.
    for host in [
        "secret.example.com",
        "SECRET.example.com",
        "secret.example.com:8001",
        "secret.example.com:80",
    ] {
        let mut call = direct("/open");
        host.clone_into(&mut call.host);
        calls.push(call.clone());
        call.protocol = Protocol::Http2;
        calls.push(call);
        let mut absolute = Call::new(Protocol::Raw, &format!("{pod}:8001"));
        absolute.target = format!("http://{host}/open");
        calls.push(absolute);
    }
    let from_mesh = stage.call("auto", &calls[..3]).await;
    let from_outside = stage.call("outside", &calls).await;
    for outcomes in [&from_mesh, &from_outside] {
        assert_eq!(outcomes[0].status, Some(403), "{outcomes:?}");
        assert_eq!(outcomes[1].status, Some(403), "{outcomes:?}");
        assert!(outcomes[2].is_served(), "{outcomes:?}");
        assert!(!outcomes[2].text.contains(FORGED), "{outcomes:?}");
    }
    for outcome in &from_outside[3..] {
        assert_eq!(outcome.status, Some(403), "{outcome:?}");
    }
}

/// A sidecar takes a caller's address from `x-forwarded-for`, as in Istio: whoever may call past a gateway can name any. So a policy
/// that is to hold names beside the address who may forward it, and then a forged one is good for nothing.
async fn forwarded_addresses_count_by_who_forwards(stage: &Stage) {
    let forged = |path: &str| get(path).header("x-forwarded-for", "203.0.113.7");
    let chain = |path: &str| get(path).header("x-forwarded-for", "203.0.113.7, 192.0.2.1");
    let calls = [
        forged("/office"),
        get("/office"),
        chain("/office"),
        forged("/office/forwarded"),
        get("/office/forwarded"),
    ];
    for (namespace, wanted) in [
        ("outside", [200_u16, 403, 403, 403, 403]),
        ("mtls", [200, 403, 403, 403, 403]),
        ("monitoring", [200, 403, 403, 200, 403]),
    ] {
        let outcomes = stage.call(namespace, &calls).await;
        let statuses: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| outcome.status)
            .collect();
        assert_eq!(statuses, wanted, "{namespace}: {outcomes:?}");
    }
}

/// Whoever forges a claim's header is not believed, with a token or without.
async fn claims_are_the_tokens(stage: &Stage) {
    let claims = json!({"aud": "shop", "group": "guests"});
    let token = stage.shared.token("carol", &claims);
    let forged = get("/open").header("x-group", "admins");
    let calls = [
        forged.clone().header("x-token", &format!("Token {token}")),
        forged,
    ];
    for (outcome, group) in stage
        .call("auto", &calls)
        .await
        .iter()
        .zip([Some("guests"), None])
    {
        assert!(outcome.is_served(), "{outcome:?}");
        let seen = outcome
            .text
            .lines()
            .find_map(|line| line.strip_prefix("header x-group: "));
        assert_eq!(seen, group, "{outcome:?}");
    }
}
