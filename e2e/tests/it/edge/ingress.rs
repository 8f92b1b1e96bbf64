//! The ingress gateway: certificates by server name, client certificates, TLS that is passed on, tokens and policies, and a
//! certificate that changes while connections are open.

use e2e::echo::{Call, Protocol, Tls};
use e2e::mesh::eventually;
use serde_json::json;
use time::Duration;

use super::{Stage, settle, tls};
use crate::SETTLED;
use crate::authority::{Authority, Leaf};

const GATEWAY: &str = "istio-ingressgateway.istio-system:443";
const PASSED_ON: &str = "tls.outside.svc.cluster.local";

/// Everything at the gateway is as it must be.
pub(super) async fn holds(stage: &Stage) {
    let mut cases = names_and_modes(stage);
    cases.extend(strangers(stage));
    cases.extend(tokens(stage));
    cases.extend(addresses(stage));
    settle(stage, "outside", &cases).await;
    forged_headers_end_here(stage).await;
    a_certificate_is_replaced(stage).await;
}

/// A call to `host`, with TLS for `name`.
fn call(host: &str, tls: Tls) -> Call {
    let mut call = Call::new(Protocol::Http1, GATEWAY).tls(tls);
    host.clone_into(&mut call.host);
    call
}

fn with(mut tls: Tls, leaf: &Leaf) -> Tls {
    tls.chain.clone_from(&leaf.chain);
    tls.key.clone_from(&leaf.key);
    tls
}

