//! Tokens of every algorithm, requirements as Istio writes them, and what the upstream sees.

mod tokens;

use proto_mesh::jwt::{Failure, KeySet, Token};
use serde_json::{Value, json};

use crate::http::testing::{Proxy, Upstream, manager, on_worker, with_filters};

use tokens::{AUDIENCE, EDDSA, ES256, EXPIRED, KEYS, OTHER, PS256, RS256, WRONG_KEY};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn every_algorithm_verifies() {
    let keys = KeySet::parse(KEYS.as_bytes()).unwrap();
    for text in [RS256, PS256, ES256, EDDSA] {
        let token = Token::parse(text).unwrap();
        assert_eq!(keys.verify(&token), Ok(()), "{}", token.algorithm);
        // The same signature over something else is worth nothing.
        let claims = text.split('.').nth(1).unwrap();
        let forged = text.replacen(claims, "eyJpc3MiOiJmb3JnZWQifQ", 1);
        assert_eq!(
            keys.verify(&Token::parse(&forged).unwrap()),
            Err(Failure::BadSignature)
        );
    }
    assert_eq!(
        keys.verify(&Token::parse(WRONG_KEY).unwrap()),
        Err(Failure::NoMatchingKey)
    );
    // {"alg":"none"}, {"alg":"HS256"}
    for header in ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJIUzI1NiJ9"] {
        let text = format!("{header}.e30.e30");
        assert_eq!(
            keys.verify(&Token::parse(&text).unwrap()),
            Err(Failure::BadAlgorithm)
        );
    }
}

#[test]
fn what_is_no_token_is_refused() {
    for text in [
        "",
        "a",
        "a.b",
        "a.b.c.d",
        "e30.e30.!",
        "e30.e30.",
        "eyJhbGciOiJFUzI1NiJ9.bm8.",
        "é.é.é",
    ] {
        assert!(Token::parse(text).is_err(), "{text}");
    }
}

/// The filter as Istio configures it for one rule: a provider, or no token.
async fn proxy(extra: Value, upstream: &Upstream) -> Proxy {
    let mut provider = json!({"issuer": "https://issuer/a", "audiences": ["https://svc/"], "local_jwks": {"inline_string": KEYS},
        "payload_in_metadata": "payload", "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]},
        "claim_to_headers": [{"header_name": "x-role", "claim_name": "realm.role"}], "forward_payload_header": "x-payload"});
    provider
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    let jwt = json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"origins-0": provider}, "bypass_cors_preflight": true,
        "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [
            {"provider_name": "origins-0"}, {"allow_missing": {}}]}}}]}});
    let claim = |path: &[&str], value: Value| {
        let path: Vec<Value> = path.iter().map(|key| json!({"key": key})).collect();
        json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": path, "value": value}})
    };
    let rbac = json!({"name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": {"p": {
            "permissions": [{"url_path": {"path": {"prefix": "/members"}}}],
            "principals": [{"not_id": {"and_ids": {"ids": [
                claim(&["payload", "sub"], json!({"string_match": {"exact": "joe"}})),
                claim(&["payload", "scope"], json!({"list_match": {"one_of": {"string_match": {"exact": "write"}}}}))]}}}]}}}}});
    let routes = json!([
        {"match": {"prefix": "/", "dynamic_metadata": [{"filter": "envoy.filters.http.jwt_authn",
            "path": [{"key": "payload"}, {"key": "sub"}], "value": {"string_match": {"exact": "joe"}}}]},
         "route": {"cluster": "c"}, "request_headers_to_add": [{"header": {"key": "x-route", "value": "joe"}}]},
        {"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
    Proxy::start(
        with_filters(manager(routes), &[jwt, rbac]),
        &[upstream.cluster("c")],
    )
    .await
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[test]
fn a_good_token_is_used_and_taken_away() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let proxy = proxy(json!({}), &upstream).await;
        let response = proxy.get("/members", &bearer(ES256)).await;
        assert!(response.ends_with("ok"), "{response}");
        let request = upstream.request().await;
        assert!(
            request.contains("x-role: admin\r\n") && request.contains("x-route: joe\r\n"),
            "{request}"
        );
        let payload = ES256.split('.').nth(1).unwrap();
        assert!(
            request.contains(&format!("x-payload: {payload}\r\n")),
            "{request}"
        );
        assert!(!request.contains("authorization"), "{request}");
        let response = proxy
            .get(&format!("/members?access_token={RS256}"), "")
            .await;
        assert!(response.ends_with("ok"), "{response}");
        assert_eq!(proxy.stat("http.test.jwt_authn.allowed"), 2);
    });
}

#[test]
fn without_a_token_the_policy_decides() {
    on_worker(async {
        let mut upstream = Upstream::start(&[OK]).await;
        let proxy = proxy(json!({}), &upstream).await;
        assert!(
            proxy
                .get("/", "x-role: forged\r\nx-payload: forged\r\n")
                .await
                .ends_with("ok")
        );
        let request = upstream.request().await;
        assert!(!request.contains("forged"), "{request}");
        assert!(
            proxy
                .get("/members", "")
                .await
                .ends_with("RBAC: access denied")
        );
    });
}

