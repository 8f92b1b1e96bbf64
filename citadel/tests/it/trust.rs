//! What everybody is to believe reaches those who listen: roots, and revocation lists as soon as something is revoked.

use std::time::Duration;

use citadel::ca::CertificateAuthority as _;
use citadel::revocation::Target;
use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret::Type,
};
use proto::envoy::service::discovery::v3::DiscoveryRequest;
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::service::{csr, mesh};

const PATIENCE: Duration = Duration::from_secs(60);

fn text(source: Option<&DataSource>) -> String {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
        _ => String::new(),
    }
}

#[tokio::test]
async fn roots_and_revocations_are_pushed_when_they_change() {
    let mesh = mesh().await;
    let (requests, stream) = mpsc::channel(4);
    let request = |names: &[&str]| DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        type_url: proto::type_url::SECRET.to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(request(&["ROOTCA"])).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(mesh.channel("", ""));
    let answers = client.stream_secrets(ReceiverStream::new(stream)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut next = async || -> CertificateValidationContext {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.unwrap().unwrap().unwrap();
        let secret: Secret = proto::any::unpack(&answer.resources[0]).unwrap();
        match secret.r#type {
            Some(Type::ValidationContext(context)) => context,
            other => panic!("{other:?}"),
        }
    };
    let context = next().await;
    assert_eq!(
        text(context.trusted_ca.as_ref()),
        mesh.ca.bundle().roots_pem()
    );
    assert!(context.crl.is_none(), "nothing is revoked");

    mesh.ask(&mesh.issuer.token("default", "a"), csr().1, 0)
        .await
        .unwrap();
    let target = Target::Identity("spiffe://cluster.local/ns/default/sa/a".to_owned());
    let now = OffsetDateTime::now_utc();
    mesh.revocations.revoke(&target, &mesh.ledger, now).unwrap();
    mesh.trust.refresh().unwrap();
    let context = next().await;
    assert!(text(context.crl.as_ref()).contains("BEGIN X509 CRL"));
    assert!(context.only_verify_leaf_cert_crl);

    mesh.ca.rotate(now).unwrap();
    mesh.trust.refresh().unwrap();
    let context = next().await;
    let roots = text(context.trusted_ca.as_ref());
    assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(
        text(context.crl.as_ref()).matches("BEGIN X509 CRL").count(),
        2
    );

    requests.send(request(&["default"])).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, answers.message())
        .await
        .unwrap();
    assert_eq!(refused.unwrap_err().code(), tonic::Code::InvalidArgument);
}
