//! VirtualService.

use super::{check_table, findings_of};
use crate::resource::Metadata;

#[test]
fn hosts_and_gateways() {
    check_table(
        "VirtualService",
        &[
            (
                "{hosts: [a.b], http: [{route: [{destination: {host: c}}]}]}",
                &[],
            ),
            (
                "{hosts: ['*'], http: [{route: [{destination: {host: c}}]}]}",
                &["error hosts[0]"],
            ),
            (
                "{hosts: ['*'], gateways: [ns/gw], http: [{route: [{destination: {host: c}}]}]}",
                &[],
            ),
            (
                "{hosts: ['*.b', a.b], http: [{route: [{destination: {host: c}}]}]}",
                &["error hosts[1]"],
            ),
            (
                "{hosts: [1.1.1.1], http: [{route: [{destination: {host: c}}]}]}",
                &[],
            ),
            (
                "{hosts: [a!b], http: [{route: [{destination: {host: c}}]}]}",
                &["error hosts[0]"],
            ),
            (
                "{hosts: [a.b], gateways: ['ns/*', gw.ns.svc], http: [{redirect: {uri: /}}]}",
                &["error gateways[0]", "warning gateways[1]"],
            ),
            ("{hosts: [a.b]}", &["error "]),
            (
                "{gateways: [gw], http: [{route: [{destination: {host: c}}]}]}",
                &["error gateways"],
            ),
            (
                "{hosts: [a.b], exportTo: ['.', bar], http: [{redirect: {uri: /}}]}",
                &["error exportTo[1]"],
            ),
            (
                "{hosts: [a.b], exportTo: ['~'], http: [{redirect: {uri: /}}]}",
                &["error exportTo[0]"],
            ),
            (
                "{hosts: [a.b], exportTo: ['*', x], http: [{redirect: {uri: /}}]}",
                &["error exportTo"],
            ),
        ],
    );
}

#[test]
fn routes_do_one_thing() {
    check_table(
        "VirtualService",
        &[
            ("{hosts: [a.b], http: [{}]}", &["error http[0]"]),
            (
                "{hosts: [a.b], http: [{redirect: {uri: /}, route: [{destination: {host: c}}]}]}",
                &["error http[0].route"],
            ),
            (
                "{hosts: [a.b], http: [{redirect: {uri: /}, directResponse: {status: 200}}]}",
                &["error http[0].directResponse"],
            ),
            (
                "{hosts: [a.b], http: [{directResponse: {status: 199}}]}",
                &["error http[0].directResponse.status"],
            ),
            (
                "{hosts: [a.b], http: [{delegate: {name: x}, redirect: {uri: /}}]}",
                &["error http[0].redirect"],
            ),
            (
                "{http: [{delegate: {name: x}, redirect: {uri: /}}]}",
                &["error http[0].delegate"],
            ),
            (
                "{hosts: [a.b], http: [{redirect: {}}]}",
                &["error http[0].redirect"],
            ),
            (
                "{hosts: [a.b], http: [{redirect: {scheme: ftp, redirectCode: 200}}]}",
                &[
                    "error http[0].redirect.redirectCode",
                    "error http[0].redirect.scheme",
                ],
            ),
            (
                "{hosts: [a.b], http: [{route: [{}]}]}",
                &["error http[0].route[0].destination"],
            ),
            (
                "{hosts: [a.b], http: [{route: [{destination: {host: c}, weight: -1}]}]}",
                &["error http[0].route[0].weight"],
            ),
            (
                "{hosts: [a.b], http: [{route: [{destination: {host: c}}, {destination: {host: d}}]}]}",
                &["error http[0].route"],
            ),
            (
                "{hosts: [a.b], http: [{route: [{destination: {host: '*', subset: s_, port: {}}}]}]}",
                &[
                    "error http[0].route[0].destination.host",
                    "error http[0].route[0].destination.subset",
                    "error http[0].route[0].destination.port.number",
                ],
            ),
        ],
    );
}

