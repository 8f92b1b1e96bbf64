//! Attacks on Citadel: each beside a case that differs from it in one thing, and is good.

use citadel::ca::CertificateAuthority as _;
use citadel::pki::{PrivateKey, certificates_from_pem, uri_sans};
use citadel::revocation::Target;
use citadel::testing::TokenIssuer;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use proto::istio::v1::auth::IstioCertificateRequest;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tonic::{Code, Request};

use crate::service::{Mesh, csr, mesh, with_token};

const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/a";

fn identity_of(chain: &[String]) -> Vec<String> {
    let leaf = certificates_from_pem(&chain[0]).unwrap().remove(0);
    uri_sans(&leaf).unwrap()
}

#[tokio::test]
async fn only_a_good_token_is_believed() {
    let mesh = mesh().await;
    let claim = |name: &str, value: Value| {
        let mut claims = TokenIssuer::claims("default", "a");
        claims[name] = value;
        mesh.issuer.sign(&claims)
    };
    let without = |name: &str| {
        let mut claims = TokenIssuer::claims("default", "a");
        claims.as_object_mut().unwrap().remove(name);
        mesh.issuer.sign(&claims)
    };
    let good = mesh.issuer.token("default", "a");
    let (head, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = head.split_once('.').unwrap();
    // The public key is known to everybody: as a secret for HMAC it would let everybody sign.
    let confused = |algorithm| {
        let key = EncodingKey::from_secret(mesh.issuer.public_pem().as_bytes());
        let mut header = Header::new(algorithm);
        header.kid = Some("key-1".to_owned());
        encode(&header, &TokenIssuer::claims("default", "a"), &key).unwrap()
    };
    let none = r#"{"alg":"none","kid":"key-1"}"#;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    for (what, token) in [
        ("no token", String::new()),
        ("no JWT", "hello".to_owned()),
        ("wrong audience", claim("aud", "other".into())),
        ("no audience", without("aud")),
        ("expired", claim("exp", 1000.into())),
        ("never expires", without("exp")),
        ("not valid yet", claim("nbf", (now + 3600).into())),
        (
            "of another cluster's issuer",
            claim("iss", "https://other.cluster".into()),
        ),
        (
            "of another cluster's key",
            TokenIssuer::new().token("default", "a"),
        ),
        ("no service account's", claim("sub", "alice".into())),
        (
            "of an account with a path",
            claim("sub", "system:serviceaccount:default:a/../b".into()),
        ),
        ("alg none", format!("{}.{payload}.", base64(none))),
        (
            "alg none with a signature",
            format!("{}.{payload}.{signature}", base64(none)),
        ),
        ("HS256 with the public key", confused(Algorithm::HS256)),
        ("HS512 with the public key", confused(Algorithm::HS512)),
        (
            "another payload",
            format!("{header}.{}.{signature}", base64(&other_payload())),
        ),
        ("no signature", format!("{head}.")),
    ] {
        let error = mesh.ask(&token, csr().1, 0).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{what}: {error}");
    }
    assert!(mesh.ledger.is_empty(), "nothing was issued");
    assert_eq!(mesh.metrics.authentication_failure.get(), 17);
    assert_eq!(
        identity_of(&mesh.ask(&good, csr().1, 0).await.unwrap()),
        [IDENTITY]
    );
}