#[test]
fn a_bad_token_is_refused_in_envoys_words() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let proxy = proxy(json!({}), &upstream).await;
        for (token, status, text) in [
            (EXPIRED, "401", "Jwt is expired"),
            (OTHER, "401", "Jwt issuer is not configured"),
            (AUDIENCE, "403", "Audiences in Jwt are not allowed"),
            (
                WRONG_KEY,
                "401",
                "Jwks doesn't have key to match kid or alg from Jwt",
            ),
            (
                "nonsense",
                "401",
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            ),
        ] {
            let response = proxy.get("/x?y", &bearer(token)).await;
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status} ")),
                "{response}"
            );
            assert!(response.ends_with(&format!("\r\n\r\n{text}")), "{response}");
            let challenge =
                "www-authenticate: Bearer realm=\"http://test/x?y\", error=\"invalid_token\"\r\n";
            assert!(response.contains(challenge), "{response}");
        }
    });
}

/// Nobody is to choose which of two tokens is believed: whatever the places, the order and the lines, one bad one is enough.
#[test]
fn one_bad_token_beside_a_good_one_is_refused() {
    on_worker(async {
        let upstream = Upstream::start(&[OK]).await;
        let places = json!({"from_headers": [{"name": "authorization", "value_prefix": "Bearer "}, {"name": "x-token"}],
            "from_params": ["token"], "from_cookies": ["token"]});
        let proxy = proxy(places, &upstream).await;
        let header = |token: &str| format!("x-token: {token}\r\n");
        let cookie = |token: &str| format!("cookie: token={token}\r\n");
        let path = |token: &str| format!("/?token={token}");
        for (path, headers, wanted) in [
            ("/".to_owned(), header(RS256) + &header(ES256), "ok"),
            (
                "/".to_owned(),
                header(RS256) + &header(EXPIRED),
                "Jwt is expired",
            ),
            (
                "/".to_owned(),
                header(EXPIRED) + &header(RS256),
                "Jwt is expired",
            ),
            (
                "/".to_owned(),
                bearer(RS256) + &header(EXPIRED),
                "Jwt is expired",
            ),
            (
                "/".to_owned(),
                bearer(EXPIRED) + &header(RS256),
                "Jwt is expired",
            ),
            (path(EXPIRED), bearer(RS256), "Jwt is expired"),
            (
                path(RS256),
                bearer(RS256) + &cookie(EXPIRED),
                "Jwt is expired",
            ),
            (
                path(RS256).replace("token", "%74oken"),
                bearer(EXPIRED),
                "Jwt is expired",
            ),
            (
                path(EXPIRED).replace("token", "%74oken"),
                bearer(RS256),
                "Jwt is expired",
            ),
            // Lines of one header are one value, and what comes after a token is part of it.
            (
                "/".to_owned(),
                bearer(RS256) + &bearer(RS256),
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            ),
            (
                "/".to_owned(),
                bearer(RS256) + &bearer("x"),
                "Jwt signature is an invalid Base64url encoded",
            ),
            (
                "/".to_owned(),
                bearer(&format!("{RS256},x")),
                "Jwt signature is an invalid Base64url encoded",
            ),
        ] {
            let response = proxy.get(&path, &headers).await;
            assert!(
                response.ends_with(&format!("\r\n\r\n{wanted}")),
                "{path} {headers}: {response}"
            );
        }
    });
}

#[test]
fn keys_can_be_fetched() {
    on_worker(async {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{KEYS}",
            KEYS.len()
        );
        let mut keys = Upstream::start(&[&answer]).await;
        let upstream = Upstream::start(&[OK]).await;
        let jwt = json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": {"p": {"issuer": "https://issuer/a", "forward": true, "remote_jwks": {"http_uri": {
                "uri": "http://keys.example/jwks?x", "cluster": "keys", "timeout": "30s"}}}},
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}]}});
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]);
        let config = with_filters(manager(routes), &[jwt]);
        let proxy = Proxy::start(config, &[upstream.cluster("c"), keys.cluster("keys")]).await;
        for _ in 0..2 {
            assert!(proxy.get("/", &bearer(ES256)).await.ends_with("ok"));
        }
        let request = keys.request().await;
        assert!(
            request.starts_with("GET /jwks?x HTTP/1.1\r\nhost: keys.example\r\n"),
            "{request}"
        );
        let response = proxy.get("/", "").await;
        assert!(response.ends_with("Jwt is missing"), "{response}");
        assert_eq!(proxy.stat("http.test.jwt_authn.jwks_fetch_success"), 1);
    });
}

#[test]
fn fuzz_tokens() {
    let keys = KeySet::parse(KEYS.as_bytes()).unwrap();
    let good = [RS256, PS256, ES256, EDDSA];
    crate::fuzz::fuzz_text("tokens", |text| {
        let Ok(token) = Token::parse(text) else {
            return;
        };
        if keys.verify(&token).is_ok() {
            let is_known = |known: &&str| known.starts_with(token.signed);
            assert!(good.iter().any(is_known), "forged: {text}");
        }
    });
}

#[test]
fn fuzz_key_sets() {
    let token = Token::parse(ES256).unwrap();
    crate::fuzz::fuzz("key_sets", |bytes| {
        if let Ok(keys) = KeySet::parse(bytes) {
            let _ = keys.verify(&token);
        }
    });
}