#[test]
fn conditions() {
    let with = |condition: &str| {
        format!("{{hosts: [a.b], http: [{{match: [{condition}], redirect: {{uri: /}}}}]}}")
    };
    let meta = Metadata::new("bar", "foo");
    for (condition, want) in [
        ("{uri: {prefix: ''}}", &[][..]),
        ("{headers: {x: {}, ':path': {exact: a}}}", &[]),
        (
            "{headers: {x: {prefix: ''}}}",
            &["error http[0].match[0].headers.x.prefix"],
        ),
        (
            "{uri: {regex: 'a**'}}",
            &["error http[0].match[0].uri.regex"],
        ),
        ("{withoutHeaders: {x: {regex: '*'}}}", &[]),
        (
            "{withoutHeaders: {x: {regex: '?'}}}",
            &["error http[0].match[0].withoutHeaders.x.regex"],
        ),
        (
            "{headers: {'a b': {exact: c}}}",
            &["error http[0].match[0].headers.a b"],
        ),
        (
            "{headers: {'@request.auth.claims.x': {exact: c}}}",
            &["error http[0].match[0].headers.@request.auth.claims.x"],
        ),
        ("{port: 65536}", &["error http[0].match[0].port"]),
        (
            "{sourceLabels: {'': a}, sourceNamespace: a_b}",
            &[
                "error http[0].match[0].sourceLabels.",
                "error http[0].match[0].sourceNamespace",
            ],
        ),
    ] {
        assert_eq!(
            findings_of("VirtualService", &meta, &with(condition)),
            want,
            "{condition}"
        );
    }
}

#[test]
fn actions() {
    let with = |action: &str| {
        format!("{{hosts: [a.b], http: [{{route: [{{destination: {{host: c}}}}], {action}}}]}}")
    };
    let meta = Metadata::new("bar", "foo");
    for (action, want) in [
        ("timeout: 1m", &[][..]),
        ("timeout: 0s", &["error http[0].timeout"]),
        ("timeout: 0.0000001s", &["error http[0].timeout"]),
        (
            "retries: {attempts: 2, retryOn: '5xx,503,gateway-error'}",
            &[],
        ),
        ("retries: {attempts: 0}", &[]),
        ("retries: {retryOn: 5xx}", &["error http[0].retries"]),
        (
            "retries: {attempts: -1, retryOn: 'x'}",
            &[
                "error http[0].retries.attempts",
                "error http[0].retries.retryOn",
            ],
        ),
        ("fault: {}", &["error http[0].fault"]),
        (
            "fault: {abort: {percentage: {value: 101}}}",
            &[
                "error http[0].fault.abort.percentage.value",
                "warning http[0].fault.abort",
            ],
        ),
        (
            "fault: {abort: {grpcStatus: NOT_FOUND}, delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}",
            &["error http[0].fault.delay.percentage.value"],
        ),
        (
            "mirror: {host: d}, mirrors: [{destination: {host: e}}]",
            &["error http[0].mirror"],
        ),
        (
            "mirror: {host: d}, mirrorPercent: 101",
            &[
                "warning http[0].mirrorPercent",
                "error http[0].mirrorPercent",
            ],
        ),
        (
            "mirrors: [{percentage: {value: -1}}]",
            &[
                "error http[0].mirrors[0].destination",
                "error http[0].mirrors[0].percentage",
            ],
        ),
    ] {
        assert_eq!(
            findings_of("VirtualService", &meta, &with(action)),
            want,
            "{action}"
        );
    }
}

