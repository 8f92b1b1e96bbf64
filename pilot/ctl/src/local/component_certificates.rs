//! Certificates for the control plane's own channels (`global.controlPlaneSecurityEnabled`): Secrets `istio.ACCOUNT`, which a
//! cluster's Citadel writes itself. Here the platform asks Citadel for them, as the account, and again when half of a life has
//! passed, or the roots or what is revoked have changed. Pods that mount them wait for them.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use proto::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use proto_component::{
    backoff::Backoff,
    grpc::{self, ClientOptions},
    tls::{CRLS, ClientTls, Pem, ServerIdentity},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    admission, control_plane::NAMESPACE, identity::Subject, platform::Platform, store::Key,
};

/// The accounts of the components that serve, or are clients of, the control plane's channels.
const ACCOUNTS: &[&str] = &[
    "istio-pilot-service-account",
    "istio-galley-service-account",
    "istio-mixer-service-account",
];
const CITADEL: &str = "istio-citadel";
const PORT: u64 = 8060;
const DEADLINE: Duration = Duration::from_secs(5);
/// How often Citadel's files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What Citadel writes for others to trust.
#[derive(Default, PartialEq)]
struct Anchors {
    roots: String,
    /// Revocation lists; empty while nothing is revoked.
    lists: String,
}

/// Keeps the Secrets, for ever; tokens are for `audience`.
pub(crate) async fn keep(platform: Platform, audience: String) {
    let accounts = ACCOUNTS.iter();
    let kept = accounts.map(|account| keep_one(&platform, &audience, account));
    futures::future::join_all(kept).await;
}

async fn keep_one(platform: &Platform, audience: &str, account: &str) {
    let folder = platform.state.path("data/root");
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut complaint = String::new();
    let (mut present, mut due) = (Anchors::default(), Instant::now());
    loop {
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let current = Anchors {
            lists: read(CRLS),
            roots: read("root-cert.pem"),
        };
        let mut wait = LOOK;
        if current != present || Instant::now() >= due {
            match write(platform, audience, account, &current).await {
                Ok(life) => {
                    (present, due) = (current, Instant::now() + life / 2);
                    backoff.reset();
                    complaint.clear();
                }
                Err(error) => {
                    wait = backoff.next_delay();
                    // Once for each reason, not for each attempt.
                    let text = format!("{error:#}");
                    if text != complaint {
                        tracing::info!(
                            error = text,
                            account,
                            "no certificate for the control plane yet"
                        );
                        complaint = text;
                    }
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// A new certificate for an account (the one in use may be revoked); how long it lives.
async fn write(
    platform: &Platform,
    audience: &str,
    account: &str,
    anchors: &Anchors,
) -> anyhow::Result<Duration> {
    anyhow::ensure!(!anchors.roots.is_empty(), "citadel's root is not there");
    let key = Key::platform("Secret", NAMESPACE, &format!("istio.{account}"));
    // Those it must have even if there are no more certificates for it.
    platform.store.update(&key, |secret| {
        secret["stringData"][CRLS] = anchors.lists.as_str().into();
    });
    let address = admission::endpoint(platform, NAMESPACE, CITADEL, PORT)?;
    let subject = Subject {
        namespace: NAMESPACE,
        service_account: account,
        pod: "biremectl",
        pod_uid: "",
    };
    let token = platform.identity.token(&subject, audience)?;
    let issue = issue_one(address, anchors.roots.clone(), token);
    let issued = platform.node.run("component-certificate", issue).await;
    let (mut data, life) = issued?;
    data[CRLS] = anchors.lists.as_str().into();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "istio.io/key-and-cert",
        "metadata": {"name": key.name, "namespace": NAMESPACE}, "stringData": data,
    });
    platform.store.put(&key, secret);
    Ok(life)
}

/// A new key and its certificate, as files, and how long it lives.
async fn issue_one(
    citadel: SocketAddr,
    roots: String,
    token: String,
) -> anyhow::Result<(serde_json::Value, Duration)> {
    let pem = Pem {
        roots: roots.into_bytes(),
        ..Pem::default()
    };
    let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])?
        .with_server_name(&format!("{CITADEL}.{NAMESPACE}.svc"))?;
    let options = ClientOptions {
        connect_timeout: DEADLINE,
        call_timeout: Some(DEADLINE),
        ..ClientOptions::default()
    };
    let channel = grpc::channel(&citadel.to_string(), Some(tls), &options)?;
    let key = KeyPair::generate().context("make a key")?;
    let csr = CertificateParams::default()
        .serialize_request(&key)?
        .pem()?;
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr,
        ..IstioCertificateRequest::default()
    });
    let bearer = format!("Bearer {token}").parse().context("the token")?;
    request.metadata_mut().insert("authorization", bearer);
    let mut client = IstioCertificateServiceClient::new(channel);
    let answer = client.create_certificate(request).await?.into_inner();
    let (roots, chain) = answer.cert_chain.split_last().context("an empty chain")?;
    let leaf = chain.first().context("no certificate")?;
    let data = json!({
        "cert-chain.pem": chain.concat(), "key.pem": key.serialize_pem(), "root-cert.pem": roots,
    });
    Ok((data, remaining(leaf)?))
}

fn remaining(leaf: &str) -> anyhow::Result<Duration> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.as_bytes()).context("read the answer")?;
    let certificate = pem.parse_x509().context("read the certificate")?;
    let end = certificate.validity().not_after.to_datetime();
    Duration::try_from(end - OffsetDateTime::now_utc()).context("the certificate has ended")
}
