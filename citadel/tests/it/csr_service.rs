//! The CSR service over real TLS on port 0: who gets which certificate, and who gets none.

use std::time::Duration;

use citadel::ca::CertificateAuthority as _;
use citadel::pki::{Bundle, Validity, certificates_from_pem, uri_sans, verify_chain};
use citadel::server::MAX_MESSAGE;
use proto::istio::v1::auth::istio_ca_service_client::IstioCaServiceClient;
use proto::istio::v1::auth::{CsrRequest, IstioCertificateRequest};
use proto_component::tls::provider;
use time::OffsetDateTime;
use tonic::{Code, Request};

use crate::service::{DAY, csr, mesh, with_token};

#[tokio::test]
async fn the_identity_is_the_tokens_and_never_the_requests() {
    let mesh = mesh().await;
    let (key, request) = csr();
    let token = mesh.issuer.token("default", "bookinfo-ratings");
    let chain = mesh.ask(&token, request, 0).await.unwrap();
    assert_eq!(chain.len(), 2, "leaf and root");
    let leaf = certificates_from_pem(&chain[0]).unwrap().remove(0);
    let identity = "spiffe://cluster.local/ns/default/sa/bookinfo-ratings";
    assert_eq!(uri_sans(&leaf).unwrap(), [identity]);
    let bundle = Bundle {
        intermediates: Vec::new(),
        roots: certificates_from_pem(&chain[1]).unwrap(),
    };
    verify_chain(&leaf, &bundle, &provider(), OffsetDateTime::now_utc()).unwrap();

    let entries = mesh.ledger.newest(10, None).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].identity, identity);
    assert_eq!(entries[0].authenticator, "KubeJWTAuthenticator");
    assert_eq!(mesh.metrics.success.get(), 1);

    // With that certificate, no token is needed.
    let (_, again) = csr();
    let request = IstioCertificateRequest {
        csr: again,
        ..IstioCertificateRequest::default()
    };
    let mut client = mesh.client(&chain[0], &key.to_pem());
    let answer = client
        .create_certificate(request)
        .await
        .unwrap()
        .into_inner();
    let leaf = certificates_from_pem(&answer.cert_chain[0])
        .unwrap()
        .remove(0);
    assert_eq!(uri_sans(&leaf).unwrap(), [identity]);
}

#[tokio::test]
async fn lifetimes_and_requests_are_checked() {
    let mesh = mesh().await;
    let token = mesh.issuer.token("default", "a");
    for (seconds, want) in [(0, DAY), (600, Duration::from_secs(600)), (-1, DAY)] {
        let chain = mesh.ask(&token, csr().1, seconds).await.unwrap();
        let leaf = certificates_from_pem(&chain[0]).unwrap().remove(0);
        let left = Validity::of(&leaf).unwrap().not_after - OffsetDateTime::now_utc();
        assert!(
            left <= want && left > want - Duration::from_secs(30),
            "{seconds}: {left}"
        );
    }
    let seconds = i64::try_from(DAY.as_secs() * 90 + 1).unwrap();
    let error = mesh.ask(&token, csr().1, seconds).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    for bad in [
        "",
        "hello",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        let error = mesh.ask(&token, bad.to_owned(), 0).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{bad:?}");
    }
    let weak = include_str!("../../testdata/csr/rsa-1024.pem").to_owned();
    let error = mesh.ask(&token, weak, 0).await.unwrap_err();
    assert!(error.message().contains("RSA of 1024 bits"), "{error}");
    let huge = mesh
        .ask(&token, "x".repeat(MAX_MESSAGE + 1), 0)
        .await
        .unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange);
    assert_eq!(mesh.ledger.len(), 3);
}

#[tokio::test]
async fn many_callers_at_once_are_all_recorded() {
    let mesh = mesh().await;
    let token = mesh.issuer.token("default", "a");
    let calls = (0..40).map(|_| mesh.ask(&token, csr().1, 0));
    for outcome in futures::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(mesh.ledger.len(), 40);
}

/// Methods, fields and their numbers are Istio's: its agents are understood, and understand what they get.
#[test]
fn messages_are_istios_to_the_byte() {
    use prost::Message as _;
    use proto::istio::v1::auth::{
        CsrResponse, IstioCertificateResponse, istio_ca_service_server as older,
        istio_certificate_service_server as current,
    };
    assert_eq!(
        [current::SERVICE_NAME, older::SERVICE_NAME],
        [
            "istio.v1.auth.IstioCertificateService",
            "istio.v1.auth.IstioCAService"
        ]
    );
    let sent = b"\x0a\x03csr\x18\x90\x1c".as_slice();
    let request = IstioCertificateRequest::decode(sent).unwrap();
    assert_eq!(
        (request.csr.as_str(), request.validity_duration),
        ("csr", 3600)
    );
    let answer = IstioCertificateResponse {
        cert_chain: vec!["leaf".to_owned(), "root".to_owned()],
    };
    assert_eq!(answer.encode_to_vec(), b"\x0a\x04leaf\x0a\x04root");
    let sent = b"\x0a\x03csr\x12\x05token\x1a\x03jwt\x20\x0a".as_slice();
    let request = CsrRequest::decode(sent).unwrap();
    let credential = (
        &request.node_agent_credential[..],
        &*request.credential_type,
    );
    assert_eq!(credential, (&b"token"[..], "jwt"));
    assert_eq!(
        (&request.csr_pem[..], request.requested_ttl_minutes),
        (&b"csr"[..], 10)
    );
    let answer = CsrResponse {
        is_approved: true,
        status: Some(proto::google::rpc::Status {
            code: 3,
            ..Default::default()
        }),
        signed_cert: b"leaf".to_vec(),
        cert_chain: b"root".to_vec(),
    };
    let bytes = b"\x08\x01\x12\x02\x08\x03\x1a\x04leaf\x22\x04root";
    assert_eq!(answer.encode_to_vec(), bytes);
}

#[tokio::test]
async fn the_older_service_gives_the_same_certificate_in_other_words() {
    let mesh = mesh().await;
    let mut client = IstioCaServiceClient::new(mesh.channel("", ""));
    let request = |csr: String, minutes| CsrRequest {
        csr_pem: csr.into_bytes(),
        requested_ttl_minutes: minutes,
        ..CsrRequest::default()
    };
    let token = mesh.issuer.token("vm", "agent");
    let answer = client
        .handle_csr(with_token(Request::new(request(csr().1, 10)), &token))
        .await
        .unwrap()
        .into_inner();
    assert!(answer.is_approved && answer.status.unwrap().code == 0);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let leaf = certificates_from_pem(&text(answer.signed_cert))
        .unwrap()
        .remove(0);
    assert_eq!(
        uri_sans(&leaf).unwrap(),
        ["spiffe://cluster.local/ns/vm/sa/agent"]
    );
    assert_eq!(text(answer.cert_chain), mesh.ca.bundle().roots_pem());
    let left = Validity::of(&leaf).unwrap().not_after - OffsetDateTime::now_utc();
    assert!(left <= Duration::from_secs(600), "{left}");
    assert_eq!(mesh.ledger.len(), 1);
    for (what, token, csr, minutes, code) in [
        ("no token", "", csr().1, 0, Code::Unauthenticated),
        ("too long", &token, csr().1, 200_000, Code::InvalidArgument),
        (
            "no request",
            &token,
            String::new(),
            0,
            Code::InvalidArgument,
        ),
    ] {
        let request = with_token(Request::new(request(csr, minutes)), token);
        let error = client.handle_csr(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error}");
    }
}
