//! Tokens and client certificates that must not pass, one by one, and those that must.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use time::OffsetDateTime;

use futures::FutureExt as _;

use proto_mesh::jwt::Token;

use super::jwks::Unverified;
use super::*;

/// What these authenticators do, they do without waiting.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

use crate::pki::{LeafProfile, PrivateKey, San, Validity, issuer_of, mint_leaf, mint_root};
use crate::testing::{ISSUER, TokenIssuer};

fn oidc(issuer: &TokenIssuer) -> Oidc {
    let keys = proto_mesh::jwt::KeySet::parse(issuer.jwks().as_bytes()).unwrap();
    let settings = OidcSettings {
        issuer: ISSUER.to_owned(),
        audiences: vec!["istio-ca".to_owned()],
        trust_domain: "cluster.local".to_owned(),
    };
    Oidc::new(settings, Arc::new(KeyRing::fixed(keys)))
}

fn recognised(oidc: &Oidc, token: &str) -> Result<String, String> {
    let credentials = Credentials {
        bearer: Some(token),
        ..Credentials::default()
    };
    match block_on(oidc.authenticate(&credentials)) {
        Ok(identity) => Ok(identity.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_good_token_is_its_service_account() {
    let issuer = TokenIssuer::new();
    let token = issuer.token("default", "bookinfo-reviews");
    assert_eq!(
        recognised(&oidc(&issuer), &token).unwrap(),
        "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
    );
}

#[test]
fn bad_claims_are_refused_with_the_reason() {
    let issuer = TokenIssuer::new();
    let oidc = oidc(&issuer);
    let cases: Vec<(&str, Value, &str)> = vec![
        ("aud", json!("other"), "another audience"),
        ("aud", json!([]), "another audience"),
        ("aud", Value::Null, "aud"),
        ("iss", json!("https://evil.test"), "another issuer"),
        ("iss", json!("https://issuer.test/"), "another issuer"),
        ("exp", json!(1000), "expired"),
        ("exp", Value::Null, "exp"),
        ("exp", json!("99999999999"), "no number"),
        ("nbf", json!("99999999999"), "no number"),
        ("nbf", json!(99_999_999_999_u64), "not valid yet"),
        ("sub", json!("alice"), "system:serviceaccount"),
        (
            "sub",
            json!("system:serviceaccount:a:b/../c"),
            "is no SPIFFE id",
        ),
        ("sub", Value::Null, ""),
    ];
    for (claim, value, reason) in cases {
        let mut claims = TokenIssuer::claims("default", "a");
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(claim);
        } else {
            claims[claim] = value.clone();
        }
        let error = recognised(&oidc, &issuer.sign(&claims)).unwrap_err();
        assert!(error.contains(reason), "{claim}={value}: {error}");
    }
}

#[test]
fn algorithm_none_and_hmac_with_the_public_key_are_refused() {
    let issuer = TokenIssuer::new();
    let oidc = oidc(&issuer);
    let claims = TokenIssuer::claims("default", "a");
    let body = URL_SAFE_NO_PAD.encode(claims.to_string());
    for algorithm in ["none", "None", "NONE", "nOnE"] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": algorithm, "typ": "JWT"}).to_string());
        for signature in ["", "AAAA"] {
            recognised(&oidc, &format!("{header}.{body}.{signature}")).unwrap_err();
        }
    }
    let jwks: Value = serde_json::from_str(&issuer.jwks()).unwrap();
    let secret = jwks["keys"][0]["x"].as_str().unwrap().as_bytes().to_vec();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("key-1".to_owned());
    let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&secret)).unwrap();
    let error = recognised(&oidc, &token).unwrap_err();
    assert!(error.contains("\"HS256\" is not accepted"), "{error}");
}

#[test]
fn another_issuers_signature_and_damaged_tokens_are_refused() {
    let issuer = TokenIssuer::new();
    let oidc = oidc(&issuer);
    let foreign = TokenIssuer::new().token("default", "a");
    let error = recognised(&oidc, &foreign).unwrap_err();
    assert!(error.contains("signature does not verify"), "{error}");
    let token = issuer.token("default", "a");
    let (signed, _) = token.rsplit_once('.').unwrap();
    for bad in [
        "",
        ".",
        "..",
        "a.b.c",
        signed,
        &format!("{signed}."),
        &"x".repeat(40_000),
    ] {
        recognised(&oidc, bad).unwrap_err();
    }
}

#[tokio::test]
async fn key_sets_without_a_usable_key_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let ring = KeyRing::new(JwksSource::File(path.clone()));
    let read = async |text: &str| {
        std::fs::write(&path, text).unwrap();
        ring.refresh().await
    };
    for text in [
        "",
        "[]",
        "{}",
        r#"{"keys": []}"#,
        r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#,
        r#"{"keys": [{"kty": "martian"}]}"#,
    ] {
        assert!(read(text).await.is_err(), "{text}");
    }
    // An unknown key and a broken one beside a good one do no harm.
    let issuer = TokenIssuer::new();
    let mut jwks: Value = serde_json::from_str(&issuer.jwks()).unwrap();
    let keys = jwks["keys"].as_array_mut().unwrap();
    keys.extend([json!({"kty": "martian"}), json!({"kty": 5})]);
    read(&jwks.to_string()).await.unwrap();
    // One for encryption signs nothing.
    jwks["keys"][0]["use"] = "enc".into();
    read(&jwks.to_string()).await.unwrap_err();
}

