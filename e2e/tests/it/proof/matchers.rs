//! Every matcher of a policy, in each of its forms and with its `not…`: one rule for each, one call that it lets in and one that
//! it does not, with our proxy and with a real Envoy at the server. And what a proxy does with a token besides.

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;
use serde_json::json;

use super::{ENVOY, Stage};
use crate::SETTLED;

/// The server; the other one has a real Envoy.
const SERVER: &str = "matchers";

/// A rule of an ALLOW policy about paths of its own; `PATH` is one of them.
struct Row {
    rule: String,
    /// Whom it lets in, and how they call; not what a rule cannot let anybody in by.
    good: Option<(&'static str, Call)>,
    bad: (&'static str, Call),
}

/// Every call ends as its rule says, as soon as the servers' proxies know it.
pub(super) async fn hold(stage: &Stage) {
    let rows = rows(stage).await;
    let rules: String = rows
        .iter()
        .enumerate()
        .map(|(index, row)| format!("  - {}\n", row.rule.replace("PATH", &path(index))))
        .collect();
    let manifests = ["", ENVOY].map(|of| {
        include_str!("../../security/matchers.yaml")
            .replace("{{name}}", &format!("{SERVER}{of}"))
            .replace("{{jwks}}", &stage.inline.jwks())
            + &rules
    });
    stage.apply(&manifests.concat()).await;
    let mut wrong = Vec::new();
    let settled = eventually("every matcher matches", SETTLED, async || {
        wrong = mistakes(stage, &rows).await;
        wrong.is_empty()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{}", wrong.join("\n"));
    tokens_are_passed_on_as_the_rule_says(stage).await;
}

fn path(index: usize) -> String {
    format!("/r{index}r")
}

/// A call of the path of the rule.
fn get() -> Call {
    Call::new(Protocol::Http1, &format!("{SERVER}.servers:8001")).target("PATH")
}

async fn rows(stage: &Stage) -> Vec<Row> {
    let mut rows = sources(stage).await;
    rows.extend(operations());
    rows.extend(conditions(stage).await);
    rows.extend(claims(stage));
    rows
}

/// A rule about its own path only; `more` is its other parts.
fn about(more: &str, good: (&'static str, Call), bad: (&'static str, Call)) -> Row {
    Row {
        rule: format!("{{to: [{{operation: {{paths: [PATH]}}}}], {more}}}"),
        good: Some(good),
        bad,
    }
}

/// A rule about requests from some source.
fn from(source: &str, good: &'static str, bad: &'static str) -> Row {
    about(
        &format!("from: [{{source: {{{source}}}}}]"),
        (good, get()),
        (bad, get()),
    )
}

async fn sources(stage: &Stage) -> Vec<Row> {
    let auto = stage.pod_ip("auto", "client").await;
    let (exact, other) = (
        "cluster.local/ns/auto/sa/client",
        "cluster.local/ns/mtls/sa/client",
    );
    vec![
        from(&format!("principals: [{exact}]"), "auto", "mtls"),
        from("principals: ['*/ns/auto/sa/client']", "auto", "mtls"),
        from("principals: [cluster.local/ns/auto/*]", "auto", "mtls"),
        from("principals: ['*']", "auto", "outside"),
        from(&format!("notPrincipals: [{other}]"), "auto", "mtls"),
        from("namespaces: [auto]", "auto", "mtls"),
        from("namespaces: ['au*']", "auto", "mtls"),
        from("notNamespaces: [mtls]", "auto", "mtls"),
        from("serviceAccounts: [auto/client]", "auto", "mtls"),
        from("notServiceAccounts: [mtls/client]", "auto", "mtls"),
        from("trustDomains: [cluster.local]", "auto", "outside"),
        from("notTrustDomains: [cluster.local]", "outside", "auto"),
        from(&format!("ipBlocks: [{auto}]"), "auto", "mtls"),
        from(&format!("notIpBlocks: [{auto}/32]"), "mtls", "auto"),
        from(&format!("remoteIpBlocks: [{auto}/32]"), "auto", "mtls"),
        from(&format!("notRemoteIpBlocks: [{auto}]"), "mtls", "auto"),
        // Both parts of one source must hold.
        from(
            "namespaces: [auto, mtls], notPrincipals: [cluster.local/ns/mtls/*]",
            "auto",
            "mtls",
        ),
    ]
}

/// A rule about requests to somewhere.
fn to(operation: &str, good: Call, bad: Call) -> Row {
    Row {
        rule: format!("{{to: [{{operation: {{{operation}}}}}]}}"),
        good: Some(("outside", good)),
        bad: ("outside", bad),
    }
}

/// The same by HTTP/2, on the port for it.
fn http2() -> Call {
    let mut call = get();
    call.protocol = Protocol::Http2;
    call.address = call.address.replace("8001", "8002");
    call
}

fn operations() -> Vec<Row> {
    let at = |target: &str| get().target(target);
    let post = || get().method("POST");
    let host = |host: &str| {
        let mut call = get();
        host.clone_into(&mut call.host);
        call
    };
    vec![
        to("paths: [PATH]", get(), at("PATH/x")),
        to("paths: ['PATH*']", at("PATH/x"), at("/xPATH")),
        to("paths: ['*PATH/end']", at("/xPATH/end"), at("PATH/end/x")),
        to(
            "paths: ['PATH/{*}/end']",
            at("PATH/x/end"),
            at("PATH/x/y/end"),
        ),
        to("paths: ['PATH/{**}']", at("PATH/x/y"), at("/xPATH")),
        to(
            "paths: ['PATH*'], notPaths: [PATH/no]",
            get(),
            at("PATH/no"),
        ),
        to("paths: [PATH], hosts: [a.test]", host("a.test"), get()),
        to("paths: [PATH], hosts: ['*.test']", host("A.test"), get()),
        to("paths: [PATH], notHosts: ['a.*']", get(), host("a.test")),
        to("paths: [PATH], methods: [GET]", get(), post()),
        to("paths: [PATH], methods: [POST]", post(), get()),
        to("paths: [PATH], notMethods: [POST]", get(), post()),
        to("paths: [PATH], ports: ['8002']", http2(), get()),
        to("paths: [PATH], notPorts: ['8002']", get(), http2()),
    ]
}

/// A rule with a condition.
fn when(condition: &str, good: (&'static str, Call), bad: (&'static str, Call)) -> Row {
    about(&format!("when: [{{{condition}}}]"), good, bad)
}

/// Whoever is meant by a value is let in by it, and kept out where it must not be that.
fn both(
    key: &str,
    value: &str,
    meant: &(&'static str, Call),
    other: &(&'static str, Call),
) -> [Row; 2] {
    [("values", meant, other), ("notValues", other, meant)].map(|(values, good, bad)| {
        let condition = format!("key: '{key}', {values}: [{value}]");
        when(&condition, good.clone(), bad.clone())
    })
}

async fn conditions(stage: &Stage) -> Vec<Row> {
    let address = stage.pod_ip("auto", "client").await;
    let [auto, mtls, outside] = ["auto", "mtls", "outside"].map(|namespace| (namespace, get()));
    let mut rows = Vec::new();
    for (key, value) in [
        ("source.ip", address.as_str()),
        ("remote.ip", &format!("{address}/32")),
        ("source.namespace", "auto"),
        ("source.principal", "'*/ns/auto/sa/client'"),
        ("source.serviceAccount", "auto/client"),
    ] {
        rows.extend(both(key, value, &auto, &mtls));
    }
    let second = ("auto", http2());
    let name = "'outbound_.8001_.*'";
    rows.extend(both("source.trustDomain", "cluster.local", &auto, &outside));
    rows.extend(both("destination.port", "'8002'", &second, &auto));
    rows.extend(both("connection.sni", name, &auto, &outside));
    rows.extend(destinations(stage).await);
    rows.extend(headers());
    rows
}

/// Of addresses every call has the same: what lets one in is another path.
async fn destinations(stage: &Stage) -> Vec<Row> {
    let mut servers = Vec::new();
    for of in ["", ENVOY] {
        servers.push(stage.pod_ip("servers", &format!("{SERVER}{of}")).await);
    }
    let servers = servers.join(", ");
    let call = |target: &str| ("auto", get().target(target));
    let anybody = |condition: &str| when(condition, call("PATH"), call("PATH/x"));
    let nobody = |condition: &str| Row {
        good: None,
        ..when(condition, call("PATH"), call("PATH"))
    };
    vec![
        anybody(&format!("key: destination.ip, values: [{servers}]")),
        anybody("key: destination.ip, notValues: [192.0.2.0/24]"),
        nobody("key: destination.ip, values: [192.0.2.0/24]"),
        nobody(&format!("key: destination.ip, notValues: [{servers}]")),
        nobody("key: connection.sni, values: [somebody.else]"),
    ]
}

/// Of a header, and of what a filter before has left of it.
fn headers() -> Vec<Row> {
    let key = "request.headers[x-kind]";
    let call = |value: &str| ("outside", get().header("x-kind", value));
    let (one, two) = (call("one"), call("two"));
    let kind = |values: &str, good: &str, bad: &str| {
        let condition = format!("key: '{key}', values: [{values}]");
        when(&condition, call(good), call(bad))
    };
    let mut rows = vec![
        kind("one, two", "two", "three"),
        kind("'o*'", "one", "two"),
        kind("'*e'", "one", "two"),
        when(
            &format!("key: '{key}', values: ['*']"),
            call("any"),
            ("outside", get()),
        ),
    ];
    let left = "experimental.envoy.filters.http.header_to_metadata[kind]";
    rows.extend(both(key, "one", &one, &two));
    rows.extend(both(left, "one", &one, &two));
    rows
}

/// Rules about tokens.
fn claims(stage: &Stage) -> Vec<Row> {
    let call = |claims: &serde_json::Value| {
        let token = stage.inline.token("alice", claims);
        (
            "outside",
            get().header("authorization", &format!("Bearer {token}")),
        )
    };
    let none = json!({});
    let good = json!({
        "aud": ["shop", "bank"], "azp": "till", "group": ["admins", "staff"], "nested": {"level": "high"},
    });
    let rule = |condition: &str| when(condition, call(&good), call(&none));
    let not = |condition: &str| when(condition, call(&none), call(&good));
    vec![
        from("requestPrincipals: ['*']", "outside", "outside").with(call(&none), get()),
        from("requestPrincipals: ['*/alice']", "outside", "outside").with(call(&none), get()),
        from(
            "requestPrincipals: ['https://inline.test/*']",
            "outside",
            "outside",
        )
        .with(call(&none), get()),
        from("notRequestPrincipals: ['*']", "outside", "outside")
            .with(("outside", get()), call(&none).1),
        rule("key: request.auth.audiences, values: [bank]"),
        rule("key: request.auth.presenter, values: [till]"),
        rule("key: 'request.auth.claims[group]', values: [staff]"),
        rule("key: 'request.auth.claims[group]', values: ['adm*']"),
        rule("key: 'request.auth.claims[nested][level]', values: [high]"),
        not("key: request.auth.audiences, notValues: [bank]"),
        not("key: request.auth.presenter, notValues: [till]"),
        not("key: 'request.auth.claims[group]', notValues: [admins]"),
        when(
            "key: request.auth.principal, values: [https://inline.test/alice]",
            call(&none),
            ("outside", get()),
        ),
        when(
            "key: request.auth.principal, notValues: [https://inline.test/alice]",
            ("outside", get()),
            call(&none),
        ),
    ]
}

impl Row {
    /// The same, for other calls.
    fn with(mut self, good: (&'static str, Call), bad: Call) -> Self {
        self.good = Some(good);
        self.bad.1 = bad;
        self
    }
}

async fn mistakes(stage: &Stage, rows: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    for namespace in ["auto", "mtls", "outside"] {
        let mut calls = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let good = row.good.iter().map(|(caller, call)| (caller, call, true));
            let bad = (&row.bad.0, &row.bad.1, false);
            for (_, call, is_good) in good.chain([bad]).filter(|case| *case.0 == namespace) {
                for of in ["", ENVOY] {
                    let mut call = call.clone();
                    call.target = call.target.replace("PATH", &path(index));
                    call.address = call.address.replace(SERVER, &format!("{SERVER}{of}"));
                    calls.push((call, is_good, &row.rule));
                }
            }
        }
        let all: Vec<Call> = calls.iter().map(|(call, _, _)| call.clone()).collect();
        let outcomes: Vec<Outcome> = stage.call(namespace, &all).await;
        for ((call, is_good, rule), outcome) in calls.iter().zip(outcomes) {
            let is_right = if *is_good {
                outcome.is_served()
            } else {
                outcome.status == Some(403)
            };
            if !is_right {
                wrong.push(format!(
                    "{rule}: {namespace} → {}{} must be served: {is_good}; {outcome:?}",
                    call.address, call.target
                ));
            }
        }
    }
    wrong
}

/// Its content in a header, itself only where the rule says so; and who is refused is told why.
async fn tokens_are_passed_on_as_the_rule_says(stage: &Stage) {
    use base64::Engine as _;
    let token = stage.inline.token("alice", &json!({"group": "staff"}));
    let expired = stage.inline.token("alice", &json!({"exp": 1000}));
    let bearer = |token: &str| format!("Bearer {token}");
    for of in ["", ENVOY] {
        let address = format!("{SERVER}{of}.servers:8001");
        let open = |token: &str| {
            Call::new(Protocol::Http1, &address)
                .target("/open")
                .header("authorization", &bearer(token))
                .header("x-claims", "forged")
        };
        let outcomes = stage.call("outside", &[open(&token), open(&expired)]).await;
        let text = &outcomes[0].text;
        assert!(outcomes[0].is_served(), "{text}");
        let header = |name: &str| {
            let begin = format!("header {name}: ");
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(&begin));
            let only = lines.next();
            assert_eq!(lines.next(), None, "{name}: {text}");
            only
        };
        assert_eq!(header("authorization"), Some(bearer(&token).as_str()));
        let payload = header("x-claims").unwrap_or_default();
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload);
        let payload: serde_json::Value = serde_json::from_slice(&payload.unwrap()).unwrap();
        assert_eq!(payload["group"], "staff", "{text}");
        let (status, text) = (outcomes[1].status, &outcomes[1].text);
        assert_eq!(status, Some(401), "{text}");
        let reason = "Jwt is expired";
        let challenge = "error=\\\"invalid_token\\\"";
        assert!(
            text.starts_with(reason) && text.contains(challenge),
            "{text}"
        );
    }
}
