//! What RBAC rules mean, by table.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "json! literals and tables read best in place"
)]

use proto::envoy::config::rbac::v3 as wire;
use serde_json::{Value, json};

use crate::stream_info::DynamicMetadata;
use crate::stream_info::testing::{connection, mtls, request};

use super::*;

const PEER: &str = "spiffe://cluster.local/ns/default/sa/reviews";

fn engine(rules: Value) -> RbacEngine {
    RbacEngine::try_from(&proto::json::from_value::<wire::Rbac>(&rules).unwrap()).unwrap()
}

/// Rules that allow what one permission and one principal say.
fn allow(permission: Value, principal: Value) -> RbacEngine {
    engine(json!({"policies": {"p": {"permissions": [permission], "principals": [principal]}}}))
}

fn metadata() -> DynamicMetadata {
    let mut metadata = DynamicMetadata::default();
    let fields = proto::json::from_value::<proto::envoy::config::core::v3::Metadata>(
        &json!({"filter_metadata": {"jwt": {"claims": {"sub": "joe", "groups": ["a", "b"]}}}}),
    );
    for (name, fields) in fields.unwrap().filter_metadata {
        metadata.merge(name, fields);
    }
    metadata
}

fn is_allowed(engine: &RbacEngine, connection: &ConnectionInfo) -> bool {
    let headers = request("Host.example:80", "/a/b?x=1", &[("x-h", "v")]);
    let metadata = metadata();
    engine
        .decide(&RbacContext {
            connection,
            remote_ip: "172.16.0.9".parse().unwrap(),
            headers: Some(&headers),
            metadata: &metadata,
        })
        .is_allowed
}

#[test]
fn permissions_and_principals_match_what_they_name() {
    let any = json!({"any": true});
    let claim = |value: Value| json!({"metadata": {"filter": "jwt", "path": [{"key": "claims"}, {"key": "groups"}], "value": value}});
    let of_permission = [
        (json!({"any": true}), true),
        (
            json!({"header": {"name": ":method", "string_match": {"exact": "GET"}}}),
            true,
        ),
        (
            json!({"header": {"name": ":authority", "string_match": {"exact": "host.example:80", "ignore_case": true}}}),
            true,
        ),
        (
            json!({"header": {"name": "x-h", "string_match": {"exact": "w"}}}),
            false,
        ),
        (json!({"url_path": {"path": {"exact": "/a/b"}}}), true),
        (json!({"url_path": {"path": {"prefix": "/a/b?"}}}), false),
        (json!({"destination_port": 9080}), true),
        (
            json!({"destination_port_range": {"start": 9000, "end": 9080}}),
            false,
        ),
        (
            json!({"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}),
            true,
        ),
        (json!({"not_rule": {"any": true}}), false),
        (
            json!({"and_rules": {"rules": [{"any": true}, {"destination_port": 1}]}}),
            false,
        ),
        (
            json!({"or_rules": {"rules": [{"destination_port": 1}, {"any": true}]}}),
            true,
        ),
        (
            json!({"requested_server_name": {"suffix": ".example"}}),
            true,
        ),
        (
            claim(json!({"list_match": {"one_of": {"string_match": {"exact": "b"}}}})),
            true,
        ),
        (
            claim(json!({"list_match": {"one_of": {"string_match": {"exact": "c"}}}})),
            false,
        ),
    ];
    let of_principal = [
        (json!({"authenticated": {}}), true),
        (
            json!({"authenticated": {"principal_name": {"exact": PEER}}}),
            true,
        ),
        (
            json!({"authenticated": {"principal_name": {"safe_regex": {"regex": ".*/ns/default/.*"}}}}),
            true,
        ),
        (
            json!({"authenticated": {"principal_name": {"exact": "reviews"}}}),
            false,
        ),
        (
            json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": {"exact": PEER}}}),
            true,
        ),
        (
            json!({"direct_remote_ip": {"address_prefix": "10.0.0.1", "prefix_len": 32}}),
            true,
        ),
        (
            json!({"remote_ip": {"address_prefix": "172.16.0.0", "prefix_len": 16}}),
            true,
        ),
        (
            json!({"remote_ip": {"address_prefix": "10.0.0.1", "prefix_len": 32}}),
            false,
        ),
        (
            json!({"not_id": {"authenticated": {"principal_name": {"prefix": "spiffe://other"}}}}),
            true,
        ),
        (
            json!({"and_ids": {"ids": [{"any": true}, {"not_id": {"any": true}}]}}),
            false,
        ),
        (
            json!({"or_ids": {"ids": [{"not_id": {"any": true}}, {"any": true}]}}),
            true,
        ),
    ];
    let connection = mtls(PEER);
    for (permission, want) in of_permission {
        assert_eq!(
            is_allowed(&allow(permission.clone(), any.clone()), &connection),
            want,
            "{permission}"
        );
    }
    for (principal, want) in of_principal {
        assert_eq!(
            is_allowed(&allow(any.clone(), principal.clone()), &connection),
            want,
            "{principal}"
        );
    }
}

#[test]
fn a_plain_connection_is_never_authenticated() {
    let any = json!({"any": true});
    assert!(!is_allowed(
        &allow(any.clone(), json!({"authenticated": {}})),
        &connection()
    ));
    let other = json!({"authenticated": {"principal_name": {"prefix": ""}}});
    assert!(!is_allowed(&allow(any, other), &connection()));
}

#[test]
fn actions_decide() {
    let rules = |action: &str, is_matching: bool| {
        engine(json!({"action": action, "policies": {"p": {
            "permissions": [{"any": is_matching}], "principals": [{"any": true}]}}}))
    };
    for (action, is_matching, want) in [
        ("ALLOW", true, true),
        ("ALLOW", false, false),
        ("DENY", true, false),
        ("DENY", false, true),
        ("LOG", true, true),
        ("LOG", false, true),
    ] {
        assert_eq!(
            is_allowed(&rules(action, is_matching), &connection()),
            want,
            "{action} {is_matching}"
        );
    }
    assert!(
        !is_allowed(&engine(json!({})), &connection()),
        "ALLOW without policies denies all"
    );
    assert!(is_allowed(
        &engine(json!({"action": "DENY"})),
        &connection()
    ));
}

#[test]
fn http_rules_never_match_tcp() {
    let engine = allow(
        json!({"header": {"name": ":method", "string_match": {"prefix": ""}}}),
        json!({"any": true}),
    );
    let metadata = DynamicMetadata::default();
    let connection = connection();
    let decision = engine.decide(&RbacContext {
        connection: &connection,
        remote_ip: connection.remote_address.ip(),
        headers: None,
        metadata: &metadata,
    });
    assert_eq!(
        decision,
        Decision {
            is_allowed: false,
            policy: None,
            log_hint: None
        }
    );
}

#[test]
fn unsupported_rules_are_refused() {
    let try_engine = |policy: Value| {
        let rules = json!({"policies": {"p": policy}});
        RbacEngine::try_from(&proto::json::from_value::<wire::Rbac>(&rules).unwrap())
            .unwrap_err()
            .to_string()
    };
    let error = try_engine(
        json!({"permissions": [{"matcher": {"name": "m"}}], "principals": [{"any": true}]}),
    );
    assert_eq!(
        error,
        "policies[p].permissions[0]: permission matcher 'm' is not supported"
    );
    assert_eq!(
        try_engine(json!({})),
        "policies[p]: at least one permission and one principal are needed"
    );
}
