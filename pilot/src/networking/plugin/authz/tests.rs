//! Rules to RBAC, as tables. Matching is tried by a small evaluator of the generated policies.

use std::collections::BTreeMap;

use proto::envoy::config::rbac::v3::{
    Permission, Principal, permission::Rule as Perm, principal::Identifier,
};
use proto::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use proto::envoy::r#type::matcher::v3::{
    StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use proto::istio::security::v1beta1::{
    Condition, Operation, Rule, Source,
    rule::{From, To},
};

use super::Layer;
use super::rule::{Context, build};

#[derive(Clone, Default)]
struct Request {
    method: &'static str,
    path: &'static str,
    authority: &'static str,
    headers: BTreeMap<&'static str, &'static str>,
    peer: Option<&'static str>,
    ip: &'static str,
    port: u32,
}

fn context(layer: Layer, is_allow: bool) -> Context<'static> {
    Context {
        layer,
        is_allow,
        namespace: "default",
        trust_domain: "cluster.local",
        aliases: &[],
    }
}

fn text_matches(matcher: &StringMatcher, value: &str) -> bool {
    let (value, lower) = (value.to_owned(), |text: &str| {
        if matcher.ignore_case {
            text.to_lowercase()
        } else {
            text.to_owned()
        }
    });
    let value = lower(&value);
    match matcher.match_pattern.as_ref().unwrap() {
        MatchPattern::Exact(text) => value == lower(text),
        MatchPattern::Prefix(text) => value.starts_with(&lower(text)),
        MatchPattern::Suffix(text) => value.ends_with(&lower(text)),
        MatchPattern::Contains(text) => value.contains(&lower(text)),
        MatchPattern::SafeRegex(regex) => regex::Regex::new(&format!("^(?:{})$", regex.regex))
            .unwrap()
            .is_match(&value),
        MatchPattern::Custom(_) => unreachable!("not generated"),
    }
}

fn header_matches(matcher: &HeaderMatcher, request: &Request) -> bool {
    let value = match matcher.name.as_str() {
        ":method" => Some(request.method),
        ":authority" => Some(request.authority),
        name => request.headers.get(name).copied(),
    };
    match (matcher.header_match_specifier.as_ref().unwrap(), value) {
        (HeaderMatchSpecifier::PresentMatch(present), value) => value.is_some() == *present,
        (HeaderMatchSpecifier::StringMatch(matcher), Some(value)) => text_matches(matcher, value),
        _ => false,
    }
}

fn in_range(range: &proto::envoy::config::core::v3::CidrRange, ip: &str) -> bool {
    let net = format!("{}/{}", range.address_prefix, range.prefix_len.unwrap());
    net.parse::<ipnet::IpNet>()
        .unwrap()
        .contains(&ip.parse::<std::net::IpAddr>().unwrap())
}

fn permits(permission: &Permission, request: &Request) -> bool {
    match permission.rule.as_ref().unwrap() {
        Perm::AndRules(set) => set.rules.iter().all(|rule| permits(rule, request)),
        Perm::OrRules(set) => set.rules.iter().any(|rule| permits(rule, request)),
        Perm::NotRule(rule) => !permits(rule, request),
        Perm::Any(any) => *any,
        Perm::Header(matcher) => header_matches(matcher, request),
        Perm::UrlPath(matcher) => match matcher.rule.as_ref().unwrap() {
            path_matcher::Rule::Path(matcher) => text_matches(matcher, request.path),
        },
        Perm::DestinationPort(port) => *port == request.port,
        other => unreachable!("not tried here: {other:?}"),
    }
}

fn is_principal(principal: &Principal, request: &Request) -> bool {
    match principal.identifier.as_ref().unwrap() {
        Identifier::AndIds(set) => set.ids.iter().all(|id| is_principal(id, request)),
        Identifier::OrIds(set) => set.ids.iter().any(|id| is_principal(id, request)),
        Identifier::NotId(id) => !is_principal(id, request),
        Identifier::Any(any) => *any,
        Identifier::Authenticated(matcher) => request
            .peer
            .is_some_and(|peer| text_matches(matcher.principal_name.as_ref().unwrap(), peer)),
        Identifier::DirectRemoteIp(range) | Identifier::RemoteIp(range) => {
            in_range(range, request.ip)
        }
        Identifier::Header(matcher) => header_matches(matcher, request),
        other => unreachable!("not tried here: {other:?}"),
    }
}

fn matches(rule: &Rule, request: &Request) -> bool {
    let policy = build(rule, &context(Layer::Http, true)).unwrap();
    policy
        .permissions
        .iter()
        .any(|permission| permits(permission, request))
        && policy
            .principals
            .iter()
            .any(|principal| is_principal(principal, request))
}