#[test]
fn rewrites_and_headers() {
    let with = |action: &str| {
        format!("{{hosts: [a.b], http: [{{route: [{{destination: {{host: c}}}}], {action}}}]}}")
    };
    let meta = Metadata::new("bar", "foo");
    for (action, want) in [
        ("rewrite: {}", &["error http[0].rewrite"][..]),
        (
            "rewrite: {uri: /, uriRegexRewrite: {match: a, rewrite: b}}",
            &["error http[0].rewrite"],
        ),
        (
            "rewrite: {uriRegexRewrite: {match: '(', rewrite: b}}",
            &["error http[0].rewrite.uriRegexRewrite.match"],
        ),
        (
            "rewrite: {authority: x}, headers: {request: {set: {Host: x.y}}}",
            &["error http[0]"],
        ),
        (
            "headers: {request: {set: {':authority': x, ':path': z}, remove: [host]}}",
            &[
                "error http[0].headers.request.set.:path",
                "error http[0].headers.request.remove[0]",
            ],
        ),
        (
            "headers: {response: {set: {host: x}, add: {a: 'b%c'}}}",
            &[
                "error http[0].headers.response.set.host",
                "error http[0].headers.response.add.a",
            ],
        ),
        (
            "corsPolicy: {allowOrigins: [{exact: ''}], allowMethods: [PUTT], allowHeaders: ['*', 'a b'], maxAge: 1.5s}",
            &[
                "error http[0].corsPolicy.allowOrigins[0]",
                "error http[0].corsPolicy.allowMethods[0]",
                "error http[0].corsPolicy.allowHeaders[1]",
                "error http[0].corsPolicy.maxAge",
            ],
        ),
    ] {
        assert_eq!(
            findings_of("VirtualService", &meta, &with(action)),
            want,
            "{action}"
        );
    }
}

#[test]
fn tcp_and_tls() {
    check_table(
        "VirtualService",
        &[
            (
                "{hosts: [a.b], tls: [{match: [{sniHosts: [a.b]}], route: [{destination: {host: c}}]}]}",
                &[],
            ),
            (
                "{hosts: [a.b], tls: [{match: [{sniHosts: [x.y]}], route: [{destination: {host: c}}]}]}",
                &["error tls[0].match[0].sniHosts[0]"],
            ),
            (
                "{hosts: [a.b], tls: [{route: []}]}",
                &["error tls[0].match", "error tls[0].route"],
            ),
            (
                "{hosts: [a.b], tls: [{match: [{}], route: [{destination: {host: c}}]}]}",
                &["error tls[0].match[0].sniHosts"],
            ),
            (
                "{hosts: [a.b], tcp: [{match: [{destinationSubnets: [1.1.1.1/48, 10.0.0.0/8]}], route: [{}]}]}",
                &[
                    "error tcp[0].match[0].destinationSubnets[0]",
                    "error tcp[0].route[0].destination",
                ],
            ),
            (
                "{hosts: [a.b], tcp: [{match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: c}}]}]}",
                &["warning tcp[0].match[0].sourceSubnet"],
            ),
        ],
    );
}

#[test]
fn unreachable_routes() {
    let redirect = "redirect: {uri: /}";
    check_table(
        "VirtualService",
        &[
            (
                &format!("{{hosts: [a.b], http: [{{{redirect}}}, {{{redirect}}}]}}"),
                &["warning http[1]"],
            ),
            (
                &format!(
                    "{{hosts: [a.b], http: [{{match: [{{uri: {{exact: /a}}}}], {redirect}}}, {{match: [{{uri: {{exact: /a}}, name: x}}], {redirect}}}]}}"
                ),
                &["warning http[1].match[0]", "warning http[1]"],
            ),
            (
                &format!(
                    "{{hosts: [a.b], http: [{{match: [{{uri: {{prefix: /a}}}}], {redirect}}}, {{match: [{{uri: {{prefix: /ab}}}}], {redirect}}}]}}"
                ),
                &["warning http[1].match[0].uri"],
            ),
            (
                &format!(
                    "{{hosts: [a.b], http: [{{match: [{{uri: {{prefix: /a}}, port: 1}}], {redirect}}}, {{match: [{{uri: {{prefix: /ab}}}}], {redirect}}}]}}"
                ),
                &[],
            ),
        ],
    );
}
