//! The kinds of security, telemetry, extensions, Mixer, and the 1.4 line's.

use super::{check_table, findings_of};
use crate::resource::Metadata;

#[test]
fn peer_authentication() {
    check_table(
        "PeerAuthentication",
        &[
            ("{mtls: {mode: STRICT}}", &[]),
            (
                "{portLevelMtls: {80: {mode: DISABLE}}}",
                &["error portLevelMtls"],
            ),
            (
                "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {}, 0: {}}}",
                &["error portLevelMtls.0"],
            ),
            (
                "{selector: {matchLabels: {'': b, 'c*': d}}}",
                &[
                    "error selector.matchLabels.",
                    "error selector.matchLabels.c*",
                ],
            ),
        ],
    );
}

#[test]
fn request_authentication() {
    let with = |rule: &str| format!("{{jwtRules: [{{{rule}}}]}}");
    check_table(
        "RequestAuthentication",
        &[
            (&with("issuer: a, jwksUri: 'https://a.b/c'"), &[]),
            (&with(""), &["error jwtRules[0]"]),
            (
                &with("jwksUri: 'https://a:b'"),
                &["error jwtRules[0].jwksUri"],
            ),
            (&with("issuer: a, jwks: x"), &["error jwtRules[0].jwks"]),
            (
                &with(r#"issuer: a, jwks: '{"keys": [{"kty": "RSA", "n": "x", "e": "AQAB"}]}'"#),
                &[],
            ),
            (
                &with(
                    r#"issuer: a, jwks: '{"keys": [{"kty": "RSA", "n": "x", "e": "AQAB", "d": "y"}, {"kty": "?"}]}'"#,
                ),
                &["warning jwtRules[0].jwks", "error jwtRules[0].jwks"],
            ),
            (
                &with(
                    "issuer: a, audiences: [''], fromHeaders: [{}], fromParams: [''], fromCookies: [''], timeout: 0s",
                ),
                &[
                    "error jwtRules[0].audiences[0]",
                    "error jwtRules[0].fromHeaders[0].name",
                    "error jwtRules[0].fromParams[0]",
                    "error jwtRules[0].fromCookies[0]",
                    "error jwtRules[0].timeout",
                ],
            ),
            (
                &with(
                    "issuer: a, outputClaimToHeaders: [{header: a}, {header: ':authority', claim: b}]",
                ),
                &[
                    "error jwtRules[0].outputClaimToHeaders[0]",
                    "error jwtRules[0].outputClaimToHeaders[1].header",
                ],
            ),
            (
                "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a, namespace: b}, {group: x, kind: Gateway}]}",
                &[
                    "error ",
                    "error targetRefs[0].namespace",
                    "error targetRefs[1].name",
                    "error targetRefs[1].kind",
                ],
            ),
        ],
    );
}

#[test]
fn authorization_policy() {
    check_table(
        "AuthorizationPolicy",
        &[
            ("{}", &[]),
            ("{rules: [{}]}", &[]),
            ("{action: DENY}", &["error rules"]),
            ("{action: CUSTOM, rules: [{}]}", &["error provider.name"]),
            ("{provider: {name: a}, rules: [{}]}", &["error provider"]),
            (
                "{action: CUSTOM, provider: {name: a}, rules: [{from: [{source: {namespaces: [a]}}], when: [{key: request.auth.principal, values: [a]}]}]}",
                &[
                    "error rules[0].from[0].source.namespaces",
                    "error rules[0].when[0].key",
                ],
            ),
            (
                "{rules: [{from: [{}, {source: {}}], to: [{}, {operation: {}}]}]}",
                &[
                    "error rules[0].from[0].source",
                    "error rules[0].from[1].source",
                    "error rules[0].to[0].operation",
                    "error rules[0].to[1].operation",
                ],
            ),
            (
                "{rules: [{from: [{source: {ipBlocks: [x], notRemoteIpBlocks: [10.0.0.0/33], principals: ['']}}]}]}",
                &[
                    "error rules[0].from[0].source.principals[0]",
                    "error rules[0].from[0].source.ipBlocks[0]",
                    "error rules[0].from[0].source.notRemoteIpBlocks[0]",
                ],
            ),
            (
                "{rules: [{from: [{source: {serviceAccounts: [a, ns/b, 'c*'], namespaces: [d]}}]}]}",
                &[
                    "error rules[0].from[0].source.serviceAccounts",
                    "error rules[0].from[0].source.serviceAccounts[2]",
                ],
            ),
            (
                "{rules: [{to: [{operation: {ports: ['80', x, '65536'], paths: ['/{*}/a', '/{**}/{*}']}}]}]}",
                &[
                    "error rules[0].to[0].operation.ports[1]",
                    "error rules[0].to[0].operation.ports[2]",
                    "error rules[0].to[0].operation.paths[1]",
                ],
            ),
            (
                "{rules: [{when: [{values: [a]}, {key: source.ip}, {key: 'source.ip', values: [x]}, {key: key1, values: [a]}]}]}",
                &[
                    "error rules[0].when[0].key",
                    "error rules[0].when[1]",
                    "error rules[0].when[2].values[0]",
                    "error rules[0].when[3].key",
                ],
            ),
            (
                "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
                &["warning rules[0]"],
            ),
            (
                "{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}",
                &[],
            ),
        ],
    );
}

#[test]
fn telemetry() {
    check_table(
        "Telemetry",
        &[
            ("{accessLogging: [{providers: [{name: envoy}]}]}", &[]),
            (
                "{accessLogging: [{filter: {expression: 'response.code >= 500'}}]}",
                &[],
            ),
            (
                "{accessLogging: [{filter: {expression: 'response.code >='}}]}",
                &["error accessLogging[0].filter.expression"],
            ),
            (
                "{metrics: [{providers: [{}], overrides: [{match: {customMetric: ''}, tagOverrides: {a: {}, b: {operation: REMOVE, value: x}}}]}]}",
                &[
                    "error metrics[0].providers[0].name",
                    "error metrics[0].overrides[0].tagOverrides.a.value",
                    "error metrics[0].overrides[0].tagOverrides.b.value",
                    "error metrics[0].overrides[0].match.customMetric",
                ],
            ),
            (
                "{tracing: [{randomSamplingPercentage: 101, customTags: {a: {literal: {}}}}, {}]}",
                &[
                    "warning tracing",
                    "error tracing[0].randomSamplingPercentage",
                    "error tracing[0].customTags.a.literal.value",
                ],
            ),
        ],
    );
}

#[test]
fn wasm_plugin() {
    check_table(
        "WasmPlugin",
        &[
            ("{url: 'oci://a.b/c:1'}", &[]),
            (
                "{url: 'a.b:80/c', match: [{ports: [{number: 0}]}]}",
                &["error match[0].ports[0].number"],
            ),
            ("{}", &["error url"]),
            ("{url: 'ftp://a'}", &["error url"]),
            (
                "{url: '#%blah$#@', sha256: ABC}",
                &["error url", "error sha256"],
            ),
            (
                "{url: a, vmConfig: {env: [{name: a}, {name: a}, {}, {name: b, valueFrom: HOST, value: x}]}}",
                &[
                    "error vmConfig.env[1].name",
                    "error vmConfig.env[2].name",
                    "error vmConfig.env[3].value",
                ],
            ),
        ],
    );
}

#[test]
fn authentication_policies_of_the_1_4_line() {
    let find = |namespace: &str, name: &str, spec: &str| {
        findings_of("policies", &Metadata::new(namespace, name), spec)
    };
    let nothing: [&str; 0] = [];
    assert_eq!(find("bar", "default", "peers: [{mtls: {}}]"), nothing);
    assert_eq!(
        find("bar", "foo", "targets: [{name: a, ports: [{number: 80}]}]"),
        nothing
    );
    assert_eq!(find("bar", "foo", "{}"), ["error "]);
    assert_eq!(
        find("bar", "default", "targets: [{name: a}]"),
        ["error targets"]
    );
    assert_eq!(
        find("", "foo", "targets: [{name: a.b}]"),
        ["error ", "error targets", "error targets[0].name"]
    );
    assert_eq!(
        find(
            "bar",
            "default",
            "origins: [{}, {jwt: {issuer: a, jwksUri: x}}, {jwt: {issuer: a}}]"
        ),
        [
            "error origins[0].jwt",
            "error origins[1].jwt.jwksUri",
            "error origins[2].jwt.issuer"
        ]
    );
}

#[test]
fn authorization_of_the_1_4_line() {
    let default = Metadata::new("", "default");
    let nothing: [&str; 0] = [];
    assert_eq!(
        findings_of("clusterrbacconfigs", &default, "mode: 'ON'"),
        nothing
    );
    assert_eq!(
        findings_of("clusterrbacconfigs", &default, "mode: ON_WITH_INCLUSION"),
        ["error inclusion"]
    );
    assert_eq!(
        findings_of("clusterrbacconfigs", &Metadata::new("", "x"), "mode: 'ON'"),
        ["error "]
    );
    check_table(
        "ServiceRole",
        &[
            ("{rules: [{services: ['*'], methods: [GET]}]}", &[]),
            ("{}", &["error rules"]),
            (
                "{rules: [{methods: [GET], notMethods: [PUT], ports: [1], constraints: [{key: destination.port, values: ['1']}, {}]}]}",
                &[
                    "error rules[0].methods",
                    "error rules[0].constraints[0].key",
                    "error rules[0].constraints[1].key",
                    "error rules[0].constraints[1].values",
                ],
            ),
        ],
    );
    check_table(
        "ServiceRoleBinding",
        &[
            (
                "{subjects: [{user: a}], roleRef: {kind: ServiceRole, name: b}}",
                &[],
            ),
            ("{}", &["error subjects", "error "]),
            (
                "{subjects: [{}, {names: ['*']}, {namespaces: [a], properties: {source.namespace: b}}], role: /}",
                &[
                    "error subjects[0]",
                    "error subjects[1].names[0]",
                    "error subjects[2].properties.source.namespace",
                    "error role",
                ],
            ),
            (
                "{subjects: [{user: a}], role: x, roleRef: {kind: Role}}",
                &["error ", "error roleRef.kind", "error roleRef.name"],
            ),
        ],
    );
}

#[test]
fn mixer() {
    check_table(
        "rule",
        &[
            ("{actions: [{handler: a, instances: [b]}]}", &[]),
            ("{}", &["warning "]),
        ],
    );
    check_table(
        "handler",
        &[
            ("{compiledAdapter: stdio}", &[]),
            ("{compiledAdapter: a, adapter: b}", &["warning adapter"]),
        ],
    );
    check_table(
        "instance",
        &[
            ("{compiledTemplate: metric, params: {value: '1'}}", &[]),
            ("{}", &["warning "]),
        ],
    );
    check_table(
        "attributemanifest",
        &[
            ("{attributes: {a.b: {valueType: STRING}}}", &[]),
            ("{attributes: {a: {}}}", &["warning attributes.a.valueType"]),
        ],
    );
}

#[test]
fn what_pilot_takes_of_mixer() {
    check_table(
        "QuotaSpec",
        &[
            (
                "{rules: [{match: [{clause: {a: {exact: b}}}], quotas: [{quota: q, charge: 1}]}]}",
                &[],
            ),
            (
                "{rules: [{match: [{clause: {a: {prefix: ''}}}], quotas: [{}]}, {}]}",
                &[
                    "error rules[0].match[0].clause.a.prefix",
                    "error rules[0].quotas[0].quota",
                    "error rules[0].quotas[0].charge",
                    "error rules[1].quotas",
                ],
            ),
        ],
    );
    check_table(
        "QuotaSpecBinding",
        &[
            (
                "{services: [{name: a, namespace: b}, {service: '*'}], quotaSpecs: [{name: q}]}",
                &[],
            ),
            ("{}", &["error services", "error quotaSpecs"]),
            (
                "{services: [{}, {name: a, service: b}], quotaSpecs: [{}]}",
                &[
                    "error services[0]",
                    "error services[1]",
                    "error quotaSpecs[0].name",
                ],
            ),
        ],
    );
    check_table(
        "HTTPAPISpec",
        &[
            (
                "{attributes: {attributes: {a: {stringValue: b}}}, patterns: [{httpMethod: GET, uriTemplate: /a}], apiKeys: [{query: k}]}",
                &[],
            ),
            (
                "{attributes: {attributes: {a: {stringValue: ''}}}, patterns: [{uriTemplate: /a}], apiKeys: [{cookie: ''}]}",
                &[
                    "error attributes.attributes.a",
                    "error patterns[0].httpMethod",
                    "error apiKeys[0].cookie",
                ],
            ),
        ],
    );
    check_table(
        "HTTPAPISpecBinding",
        &[
            ("{services: [{name: a}], apiSpecs: [{name: p}]}", &[]),
            ("{apiSpecs: [{name: p}]}", &["error services"]),
        ],
    );
}
