//! The proxy's Mixer client with a real Mixer, both as processes on the loopback: what is asked and told, by route and by
//! connection; what happens while the one or the other half of Mixer is away; how exact a quota is ([`quota`]).

mod programs;
mod quota;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::istio::mixer::v1::attributes::{AttributeValue, attribute_value};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::authority::Authority;
use e2e::load::HttpClient;
use programs::{
    Place, Proxy, app, attributes, cluster, echo, eventually, free_port, get, http_filter,
    http_listener, of_route, over_http2, route, tcp_filter, tcp_listener, tls,
};

const RULES: &str = r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: deny, namespace: istio-system}
spec: {compiledAdapter: denier, params: {status: {code: 7, message: "not today"}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: nothing, namespace: istio-system}
spec: {compiledTemplate: checknothing}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: deny, namespace: istio-system}
spec:
  match: match(request.path | "", "/denied*") || (source.uid | "") == "kubernetes://evil.shop" || (destination.namespace | "") == "locked"
  actions: [{handler: deny, instances: [nothing]}]
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: login, namespace: istio-system}
spec:
  compiledAdapter: denier
  params:
    status:
      code: 16
      details:
      - "@type": type.googleapis.com/istio.policy.v1beta1.DirectHttpResponse
        code: Found
        body: sign in first
        headers: {location: /login, Set-Cookie: "a=1,b=2"}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: login, namespace: istio-system}
spec: {match: 'match(request.path | "", "/private*")', actions: [{handler: login, instances: [nothing]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: headers, namespace: istio-system}
spec:
  match: (context.protocol | "") == "http"
  requestHeaderOperations: [{name: x-checked, values: ['"yes"']}]
  responseHeaderOperations:
  - {name: x-answered, values: ['"yes"']}
  - {name: x-answered, values: ['"again"'], operation: APPEND}
  - {name: x-of-app, operation: REMOVE}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: connections, namespace: istio-system}
spec:
  compiledTemplate: metric
  params:
    value: connection.received.bytes_total | 0
    dimensions: {event: 'connection.event | "none"', code: check.error_code | 0}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: connections, namespace: istio-system}
spec:
  compiledAdapter: prometheus
  params:
    metrics:
    - {name: connections, instance_name: connections.instance.istio-system, kind: GAUGE, label_names: [event, code]}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: connections, namespace: istio-system}
spec: {match: (context.protocol | "") == "tcp", actions: [{handler: connections, instances: [connections]}]}
"#;

/// What one proxy tells the next, as the header has it.
fn forwarded(entries: &[(&str, &str)]) -> String {
    let value = |text: &str| AttributeValue {
        value: Some(attribute_value::Value::StringValue(text.to_owned())),
    };
    let attributes: BTreeMap<_, _> = entries
        .iter()
        .map(|(name, text)| ((*name).to_owned(), value(text)))
        .collect();
    let message = proto::istio::mixer::v1::Attributes { attributes };
    STANDARD.encode(proto::any::pack(&message).value)
}

/// A proxy in front of `app` with both halves of Mixer in `place`.
async fn proxy_of(place: &Place, listeners: &[Value]) -> Proxy {
    let clusters = [
        cluster("app", app().await),
        place.cluster("policy"),
        place.cluster("telemetry"),
    ];
    Proxy::start(listeners, &clusters).await
}