#[tokio::test]
async fn keys_are_read_from_file_and_over_http_and_replaced() {
    let issuer = TokenIssuer::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let ring = KeyRing::new(JwksSource::File(path.clone()));
    ring.refresh().await.unwrap_err();
    assert!(!ring.is_loaded());
    std::fs::write(&path, issuer.jwks()).unwrap();
    ring.refresh().await.unwrap();
    let token = issuer.token("default", "a");
    let verifies = |ring: &KeyRing, token: &str| ring.verify(&Token::parse(token).unwrap());
    verifies(&ring, &token).unwrap();
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"key-2"}"#);
    let (_, rest) = token.split_once('.').unwrap();
    let error = verifies(&ring, &format!("{header}.{rest}")).unwrap_err();
    assert!(matches!(error, Unverified::UnknownKey(id) if id == "key-2"));
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"key-1"}"#);
    let error = verifies(&ring, &format!("{header}.{rest}")).unwrap_err();
    assert!(matches!(error, Unverified::UnknownKey(id) if id == "key-1"));
    // A broken replacement keeps the last good keys.
    std::fs::write(&path, "{").unwrap();
    ring.refresh().await.unwrap_err();
    verifies(&ring, &token).unwrap();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let body = issuer.jwks();
    let page = axum::routing::get(move || async move { body });
    let router = axum::Router::new().route("/keys", page);
    proto_component::task::spawn("jwks-server", async move {
        axum::serve(listener, router).await.unwrap();
    });
    let source = |url: String| JwksSource::Url {
        url: url.parse().unwrap(),
        ca_file: None,
    };
    let ring = KeyRing::new(source(url.clone()));
    ring.refresh().await.unwrap();
    assert!(ring.is_loaded());
    let error = KeyRing::new(source(url + "x")).refresh().await.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
}

fn nothing_revoked() -> crate::revocation::Revocations {
    // Its files live as long as they are open.
    let folder = tempfile::tempdir().unwrap();
    let store = crate::testing::open_store(folder.path());
    crate::revocation::Revocations::open(&store).unwrap()
}

#[test]
fn a_client_certificate_needs_exactly_one_spiffe_uri() {
    let key = PrivateKey::generate().unwrap();
    let validity = Validity::starting(OffsetDateTime::now_utc(), Duration::from_secs(3600));
    let root = mint_root(&key, "cluster.local", validity).unwrap();
    let issuer = issuer_of(&root.der, &key).unwrap();
    let recognised_then = |sans: &[San], validity| {
        let profile = LeafProfile {
            sans,
            validity,
            dual_use: false,
        };
        let leaf = mint_leaf(&issuer, &key.public().unwrap(), &profile).unwrap();
        let credentials = Credentials {
            certificate: Some(&leaf.der),
            ..Credentials::default()
        };
        block_on(ClientCertificate::new(nothing_revoked()).authenticate(&credentials))
    };
    let recognised = |sans: &[San]| recognised_then(sans, validity);
    let uri = |text: &str| San::Uri(text.to_owned());
    let good = uri("spiffe://cluster.local/ns/a/sa/b");
    assert_eq!(
        recognised(std::slice::from_ref(&good)).unwrap().to_string(),
        good.to_string()
    );
    // The connection may be older than the certificate's end.
    let begin = OffsetDateTime::now_utc() - Duration::from_secs(3600);
    let ended = Validity::starting(begin, Duration::from_secs(60));
    let error = recognised_then(std::slice::from_ref(&good), ended).unwrap_err();
    assert!(error.to_string().contains("not valid any more"), "{error}");
    assert!(recognised(&[San::Dns("istio-citadel".to_owned())]).is_err());
    assert!(recognised(&[good.clone(), uri("spiffe://cluster.local/ns/a/sa/c")]).is_err());
    assert!(recognised(&[uri("https://example.com")]).is_err());
}

#[test]
fn the_first_that_recognises_wins_and_failures_name_everything_missing() {
    let issuer = TokenIssuer::new();
    let all: Vec<Box<dyn Authenticator>> = vec![
        Box::new(ClientCertificate::new(nothing_revoked())),
        Box::new(oidc(&issuer)),
    ];
    let token = issuer.token("default", "a");
    let credentials = Credentials {
        bearer: Some(&token),
        ..Credentials::default()
    };
    let caller = block_on(authenticate(&all, &credentials)).unwrap();
    assert_eq!(caller.authenticator, "KubeJWTAuthenticator");
    let error = block_on(authenticate(&all, &Credentials::default())).unwrap_err();
    assert_eq!(error, "no client certificate; no bearer token");
}
