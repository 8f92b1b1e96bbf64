//! What everybody is to believe reaches those who listen: roots, and revocation lists as soon as something is revoked.

use std::time::Duration;

use citadel::ca::CertificateAuthority as _;
use citadel::revocation::Target;
use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret::Type,
};
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use time::OffsetDateTime;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::service::{Mesh, csr, mesh, with_token};

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
    let token = mesh.issuer.token("default", "b");
    let listen = with_token(Request::new(ReceiverStream::new(stream)), &token);
    let answers = client.stream_secrets(listen).await;
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

    mesh.ca.take(&mesh.ca.rotated(now).unwrap(), now).unwrap();
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
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

type Stream = (Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>);

/// Opens a stream, and hears what it is sent first.
async fn listen(channel: Channel, token: &str) -> Result<Stream, Status> {
    let (requests, stream) = mpsc::channel(1);
    requests.send(DiscoveryRequest::default()).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let request = Request::new(ReceiverStream::new(stream));
    let answers = client.stream_secrets(with_token(request, token));
    let mut answers = answers.await?.into_inner();
    answers.message().await?;
    Ok((requests, answers))
}

async fn fetch(mesh: &Mesh, token: &str) -> Result<(), Status> {
    let mut client = SecretDiscoveryServiceClient::new(mesh.channel("", ""));
    let request = with_token(Request::new(DiscoveryRequest::default()), token);
    client.fetch_secrets(request).await.map(drop)
}

#[tokio::test]
async fn only_those_of_the_mesh_listen_and_nobody_in_the_others_places() {
    let mesh = mesh().await;
    let token = mesh.issuer.token("default", "a");
    for bad in ["", "hello", &format!("{token}x")] {
        let stranger = listen(mesh.channel("", ""), bad).await.unwrap_err();
        assert_eq!(stranger.code(), Code::Unauthenticated, "{bad:?}");
        let stranger = fetch(&mesh, bad).await.unwrap_err();
        assert_eq!(stranger.code(), Code::Unauthenticated, "{bad:?}");
    }
    fetch(&mesh, &token).await.unwrap();

    // One by its token, one by its certificate: the same identity.
    let first = listen(mesh.channel("", ""), &token).await.unwrap();
    let (key, request) = csr();
    let chain = mesh.ask(&token, request, 0).await.unwrap();
    let with_certificate = || mesh.channel(&chain[0], &key.to_pem());
    let second = listen(with_certificate(), "").await.unwrap();
    let third = listen(mesh.channel("", ""), &token).await.unwrap_err();
    assert_eq!(third.code(), Code::ResourceExhausted, "{third}");
    let others = mesh.issuer.token("default", "b");
    let other = listen(mesh.channel("", ""), &others).await.unwrap();
    drop(first);
    let deadline = std::time::Instant::now() + PATIENCE;
    let again = loop {
        match listen(mesh.channel("", ""), &token).await {
            Ok(again) => break again,
            Err(status) => assert!(std::time::Instant::now() < deadline, "{status}"),
        }
        tokio::task::yield_now().await;
    };
    drop((second, other, again));
}