#[tokio::test]
async fn requests_are_checked_and_reported_as_their_route_says() {
    let place = Place::new();
    let mixer = place.start(RULES).await;
    let routes = [
        route(
            "/denied/free",
            Some(of_route(json!({"disableCheckCalls": true}))),
        ),
        route(
            "/quiet",
            Some(of_route(json!({"disableReportCalls": true}))),
        ),
        route(
            "/named",
            Some(of_route(json!({"mixerAttributes": attributes(&[
            ("destination.service.name", "named"), ("destination.namespace", "locked")])}))),
        ),
        route("/", None),
    ];
    let inbound = http_listener("inbound", &http_filter(json!({})), &routes);
    let proxy = proxy_of(&place, &[inbound]).await;
    let to = proxy.address("inbound").await;

    for _ in 0..3 {
        let quiet = get(to, "/quiet", &[]).await;
        assert!(quiet.starts_with("HTTP/1.1 200 "), "{quiet}");
    }
    let answer = get(to, "/ok", &[]).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("x-checked: yes\n"), "{answer}");
    let answered = "x-answered: yes\r\nx-answered: again\r\n";
    assert!(answer.contains(answered), "{answer}");
    assert!(!answer.contains("x-of-app"), "{answer}");
    let denied = get(to, "/denied", &[]).await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    assert!(
        denied.ends_with("PERMISSION_DENIED:deny.istio-system:not today"),
        "{denied}"
    );
    let free = get(to, "/denied/free", &[]).await;
    assert!(free.contains("path: /denied/free\n"), "{free}");
    let named = get(to, "/named", &[]).await;
    assert!(named.starts_with("HTTP/1.1 403 "), "{named}");
    let metric = "istio_requests_total";
    let inbound = r#"reporter="destination""#;
    mixer
        .sum_is(metric, &[inbound, r#"response_code="200""#], 2.0)
        .await;
    let named = r#"destination_service_name="named""#;
    let denied = r#"response_code="403""#;
    mixer.sum_is(metric, &[inbound, denied], 2.0).await;
    mixer.sum_is(metric, &[inbound, denied, named], 1.0).await;

    // The same again is known already.
    let calls = proxy
        .stat("http_mixer_filter.total_remote_check_calls")
        .await;
    let again = get(to, "/ok", &[]).await;
    assert!(again.starts_with("HTTP/1.1 200 "), "{again}");
    proxy
        .stat_reaches("http_mixer_filter.total_check_cache_hits", 1)
        .await;
    let after = proxy
        .stat("http_mixer_filter.total_remote_check_calls")
        .await;
    assert_eq!(after, calls);
}

#[tokio::test]
async fn a_rule_answers_in_the_place_of_the_application() {
    let place = Place::new();
    let mixer = place.start(RULES).await;
    let listeners = [http_listener(
        "inbound",
        &http_filter(json!({})),
        &[route("/", None)],
    )];
    let proxy = proxy_of(&place, &listeners).await;
    let to = proxy.address("inbound").await;
    // By Mixer, then from the cache.
    for _ in 0..2 {
        let answer = get(to, "/private", &[]).await;
        assert!(answer.starts_with("HTTP/1.1 302 "), "{answer}");
        for header in ["location: /login", "set-cookie: a=1", "set-cookie: b=2"] {
            assert!(answer.contains(&format!("{header}\r\n")), "{answer}");
        }
        assert!(answer.ends_with("\r\n\r\nsign in first"), "{answer}");
    }
    let hits = "http_mixer_filter.total_check_cache_hits";
    proxy.stat_reaches(hits, 1).await;
    let found = r#"response_code="302""#;
    mixer.sum_is("istio_requests_total", &[found], 2.0).await;
}

#[tokio::test]
async fn proxies_tell_each_other_who_they_are() {
    let place = Place::new();
    let _mixer = place.start(RULES).await;
    let routes = [route("/", None)];
    let ignores = json!({"ignoreForwardedAttributes": true});
    let speaks =
        json!({"forwardAttributes": attributes(&[("source.uid", "kubernetes://web-1.shop")])});
    let named = of_route(json!({"forwardAttributes":
        attributes(&[("destination.service.name", "app")])}));
    let listeners = [
        http_listener("inbound", &http_filter(json!({})), &routes),
        http_listener("gateway", &http_filter(ignores), &routes),
        http_listener("outbound", &http_filter(speaks), &[route("/", Some(named))]),
    ];
    let proxy = proxy_of(&place, &listeners).await;
    let evil = forwarded(&[("source.uid", "kubernetes://evil.shop")]);
    let good = forwarded(&[("source.uid", "kubernetes://good.shop")]);
    for (listener, said, status) in [
        ("inbound", &evil, 403),
        ("inbound", &good, 200),
        // Whoever comes from outside does not speak for others.
        ("gateway", &evil, 200),
    ] {
        let to = proxy.address(listener).await;
        let answer = get(to, "/", &[("x-istio-attributes", said)]).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{listener}: {answer}"
        );
        assert!(!answer.contains("x-istio-attributes"), "{answer}");
    }
    let told = forwarded(&[
        ("source.uid", "kubernetes://web-1.shop"),
        ("destination.service.name", "app"),
    ]);
    let to = proxy.address("outbound").await;
    let answer = get(to, "/", &[("x-istio-attributes", &good)]).await;
    assert!(
        answer.contains(&format!("x-istio-attributes: {told}\n")),
        "{answer}"
    );
}