type Case = (&'static str, Call, Option<u16>);

fn names_and_modes(stage: &Stage) -> Vec<Case> {
    let (a, b) = (stage.a.root(), stage.b.root());
    let outside = stage.outside.root();
    let known = stage.clients.leaf("spiffe://partner/ns/x/sa/client");
    let unknown = stage.a.leaf("spiffe://partner/ns/x/sa/client");
    let expired = stage.clients.leaf_from(
        "spiffe://partner/ns/x/sa/client",
        Duration::hours(-2),
        Duration::hours(-1),
    );
    let at = |host: &str, roots: &str| call(host, tls(host, roots));
    let shown = |host: &str, leaf: &Leaf| call(host, with(tls(host, &b), leaf));
    let mut lines = Call::new(Protocol::Tcp, GATEWAY);
    lines.tls = Some(tls("lines.test", &a));
    vec![
        ("SIMPLE, first name", at("a.test", &a), Some(200)),
        ("SIMPLE, second name", at("b.test", &b), Some(200)),
        ("not the other one's certificate", at("a.test", &b), None),
        ("a name that nobody serves", at("c.test", &a), None),
        ("lines in TLS", lines, Some(200)),
        ("MUTUAL, known", shown("mutual.test", &known), Some(200)),
        ("MUTUAL, nobody", at("mutual.test", &b), None),
        ("MUTUAL, unknown", shown("mutual.test", &unknown), None),
        ("MUTUAL, expired", shown("mutual.test", &expired), None),
        (
            "MUTUAL, the pinned key",
            shown("by-key.test", &stage.by_key),
            Some(200),
        ),
        (
            "MUTUAL, another key of a known client",
            shown("by-key.test", &stage.by_certificate),
            None,
        ),
        (
            "MUTUAL, the pinned certificate",
            shown("by-certificate.test", &stage.by_certificate),
            Some(200),
        ),
        (
            "MUTUAL, another certificate of a known client",
            shown("by-certificate.test", &stage.by_key),
            None,
        ),
        ("OPTIONAL, nobody", at("optional.test", &b), Some(200)),
        ("OPTIONAL, known", shown("optional.test", &known), Some(200)),
        ("OPTIONAL, unknown", shown("optional.test", &unknown), None),
        ("PASSTHROUGH", at(PASSED_ON, &outside), Some(200)),
        ("PASSTHROUGH, not by the gateway", at(PASSED_ON, &a), None),
    ]
}

/// Under one server name, with the host of another.
fn strangers(stage: &Stage) -> Vec<Case> {
    let (a, b) = (stage.a.root(), stage.b.root());
    let mut plain = Call::new(Protocol::Http1, GATEWAY);
    "a.test".clone_into(&mut plain.host);
    let mut h2 = call("mutual.test", tls("a.test", &a));
    h2.protocol = Protocol::Http2;
    if let Some(tls) = &mut h2.tls {
        tls.alpn = vec!["h2".to_owned()];
    }
    vec![
        // The host of whom a client certificate is asked for, by the door of one that asks for none.
        (
            "SNI a, Host mutual",
            call("mutual.test", tls("a.test", &a)),
            Some(404),
        ),
        ("SNI a, :authority mutual", h2, Some(404)),
        (
            "SNI optional, Host mutual",
            call("mutual.test", tls("optional.test", &b)),
            Some(404),
        ),
        (
            "SNI b, Host a",
            call("a.test", tls("b.test", &b)),
            Some(404),
        ),
        (
            "SNI a, Host of the inside",
            call("app.servers", tls("a.test", &a)),
            Some(404),
        ),
        ("no SNI", call("a.test", tls("127.0.0.1", &a)), None),
        ("no TLS", plain, None),
    ]
}

fn tokens(stage: &Stage) -> Vec<Case> {
    let (a, b) = (stage.a.root(), stage.b.root());
    let bearer = |token: &str| format!("Bearer {token}");
    let get = |host: &str, path: &str, roots: &str| call(host, tls(host, roots)).target(path);
    let private =
        |token: &str| get("a.test", "/private/x", &a).header("authorization", &bearer(token));
    let good = stage.tokens.token("alice", &json!({}));
    let expired = stage.tokens.token("alice", &json!({"exp": 1000}));
    let impostor = crate::authority::Tokens::new("https://edge.test").token("alice", &json!({}));
    vec![
        ("a token", private(&good), Some(200)),
        ("no token", get("a.test", "/private/x", &a), Some(403)),
        ("an expired token", private(&expired), Some(401)),
        ("somebody else's token", private(&impostor), Some(401)),
        (
            "a path in another spelling",
            get("a.test", "/x/../private/x", &a),
            Some(403),
        ),
        (
            "a path for nobody",
            get("b.test", "/internal/x", &b),
            Some(403),
        ),
        (
            "a path for everybody",
            get("b.test", "/external", &b),
            Some(200),
        ),
    ]
}

/// Who calls is whom the connection comes from, whatever addresses the caller names.
fn addresses(stage: &Stage) -> Vec<Case> {
    let b = stage.b.root();
    let from = |path: &str, addresses: &str| {
        let call = call("b.test", tls("b.test", &b)).target(path);
        call.header("x-forwarded-for", addresses)
    };
    let (one, two) = ("203.0.113.7", "203.0.113.7, 203.0.113.8");
    vec![
        (
            "an address that may, forged",
            from("/office", one),
            Some(403),
        ),
        ("two of them", from("/office", two), Some(403)),
        ("one that may not, forged", from("/lobby", one), Some(200)),
    ]
}

/// What only a proxy may say does not get past the gateway when a caller says it.
async fn forged_headers_end_here(stage: &Stage) {
    let names = [
        "x-forwarded-client-cert",
        "x-envoy-internal",
        "x-envoy-original-path",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-retry-on",
        "x-envoy-ip-tags",
    ];
    let plain = call("a.test", tls("a.test", &stage.a.root()));
    // A number, as some of them are one; as a time to wait it would be over at once.
    let forged = names
        .iter()
        .fold(plain, |call, name| call.header(name, "1"));
    let outcomes = stage.scene.call("outside", &[forged]).await;
    assert!(outcomes[0].is_served(), "{:?}", outcomes[0]);
    for name in names {
        let line = format!("header {name}: 1\n");
        assert!(!outcomes[0].text.contains(&line), "{:?}", outcomes[0]);
    }
}

/// Another certificate in the Secret: new connections see it soon, each is served meanwhile, and those that are open stay.
async fn a_certificate_is_replaced(stage: &Stage) {
    let next = Authority::new("a, the next");
    let either = stage.a.root() + &next.root();
    let mut lines = Call::new(Protocol::Tcp, GATEWAY);
    lines.tls = Some(tls("lines.test", &stage.a.root()));
    let line = stage.scene.hold("outside", &lines).await;
    let credential = stage.credential("a", &next.host("a.test"), None);
    stage.scene.apply(&credential).await;
    eventually("the next certificate", SETTLED, async || {
        let any = call("a.test", tls("a.test", &either));
        let new = call("a.test", tls("a.test", &next.root()));
        let outcomes = stage.scene.call("outside", &[any, new]).await;
        assert!(outcomes[0].is_served(), "{:?}", outcomes[0]);
        outcomes[1].is_served()
    })
    .await
    .unwrap();
    line.was_held().await;
    let old = call("a.test", tls("a.test", &stage.a.root()));
    eventually("the former certificate is gone", SETTLED, async || {
        let outcomes = stage
            .scene
            .call("outside", std::slice::from_ref(&old))
            .await;
        !outcomes[0].is_served()
    })
    .await
    .unwrap();
}
