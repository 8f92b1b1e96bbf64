//! The rows.

use e2e::echo::{Call, Outcome, Protocol};

use super::row::{HOST, Row, get, is_by};
use super::servers;

/// So many calls see both of two equal shares, but for once in a million times.
pub(super) const MANY: usize = 20;

pub(super) fn all() -> Vec<Row> {
    let mut rows = conditions();
    rows.extend(further_conditions());
    rows.extend(answers());
    rows.extend(changes());
    rows.extend(faults_and_retries());
    rows.extend(shares());
    rows.extend(balancing());
    rows.extend(services());
    rows
}

fn status(outcome: &Outcome, status: u16) -> bool {
    outcome.status == Some(status)
}

fn conditions() -> Vec<Row> {
    let user = |name: &str| get("/").header("x-user", name);
    vec![
        Row::matching("uri: {exact: /one}", get("/one?q=1"), get("/one/more")),
        Row::matching("uri: {prefix: /one}", get("/one/more"), get("/other")),
        Row::matching(
            "uri: {regex: '/one/[0-9]+'}",
            get("/one/17"),
            get("/one/17/more"),
        ),
        Row::matching(
            "uri: {prefix: /one}, ignoreUriCase: true",
            get("/ONE"),
            get("/TWO"),
        ),
        Row::matching(
            "headers: {x-user: {exact: jason}}",
            user("jason"),
            user("john"),
        ),
        Row::matching(
            "headers: {x-user: {prefix: ja}}",
            user("jason"),
            user("john"),
        ),
        Row::matching(
            "headers: {x-user: {regex: 'j.*n'}}",
            user("jason"),
            user("mary"),
        ),
        Row::matching("headers: {x-user: {}}", user("mary"), get("/")),
        Row::matching(
            "withoutHeaders: {x-user: {exact: jason}}",
            user("john"),
            user("jason"),
        ),
        Row::matching(
            "queryParams: {q: {exact: one}}",
            get("/?q=one"),
            get("/?q=two"),
        ),
        Row::matching(
            "queryParams: {q: {regex: 'o.e'}}",
            get("/?p=1&q=ore"),
            get("/?q=two"),
        ),
        Row::matching("method: {exact: PUT}", get("/").method("PUT"), get("/")),
        Row::matching(
            "scheme: {exact: http}, uri: {prefix: /x}",
            get("/x"),
            get("/"),
        ),
        Row::matching(
            "authority: {prefix: a.}",
            get("/").host("a.HOST"),
            get("/").host("b.HOST"),
        ),
        Row::matching(
            "sourceLabels: {app: client}, uri: {exact: /x}",
            get("/x"),
            get("/"),
        ),
        Row::matching("gateways: [mesh], uri: {exact: /x}", get("/x"), get("/")),
    ]
}

/// Conditions about clients, with several parts, and of delegates.
fn further_conditions() -> Vec<Row> {
    vec![
        two_of(
            "sourceNamespace",
            "[{sourceNamespace: open}, {sourceNamespace: open-envoy}]",
            "v2",
        ),
        two_of(
            "another sourceNamespace",
            "[{sourceNamespace: elsewhere}]",
            "v1",
        ),
        two_of("other sourceLabels", "[{sourceLabels: {app: other}}]", "v1"),
        two_of("another gateway", "[{gateways: [elsewhere]}]", "v1"),
        // Both parts of one match, or the other one.
        Row::routed(
            "several matches",
            "[{match: [{uri: {prefix: /a}, headers: {x-user: {}}}, {uri: {prefix: /b}}], route: [V2}]}, {route: [V1}]}]",
            vec![get("/a").header("x-user", "x"), get("/b"), get("/a")],
            |seen| is_by("v2", &seen[0]) && is_by("v2", &seen[1]) && is_by("v1", &seen[2]),
        ),
        Row::about(
            "port",
            vec![
                Call::new(Protocol::Http1, "two-ports.servers:8080"),
                Call::new(Protocol::Http1, "two-ports.servers:80"),
            ],
            |seen| is_by("v2", &seen[0]) && is_by("v1", &seen[1]),
        ),
        Row::routed(
            "delegate",
            "[{match: [{uri: {prefix: /api}}], delegate: {name: delegate}}, {route: [V1}]}]",
            vec![get("/api/v2/x"), get("/api/v3"), get("/elsewhere")],
            |seen| is_by("v2", &seen[0]) && is_by("v1", &seen[1]) && is_by("v1", &seen[2]),
        ),
    ]
}