#[tokio::test]
async fn while_policy_is_away_the_fail_policy_decides() {
    let place = Place::new();
    let open = json!({"transport": {"networkFailPolicy": {"policy": "FAIL_OPEN"}}});
    let listeners = [
        http_listener("open", &http_filter(open), &[route("/", None)]),
        http_listener("closed", &http_filter(json!({})), &[route("/", None)]),
    ];
    let proxy = proxy_of(&place, &listeners).await;
    let (open, closed) = (proxy.address("open").await, proxy.address("closed").await);
    for number in 0..8 {
        let answer = get(open, &format!("/{number}"), &[]).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let answer = get(closed, &format!("/{number}"), &[]).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let why = "\r\n\r\nUNAVAILABLE:the policy check could not be made: ";
        assert!(answer.contains(why), "{answer}");
    }
    for (stat, least) in [
        ("total_check_fail_open", 8),
        ("total_check_fail_close", 8),
        ("total_circuit_breaker_opened", 2),
    ] {
        let stat = format!("http_mixer_filter.{stat}");
        proxy.stat_reaches(&stat, least).await;
    }
    // The pauses of an open breaker grow, so that it is met open sooner or later.
    eventually("requests do not wait for Mixer", async || {
        get(closed, "/", &[]).await;
        let broken = "http_mixer_filter.total_remote_call_broken";
        (proxy.stat(broken).await > 0).then_some(())
    })
    .await;

    let mixer = place.start(RULES).await;
    for to in [open, closed] {
        eventually("policy is back", async || {
            let answer = get(to, "/denied", &[]).await;
            answer.starts_with("HTTP/1.1 403 ").then_some(())
        })
        .await;
    }
    drop(mixer);
    let answer = get(closed, "/denied/once/more", &[]).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let answer = get(open, "/denied/once/more", &[]).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn while_telemetry_is_away_no_request_is_touched() {
    const REQUESTS: u32 = 150;
    let (policy, telemetry) = (Place::new(), Place::new());
    let _policy = policy.start(RULES).await;
    let listeners = [http_listener(
        "inbound",
        &http_filter(json!({})),
        &[route("/", None)],
    )];
    let clusters = [
        cluster("app", app().await),
        policy.cluster("policy"),
        telemetry.cluster("telemetry"),
    ];
    let proxy = Proxy::start(&listeners, &clusters).await;
    let to = proxy.address("inbound").await;
    for _ in 0..REQUESTS {
        let answer = get(to, "/", &[]).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let stat = "http_mixer_filter.total_report_calls";
    proxy.stat_reaches(stat, u64::from(REQUESTS)).await;
    // What there is no room for is given up at once.
    let stat = "http_mixer_filter.total_report_dropped";
    proxy.stat_reaches(stat, 1).await;
    let telemetry = telemetry.start(RULES).await;
    let delivered = eventually("what was kept is delivered", async || {
        let counted = telemetry.sum("istio_requests_total", &[]).await;
        let dropped = f64::from(u32::try_from(proxy.stat(stat).await).unwrap());
        (counted + dropped >= f64::from(REQUESTS)).then_some((counted, dropped))
    })
    .await;
    assert!(
        delivered.0 >= 64.0 && delivered.0 + delivered.1 <= f64::from(REQUESTS),
        "{delivered:?}"
    );
}

#[tokio::test]
async fn connections_are_reported_when_they_open_go_on_and_close() {
    let place = Place::new();
    let mixer = place.start(RULES).await;
    let listeners = [
        tcp_listener("free", tcp_filter("shop"), "echo"),
        tcp_listener("locked", tcp_filter("locked"), "echo"),
    ];
    let clusters = [
        cluster("echo", echo().await),
        place.cluster("policy"),
        place.cluster("telemetry"),
    ];
    let proxy = Proxy::start(&listeners, &clusters).await;
    let mut stream = TcpStream::connect(proxy.address("free").await)
        .await
        .unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    mixer
        .sum_is("istio_tcp_connections_opened_total", &[], 1.0)
        .await;
    let bytes = "istio_connections";
    mixer
        .sum_is(bytes, &[r#"event="continue""#, r#"code="0""#], 5.0)
        .await;
    stream.write_all(b"again").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    drop(stream);
    mixer
        .sum_is("istio_tcp_connections_closed_total", &[], 1.0)
        .await;
    mixer
        .sum_is(bytes, &[r#"event="close""#, r#"code="0""#], 10.0)
        .await;

    let mut stream = TcpStream::connect(proxy.address("locked").await)
        .await
        .unwrap();
    // Closed without a word; some systems say "reset".
    let mut answer = Vec::new();
    let _ = stream.write_all(b"hello").await;
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer));
    let _ = read.await.expect("a refused connection is closed");
    assert_eq!(answer, b"");
    mixer
        .sum_is("istio_tcp_connections_closed_total", &[], 2.0)
        .await;
    let refused = async || {
        let count = proxy
            .stat("tcp_mixer_filter.total_remote_check_denies")
            .await;
        (count == 1).then_some(())
    };
    eventually("the refusal is counted", refused).await;
}

#[tokio::test]
async fn with_mutual_tls_only_proxies_with_a_certificate_are_answered() {
    let authority = Authority::new("mixer");
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let mixer = authority.leaf("spiffe://cluster.local/ns/istio-system/sa/istio-policy");
    let (secure, own) = (free_port(), free_port());
    let mut flags = vec![
        format!("--securePort={secure}"),
        format!("--selfMetricsPort={own}"),
    ];
    for (flag, text) in [
        ("certFile", &mixer.chain),
        ("keyFile", &mixer.key),
        ("caCertFile", &authority.root()),
    ] {
        let path = folder.path().join(flag);
        std::fs::write(&path, text).unwrap();
        flags.push(format!("--{flag}={}", path.display()));
    }
    let _mixer = place.start_with(RULES, &flags).await;
    let client = authority.leaf("spiffe://cluster.local/ns/shop/sa/web");
    let policy = |name: &str, certificate| {
        let mut cluster = over_http2(cluster(name, SocketAddr::from(([127, 0, 0, 1], secure))));
        cluster["transport_socket"] = tls(&authority.root(), certificate);
        cluster
    };
    let stranger = Authority::new("mixer").leaf("spiffe://cluster.local/ns/shop/sa/web");
    let clusters = [
        cluster("app", app().await),
        place.cluster("telemetry"),
        policy("known", Some(&client)),
        policy("unknown", None),
        policy("stranger", Some(&stranger)),
    ];
    let names = ["known", "unknown", "stranger"];
    let listeners = names.map(|name| {
        let filter = http_filter(json!({"transport": {"checkCluster": name}}));
        http_listener(name, &filter, &[route("/", None)])
    });
    let proxy = Proxy::start(&listeners, &clusters).await;
    for (name, path, status) in [
        ("known", "/", 200),
        ("known", "/denied", 403),
        ("unknown", "/", 503),
        ("stranger", "/", 503),
    ] {
        let answer = get(proxy.address(name).await, path, &[]).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {answer}"
        );
    }
    let url = format!("http://127.0.0.1:{own}/metrics");
    let page = HttpClient::default().get(&url).await.unwrap();
    assert!(page.body.contains("mixer_config_rule_configs_total"));
}