fn list(values: &[&str]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn to(operation: Operation) -> Vec<To> {
    vec![To {
        operation: Some(operation),
    }]
}

fn from(source: Source) -> Vec<From> {
    vec![From {
        source: Some(source),
    }]
}

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

fn request() -> Request {
    Request {
        method: "GET",
        path: "/a/b",
        authority: "Shop.example:8080",
        ip: "10.0.0.7",
        port: 9080,
        peer: Some(REVIEWS),
        ..Request::default()
    }
}

#[test]
fn empty_rule_matches_everything() {
    assert!(matches(&Rule::default(), &request()));
    assert!(matches(
        &Rule::default(),
        &Request {
            peer: None,
            ..request()
        }
    ));
}

#[test]
fn text_has_four_forms() {
    for (pattern, want) in [
        ("/a/b", true),
        ("/a*", true),
        ("*/b", true),
        ("*", true),
        ("/a", false),
        ("/a/{*}", true),
        ("/{**}", true),
        ("/{*}", false),
    ] {
        let rule = Rule {
            to: to(Operation {
                paths: list(&[pattern]),
                ..Operation::default()
            }),
            ..Rule::default()
        };
        assert_eq!(matches(&rule, &request()), want, "{pattern}");
    }
}

#[test]
fn templates_of_paths_count_slashes() {
    for (pattern, path, want) in [
        ("/a/{*}", "/a/b/", false),
        ("/a/{*}/", "/a/b/", true),
        ("/a/{*}/", "/a/b", false),
        ("/a/{*}/c.d", "/a/b/c.d", true),
        ("/a/{*}/c.d", "/a/b/c-d", false),
        ("/a/{**}", "/a", false),
        ("/a/{**}", "/a/", true),
        ("/a/{**}", "/a/b/c", true),
        ("/a/{**}/c", "/a/b/b/c", true),
    ] {
        let rule = Rule {
            to: to(Operation {
                paths: list(&[pattern]),
                ..Operation::default()
            }),
            ..Rule::default()
        };
        let request = Request { path, ..request() };
        assert_eq!(matches(&rule, &request), want, "{pattern} {path}");
    }
}

#[test]
fn hosts_ignore_case_and_keep_their_port() {
    for (pattern, want) in [
        ("shop.example:8080", true),
        ("shop.example", false),
        ("shop.example*", true),
        ("*", true),
    ] {
        let rule = Rule {
            to: to(Operation {
                hosts: list(&[pattern]),
                ..Operation::default()
            }),
            ..Rule::default()
        };
        assert_eq!(matches(&rule, &request()), want, "{pattern}");
    }
}

#[test]
fn fields_of_one_operation_all_have_to_hold() {
    let operation = Operation {
        methods: list(&["GET", "HEAD"]),
        ports: list(&["9080"]),
        ..Operation::default()
    };
    let rule = Rule {
        to: to(operation.clone()),
        ..Rule::default()
    };
    assert!(matches(&rule, &request()));
    assert!(!matches(
        &rule,
        &Request {
            port: 80,
            ..request()
        }
    ));
    assert!(!matches(
        &rule,
        &Request {
            method: "POST",
            ..request()
        }
    ));
    let negated = Rule {
        to: to(Operation {
            not_methods: list(&["GET"]),
            ..operation
        }),
        ..Rule::default()
    };
    assert!(!matches(&negated, &request()));
}

#[test]
fn sources_are_told_by_their_certificate_and_address() {
    for (source, want) in [
        (
            Source {
                principals: list(&["cluster.local/ns/default/sa/reviews"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                principals: list(&["*/sa/reviews"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                principals: list(&["cluster.local/ns/default/*"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                principals: list(&["cluster.local/ns/default/sa/ratings"]),
                ..Source::default()
            },
            false,
        ),
        (
            Source {
                namespaces: list(&["default"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                namespaces: list(&["def*"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                namespaces: list(&["prod"]),
                ..Source::default()
            },
            false,
        ),
        (
            Source {
                not_namespaces: list(&["prod"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                service_accounts: list(&["reviews"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                service_accounts: list(&["other/reviews"]),
                ..Source::default()
            },
            false,
        ),
        (
            Source {
                trust_domains: list(&["cluster.*"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                ip_blocks: list(&["10.0.0.0/8"]),
                ..Source::default()
            },
            true,
        ),
        (
            Source {
                not_ip_blocks: list(&["10.0.0.7"]),
                ..Source::default()
            },
            false,
        ),
    ] {
        let rule = Rule {
            from: from(source.clone()),
            ..Rule::default()
        };
        assert_eq!(matches(&rule, &request()), want, "{source:?}");
    }
}

#[test]
fn plaintext_has_no_identity() {
    let rule = Rule {
        from: from(Source {
            principals: list(&["*"]),
            ..Source::default()
        }),
        ..Rule::default()
    };
    assert!(matches(&rule, &request()));
    assert!(!matches(
        &rule,
        &Request {
            peer: None,
            ..request()
        }
    ));
}

#[test]
fn conditions_hold_for_every_source_and_operation() {
    let when = vec![Condition {
        key: "request.headers[x-user]".to_owned(),
        values: list(&["ann*"]),
        not_values: list(&["anna"]),
    }];
    let rule = Rule {
        when,
        from: from(Source {
            namespaces: list(&["default"]),
            ..Source::default()
        }),
        ..Rule::default()
    };
    let with = |user| Request {
        headers: BTreeMap::from([("x-user", user)]),
        ..request()
    };
    assert!(matches(&rule, &with("ann")));
    assert!(!matches(&rule, &with("anna")));
    assert!(!matches(&rule, &with("bob")));
    assert!(!matches(&rule, &request()));
}

#[test]
fn tcp_drops_allow_rules_about_http_and_widens_deny_rules() {
    let operation = Operation {
        methods: list(&["GET"]),
        ports: list(&["9080"]),
        ..Operation::default()
    };
    let rule = Rule {
        to: to(operation),
        ..Rule::default()
    };
    assert!(build(&rule, &context(Layer::Tcp, true)).is_err());
    let policy = build(&rule, &context(Layer::Tcp, false)).unwrap();
    assert!(permits(
        &policy.permissions[0],
        &Request {
            method: "",
            ..request()
        }
    ));
    assert!(!permits(
        &policy.permissions[0],
        &Request {
            port: 1,
            ..request()
        }
    ));
}