/// A row about who the client is: whatever it asks gets to `server`.
fn two_of(name: &'static str, conditions: &str, server: &'static str) -> Row {
    let http = format!("[{{match: {conditions}, route: [V2}}]}}, {{route: [V1}}]}}]");
    Row::routed(name, &http, vec![get("/")], move |seen| {
        is_by(server, &seen[0])
    })
}

fn answers() -> Vec<Row> {
    let location = |location: &'static str, code: u16| {
        move |seen: &[Outcome]| {
            let said = format!("\"location\": \"{location}\"");
            status(&seen[0], code) && seen[0].text.contains(&said)
        }
    };
    vec![
        Row::routed(
            "redirect",
            "[{redirect: {uri: /new, authority: elsewhere.test, redirectCode: 308}}]",
            vec![get("/old?q=1")],
            location("http://elsewhere.test/new?q=1", 308),
        ),
        Row::routed(
            "redirect to another port",
            "[{redirect: {scheme: https, authority: elsewhere.test, port: 8443}}]",
            vec![get("/old")],
            location("https://elsewhere.test:8443/old", 301),
        ),
        Row::routed(
            "directResponse",
            "[{directResponse: {status: 418, body: {string: short and stout}}}]",
            vec![get("/")],
            |seen| status(&seen[0], 418) && seen[0].text.contains("short and stout"),
        ),
    ]
}

fn changes() -> Vec<Row> {
    let has =
        |line: &'static str| move |seen: &Outcome| is_by("v1", seen) && seen.text.contains(line);
    let origin = |name: &str| get("/").header("origin", name);
    let cors =
        "corsPolicy: {allowOrigins: [{exact: 'https://a.test'}], allowMethods: [PUT], maxAge: 60s}";
    vec![
        Row::acting(
            "match: [{uri: {prefix: /old}}], rewrite: {uri: /new}",
            get("/old/x?q=1"),
            has("path: /new/x?q=1\n"),
        ),
        Row::acting(
            "rewrite: {authority: other.test}",
            get("/"),
            has("header host: other.test\n"),
        ),
        Row::acting(
            "rewrite: {uriRegexRewrite: {match: '/(a+)/(b+)', rewrite: '/\\2/\\1'}}",
            get("/aa/bbb"),
            has("path: /bbb/aa\n"),
        ),
        Row::acting(
            "headers: {request: {set: {x-set: new}}}",
            get("/").header("x-set", "old"),
            |seen| seen.text.contains("header x-set: new\n") && !seen.text.contains("x-set: old"),
        ),
        Row::acting(
            "headers: {request: {add: {x-add: new}}}",
            get("/").header("x-add", "old"),
            |seen| seen.text.contains("x-add: old") && seen.text.contains("new\n"),
        ),
        Row::acting(
            "headers: {request: {remove: [x-gone]}}",
            get("/").header("x-gone", "old"),
            |seen| is_by("v1", seen) && !seen.text.contains("x-gone"),
        ),
        Row::acting(
            "headers: {response: {set: {x-answer: new}}}",
            get("/"),
            has("\"x-answer\": \"new\""),
        ),
        Row::routed(
            "headers of a destination",
            "[{route: [{destination: {host: app, subset: v1}, headers: {request: {set: {x-destination: first}}}}]}]",
            vec![get("/")],
            |seen| seen[0].text.contains("header x-destination: first\n"),
        ),
        Row::acting(
            cors,
            origin("https://a.test"),
            has("\"access-control-allow-origin\": \"https://a.test\""),
        ),
        Row::routed(
            "corsPolicy and others",
            &format!("[{{{cors}, route: [V1}}]}}]"),
            vec![
                origin("https://b.test"),
                origin("https://a.test")
                    .method("OPTIONS")
                    .header("access-control-request-method", "PUT"),
            ],
            |seen| {
                is_by("v1", &seen[0])
                    && !seen[0].text.contains("access-control-allow-origin")
                    && status(&seen[1], 200)
                    && !seen[1].is_served()
                    && seen[1].text.contains("\"access-control-max-age\": \"60\"")
            },
        ),
    ]
}

