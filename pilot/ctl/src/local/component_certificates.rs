//! Certificates for the control plane's own channels (`global.controlPlaneSecurityEnabled`): Secrets `istio.ACCOUNT`, which a
//! cluster's Citadel writes itself. Here the platform asks Citadel for them, as the account, and again when half of a life has
//! passed or the roots have changed. Pods that mount them wait for them.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use proto::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use proto_component::{
    backoff::Backoff,
    grpc::{self, ClientOptions},
    tls::{ClientTls, Pem, ServerIdentity},
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
/// How often the roots are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the Secrets, for ever; tokens are for `audience`.
pub(crate) async fn keep(platform: Platform, audience: String) {
    let file = platform.state.path("data/root/root-cert.pem");
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut complaint = String::new();
    let (mut roots, mut due) = (String::new(), Instant::now());
    loop {
        let current = fs::read_to_string(&file).unwrap_or_default();
        let mut wait = LOOK;
        if current != roots || Instant::now() >= due {
            match write_all(&platform, &audience, &current).await {
                Ok(life) => {
                    (roots, due) = (current, Instant::now() + life / 2);
                    backoff.reset();
                    complaint.clear();
                }
                Err(error) => {
                    wait = backoff.next_delay();
                    // Once for each reason, not for each attempt.
                    let text = format!("{error:#}");
                    if text != complaint {
                        tracing::info!(error = text, "no certificates for the control plane yet");
                        complaint = text;
                    }
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// New certificates for all accounts; the shortest of their lives.
async fn write_all(platform: &Platform, audience: &str, roots: &str) -> anyhow::Result<Duration> {
    anyhow::ensure!(!roots.is_empty(), "citadel's root is not there");
    let address = admission::endpoint(platform, NAMESPACE, CITADEL, PORT)?;
    let mut shortest = Duration::MAX;
    for account in ACCOUNTS {
        let subject = Subject {
            namespace: NAMESPACE,
            service_account: account,
            pod: "biremectl",
            pod_uid: "",
        };
        let token = platform.identity.token(&subject, audience)?;
        let (roots, issue) = (roots.to_owned(), "component-certificate");
        let issued = platform.node.run(issue, issue_one(address, roots, token));
        let (data, life) = issued.await?;
        let key = Key::platform("Secret", NAMESPACE, &format!("istio.{account}"));
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "istio.io/key-and-cert",
            "metadata": {"name": key.name, "namespace": NAMESPACE}, "stringData": data,
        });
        platform.store.put(&key, secret);
        shortest = shortest.min(life);
    }
    Ok(shortest)
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