fn other_payload() -> String {
    TokenIssuer::claims("istio-system", "istio-pilot-service-account").to_string()
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

/// A certificate for `identity` by the key of `issuer`, and its own key.
fn leaf(
    issuer: Option<&Mesh>,
    identities: &[&str],
    begin: Duration,
    end: Duration,
) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() + begin;
    params.not_after = OffsetDateTime::now_utc() + end;
    let names = identities
        .iter()
        .map(|identity| SanType::URI((*identity).try_into().unwrap()));
    params.subject_alt_names = names.collect();
    let certificate = match issuer {
        Some(mesh) => {
            let files = mesh.ca.files().unwrap().0;
            let ca = PrivateKey::from_pem(&files["ca-key.pem"]).unwrap();
            let issuer = citadel::pki::issuer_of(&mesh.ca.bundle().roots[0], &ca).unwrap();
            params.signed_by(&key, &issuer).unwrap()
        }
        None => params.self_signed(&key).unwrap(),
    };
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test]
async fn only_a_good_client_certificate_is_believed() {
    let mesh = mesh().await;
    let stranger = crate::service::mesh().await;
    let (past, hour) = (Duration::minutes(-5), Duration::hours(1));
    let signed = |identities: &[&str]| leaf(Some(&mesh), identities, past, hour);
    for (what, (chain, key)) in [
        ("self-signed", leaf(None, &[IDENTITY], past, hour)),
        (
            "of another root",
            leaf(Some(&stranger), &[IDENTITY], past, hour),
        ),
        (
            "expired",
            leaf(Some(&mesh), &[IDENTITY], past, Duration::minutes(-1)),
        ),
        (
            "not valid yet",
            leaf(Some(&mesh), &[IDENTITY], hour, hour * 2),
        ),
        ("without identity", signed(&[])),
        (
            "with two identities",
            signed(&[IDENTITY, "spiffe://cluster.local/ns/b/sa/b"]),
        ),
        (
            "of another trust domain",
            signed(&["spiffe://other/ns/default/sa/a"]),
        ),
        (
            "of no SPIFFE form",
            signed(&["https://cluster.local/ns/default/sa/a"]),
        ),
    ] {
        let refused = mesh.ask_with(&chain, &key).await;
        assert!(refused.is_err(), "{what}: {refused:?}");
    }
    assert!(mesh.ledger.is_empty(), "nothing was issued");
    let (chain, key) = signed(&[IDENTITY]);
    assert_eq!(
        identity_of(&mesh.ask_with(&chain, &key).await.unwrap()),
        [IDENTITY]
    );
    // Somebody else's certificate without its key does not even make a connection.
    let (_, other_key) = signed(&["spiffe://cluster.local/ns/default/sa/b"]);
    let pem = proto_component::tls::Pem {
        chain: chain.into_bytes(),
        key: other_key.into_bytes(),
        roots: mesh.ca.bundle().roots_pem().into_bytes(),
        ..proto_component::tls::Pem::default()
    };
    let identity = proto_component::tls::ServerIdentity::Name;
    assert!(proto_component::tls::ClientTls::from_pem(&pem, identity, &["h2"]).is_err());
}

#[tokio::test]
async fn a_revoked_certificate_renews_nothing_and_a_revoked_identity_gets_nothing() {
    let mesh = mesh().await;
    let token = mesh.issuer.token("default", "a");
    let (key, request) = csr();
    let chain = mesh.ask(&token, request, 0).await.unwrap();
    assert_eq!(
        identity_of(&mesh.ask_with(&chain[0], &key.to_pem()).await.unwrap()),
        [IDENTITY]
    );
    let serial = mesh.ledger.newest(2, None).unwrap()[1].serial.clone();
    let now = OffsetDateTime::now_utc();
    mesh.revocations
        .revoke(&Target::Serial(serial), &mesh.ledger, now)
        .unwrap();
    let error = mesh.ask_with(&chain[0], &key.to_pem()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    mesh.ask(&token, csr().1, 0).await.unwrap();
    let target = Target::Identity(IDENTITY.to_owned());
    let revoked = mesh.revocations.revoke(&target, &mesh.ledger, now).unwrap();
    assert_eq!(revoked.len(), 3);
    let error = mesh.ask(&token, csr().1, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    let other = mesh.issuer.token("default", "b");
    mesh.ask(&other, csr().1, 0).await.unwrap();
    mesh.revocations.restore(IDENTITY).unwrap();
    mesh.ask(&token, csr().1, 0).await.unwrap();
}

#[tokio::test]
async fn another_identity_is_given_only_to_those_on_the_list() {
    let mesh = mesh().await;
    let wanted = "spiffe://cluster.local/ns/shop/sa/cart";
    let ask = async |token: &str, wanted: Value| {
        let metadata = prost_types::Struct {
            fields: [("ImpersonatedIdentity".to_owned(), value(&wanted))].into(),
        };
        let request = IstioCertificateRequest {
            csr: csr().1,
            metadata: Some(metadata),
            ..IstioCertificateRequest::default()
        };
        let request = with_token(Request::new(request), token);
        let answer = mesh.client("", "").create_certificate(request).await?;
        Ok::<_, tonic::Status>(identity_of(&answer.into_inner().cert_chain))
    };
    let node = mesh.issuer.token("istio-system", "node");
    let pilot = mesh
        .issuer
        .token("istio-system", "istio-pilot-service-account");
    assert_eq!(ask(&node, json!(wanted)).await.unwrap(), [wanted]);
    for (token, wanted) in [
        (&pilot, json!(wanted)),
        (&node, json!("spiffe://other/ns/shop/sa/cart")),
        (&node, json!("cart")),
        (&node, json!(7)),
    ] {
        assert!(ask(token, wanted.clone()).await.is_err(), "{wanted}");
    }
    // A wish in the signing request itself counts for nothing, see `csr`.
    let own = mesh.ask(&pilot, csr().1, 0).await.unwrap();
    let account = "spiffe://cluster.local/ns/istio-system/sa/istio-pilot-service-account";
    assert_eq!(identity_of(&own), [account]);
}

fn value(json: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        Value::String(text) => Kind::StringValue(text.clone()),
        other => Kind::NumberValue(other.as_f64().unwrap()),
    };
    prost_types::Value { kind: Some(kind) }
}