fn faults_and_retries() -> Vec<Row> {
    let flaky = |retries: &str| {
        format!("[{{retries: {{{retries}}}, route: [{{destination: {{host: flaky}}}}]}}]")
    };
    vec![
        Row::acting(
            "fault: {abort: {httpStatus: 418, percentage: {value: 100}}}",
            get("/"),
            |seen| status(seen, 418),
        ),
        Row::acting(
            "fault: {delay: {fixedDelay: 2s, percentage: {value: 100}}}",
            get("/"),
            |seen| is_by("v1", seen) && seen.millis >= 2000,
        ),
        Row::routed(
            "a fault for a share",
            "[{fault: {abort: {httpStatus: 418, percentage: {value: 50}}}, route: [V1}]}]",
            vec![get("/"); MANY],
            |seen| {
                seen.iter().any(|outcome| status(outcome, 418))
                    && seen.iter().any(|outcome| is_by("v1", outcome))
            },
        ),
        Row::routed(
            "a fault of gRPC",
            "[{fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}, route: [V1}]}]",
            vec![Call::new(Protocol::Grpc, "app.servers:80").host(HOST)],
            |seen| seen[0].text == "grpc-status 14",
        ),
        Row::acting("timeout: 0.5s", get("/?after=4000"), |seen| {
            status(seen, 504)
        }),
        Row::routed(
            "retries",
            &flaky("attempts: 3, retryOn: 5xx"),
            vec![get("/"); MANY],
            |seen| seen.iter().all(|outcome| is_by("v1", outcome)),
        ),
        Row::routed(
            "no retries",
            &flaky("attempts: 0"),
            vec![get("/"); MANY],
            |seen| {
                seen.iter().any(|outcome| status(outcome, 503))
                    && seen.iter().any(|outcome| is_by("v1", outcome))
            },
        ),
    ]
}

fn shares() -> Vec<Row> {
    let mirrored = |name, mirror: &str| {
        let http = format!(
            "[{{match: [{{uri: {{exact: /seen}}}}], route: [V2}}]}}, {{{mirror}, route: [V1}}]}}]"
        );
        Row::routed(name, &http, vec![get("/mirrored"), get("/seen")], |seen| {
            // The second call of a try tells of the tries before.
            is_by("v1", &seen[0]) && seen[1].text.contains("seen /mirrored of r")
        })
    };
    vec![
        Row::routed(
            "weights",
            "[{route: [V1, weight: 50}, V2, weight: 50}]}]",
            vec![get("/"); MANY],
            |seen| seen.iter().all(Outcome::is_served) && servers(seen).len() == 2,
        ),
        Row::routed(
            "all of the weight",
            "[{route: [V1, weight: 0}, V2, weight: 100}]}]",
            vec![get("/"); MANY],
            |seen| seen.iter().all(|outcome| is_by("v2", outcome)),
        ),
        mirrored("mirror", "mirror: {host: app, subset: v2}"),
        mirrored(
            "mirrors",
            "mirrors: [{destination: {host: app, subset: v2}, percentage: {value: 100}}]",
        ),
    ]
}

/// A call of a service by its own name.
pub(super) fn of(service: &str) -> Call {
    Call::new(Protocol::Http1, &format!("{service}.servers:80"))
}

