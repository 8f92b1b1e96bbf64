//! The real binary beside a real API server: tokens are reviewed there, the root lives there, every namespace learns it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use citadel::kubernetes::{CONFIG_MAP, ROOT_KEY, SECRET};
use citadel::pki::{certificates_from_pem, uri_sans};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use tonic::{Code, Request, Status};

const PATIENCE: Duration = Duration::from_secs(20);

struct Citadel {
    child: Child,
    port: u16,
}

impl Drop for Citadel {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's only input")]
fn start(data: &Path, namespace: &str) -> Citadel {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (grpc, monitoring) = (free(), free());
    let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
    let (port, monitoring) = (port(&grpc), port(&monitoring));
    drop(grpc);
    let child = Command::new(env!("CARGO_BIN_EXE_istio_ca"))
        .arg("--self-signed-ca=true")
        .arg(format!("--grpc-port={port}"))
        .arg(format!("--monitoring-port={monitoring}"))
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--citadel-storage-namespace={namespace}"))
        .arg(format!(
            "--kube-config={}",
            std::env::var("KUBECONFIG").unwrap()
        ))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Citadel { child, port }
}

/// Asks until there is something.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::task::yield_now().await;
    }
}

async fn ask(citadel: &Citadel, root: &str, token: &str) -> Result<Vec<String>, Status> {
    let pem = Pem {
        roots: root.as_bytes().to_vec(),
        ..Pem::default()
    };
    let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])
        .and_then(|tls| tls.with_server_name("istio-citadel"))
        .unwrap();
    let target = format!("127.0.0.1:{}", citadel.port);
    let channel = grpc::channel(&target, Some(tls), &ClientOptions::default()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default();
    let mut request = Request::new(IstioCertificateRequest {
        csr: csr.serialize_request(&key).unwrap().pem().unwrap(),
        ..IstioCertificateRequest::default()
    });
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    let mut client = IstioCertificateServiceClient::new(channel);
    let answer = client.create_certificate(request).await?;
    Ok(answer.into_inner().cert_chain)
}

async fn token(client: &Client, namespace: &str, audience: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let parameters = PostParams::default();
    let answer = eventually("a token", async || {
        accounts
            .create_token_request("default", &parameters, &request)
            .await
            .ok()
    });
    answer.await.status.unwrap().token
}

#[tokio::test]
#[ignore = "needs an API server: set KUBECONFIG"]
async fn the_api_server_vouches_for_tokens_and_keeps_the_root() {
    let client = Client::try_default().await.unwrap();
    let namespace = format!("citadel-{}", std::process::id());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    namespaces
        .create(&PostParams::default(), &object)
        .await
        .unwrap();

    let folder = tempfile::tempdir().unwrap();
    let citadel = start(&folder.path().join("first"), &namespace);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let root_of = async || {
        let config_map = config_maps.get_opt(CONFIG_MAP).await.ok()??;
        config_map.data?.get(ROOT_KEY).cloned()
    };
    let root = eventually("the root in the namespace", root_of).await;

    let good = token(&client, &namespace, "istio-ca").await;
    let chain = eventually("a certificate", async || {
        ask(&citadel, &root, &good).await.ok()
    })
    .await;
    let leaf = certificates_from_pem(&chain[0]).unwrap().remove(0);
    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
    assert_eq!(uri_sans(&leaf).unwrap(), [identity]);

    for bad in [
        token(&client, &namespace, "somebody-else").await,
        format!("{good}x"),
    ] {
        let refused = ask(&citadel, &root, &bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }

    // Somebody deletes it: it comes back.
    config_maps
        .delete(CONFIG_MAP, &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(eventually("the root again", root_of).await, root);

    // Another pod, without the first one's folder, has the same root.
    drop(citadel);
    let citadel = start(&folder.path().join("second"), &namespace);
    let chain = eventually("a certificate", async || {
        ask(&citadel, &root, &good).await.ok()
    })
    .await;
    assert_eq!(chain[1].trim(), root.trim());
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    assert!(
        secrets
            .get(SECRET)
            .await
            .unwrap()
            .data
            .unwrap()
            .contains_key("ca-key.pem")
    );
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
}