fn balancing() -> Vec<Row> {
    let user = |number: usize| format!("user-{number}");
    vec![
        Row::about(
            "a hash of a header: one",
            vec![of("hashed").header("x-user", "jason"); MANY],
            |seen| seen.iter().all(Outcome::is_served) && servers(seen).len() == 1,
        ),
        Row::about(
            "a hash of a header: many",
            (0..MANY)
                .map(|number| of("hashed").header("x-user", &user(number)))
                .collect(),
            |seen| servers(seen).len() == 2,
        ),
        Row::about(
            "a hash of a query: one",
            vec![of("hashed-query").target("/?user=jason"); MANY],
            |seen| seen.iter().all(Outcome::is_served) && servers(seen).len() == 1,
        ),
        Row::about(
            "a hash of a query: many",
            (0..MANY)
                .map(|number| of("hashed-query").target(&format!("/?user={}", user(number))))
                .collect(),
            |seen| servers(seen).len() == 2,
        ),
        Row::about(
            "a hash of the source",
            vec![of("hashed-source"); MANY],
            |seen| seen.iter().all(Outcome::is_served) && servers(seen).len() == 1,
        ),
        Row::about("a hash of a cookie", vec![of("hashed-cookie")], |seen| {
            seen[0].is_served() && seen[0].text.contains("\"set-cookie\": \"user=")
        }),
        Row::about("outlier detection", vec![of("ejecting"); MANY], |seen| {
            seen.iter().all(|outcome| is_by("v1", outcome))
        }),
        Row::about(
            "a connection pool",
            vec![of("pooled").target("/?after=500"); MANY],
            |seen| {
                seen.iter().any(|outcome| status(outcome, 503))
                    && seen.iter().any(Outcome::is_served)
            },
        ),
        Row::about(
            "the nearest locality",
            vec![Call::new(Protocol::Http1, "app.servers:80").host("near.test"); MANY],
            |seen| seen.iter().all(|outcome| is_by("v1", outcome)),
        ),
        Row::about(
            "a locality by rule",
            vec![Call::new(Protocol::Http1, "app.servers:80").host("far.test"); MANY],
            |seen| seen.iter().all(|outcome| is_by("v2", outcome)),
        ),
    ]
}

fn services() -> Vec<Row> {
    let tcp = |address: &str| Call::new(Protocol::Tcp, address);
    vec![
        Row::about(
            "all of tcp's weight",
            vec![tcp("lines.servers:9000"); MANY],
            |seen| seen.iter().all(|outcome| is_by("v2", outcome)),
        ),
        Row::about(
            "weights of tcp",
            vec![tcp("lines.servers:9002"); MANY],
            |seen| seen.iter().all(Outcome::is_served) && servers(seen).len() == 2,
        ),
        Row::about(
            "protocols that nobody names",
            vec![
                Call::new(Protocol::Http1, "unnamed.servers:9006"),
                tcp("unnamed.servers:9004"),
            ],
            |seen| seen[0].text.contains("header x-sniffed: http\n") && seen[1].is_served(),
        ),
        Row::about(
            "a headless service",
            vec![
                Call::new(Protocol::Http1, "headless.servers:8001"),
                tcp("headless.servers:8004"),
            ],
            |seen| seen.iter().all(Outcome::is_served),
        ),
        Row::about("a name outside", vec![of("alias")], |seen| {
            seen[0].is_served()
        }),
        Row::about(
            "a name that nobody knows",
            vec![of("app").host("nowhere.test")],
            |seen| seen[0].is_served(),
        ),
        Row::routed(
            "a filter inserted",
            "[{route: [V1}]}]",
            vec![get("/")],
            |seen| is_by("v1", &seen[0]) && seen[0].text.contains("\"x-filter\": \"inserted\""),
        ),
        Row::about(
            "a virtual host patched",
            vec![of("app"), of("two-ports")],
            |seen| {
                seen[0].text.contains("\"x-host\": \"patched\"")
                    && seen[1].is_served()
                    && !seen[1].text.contains("x-host")
            },
        ),
        Row::routed(
            "several names",
            "[{route: [V2}]}]",
            vec![get("/").host(&format!("x.{HOST}"))],
            |seen| is_by("v2", &seen[0]),
        ),
    ]
}
