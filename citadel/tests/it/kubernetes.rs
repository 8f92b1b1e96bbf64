//! The real binary beside a real API server: tokens are reviewed there, the root lives there, every namespace learns it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use citadel::kubernetes::{CONFIG_MAP, REVOCATIONS, ROOT_KEY, SECRET};
use citadel::pki::{certificates_from_pem, serial_of, uri_sans};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use rustls_pki_types::CertificateDer;
use tonic::{Code, Request, Status};

const PATIENCE: Duration = Duration::from_secs(60);

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
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    // Both are free again before anybody takes them.
    let [port, monitoring] = listeners.map(|listener| listener.local_addr().unwrap().port());
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

async fn make_namespace(namespaces: &Api<Namespace>, name: &str, label: Option<&str>) {
    let label = label.map(|value| ("ca.istio.io/override".to_owned(), value.to_owned()));
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(label.into_iter().collect()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let parameters = PostParams::default();
    namespaces.create(&parameters, &object).await.unwrap();
}

fn text(secret: &Secret, name: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(name)?.0.clone();
    String::from_utf8(bytes).ok()
}

fn leaf(chain: &str) -> CertificateDer<'static> {
    certificates_from_pem(chain).unwrap().remove(0)
}

#[tokio::test]
#[ignore = "needs an API server: set KUBECONFIG"]
async fn accounts_of_chosen_namespaces_have_secrets_with_certificates() {
    let client = Client::try_default().await.unwrap();
    let own = format!("citadel-secrets-{}", std::process::id());
    let off = format!("{own}-off");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    make_namespace(&namespaces, &own, None).await;
    make_namespace(&namespaces, &off, Some("false")).await;
    let folder = tempfile::tempdir().unwrap();
    let _citadel = start(folder.path(), &own);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &own);
    let chain_of = async || {
        let secret = secrets.get_opt("istio.default").await.ok()??;
        text(&secret, "cert-chain.pem")
    };
    let chain = eventually("a Secret for the account", chain_of).await;
    let identity = format!("spiffe://cluster.local/ns/{own}/sa/default");
    assert_eq!(uri_sans(&leaf(&chain)).unwrap(), [identity]);

    let parameters = DeleteParams::default();
    secrets.delete("istio.default", &parameters).await.unwrap();
    eventually("the Secret again", async || {
        chain_of().await.filter(|other| *other != chain)
    })
    .await;
    a_webhooks_account_has_its_host_names(&client, &own).await;

    // Switched on, those that are there already get theirs.
    let others: Api<Secret> = Api::namespaced(client.clone(), &off);
    assert!(others.get_opt("istio.default").await.unwrap().is_none());
    let patch = serde_json::json!({"metadata": {"labels": {"ca.istio.io/override": "true"}}});
    let patch = kube::api::Patch::Merge(&patch);
    let patching = kube::api::PatchParams::default();
    namespaces.patch(&off, &patching, &patch).await.unwrap();
    eventually("a Secret where it is switched on", async || {
        others.get_opt("istio.default").await.ok()?
    })
    .await;
    for name in [&own, &off] {
        namespaces.delete(name, &parameters).await.unwrap();
    }
}

/// And loses its Secret when it goes.
async fn a_webhooks_account_has_its_host_names(client: &Client, namespace: &str) {
    let account = "istio-galley-service-account";
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let galley = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(account.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let parameters = PostParams::default();
    accounts.create(&parameters, &galley).await.unwrap();
    let name = format!("istio.{account}");
    let secret = eventually("a webhook's Secret", async || {
        secrets.get_opt(&name).await.ok()?
    })
    .await;
    let leaf = leaf(&text(&secret, "cert-chain.pem").unwrap());
    let host = format!("istio-galley.{namespace}.svc");
    let host = rustls_pki_types::ServerName::try_from(host).unwrap();
    let parsed = rustls::server::ParsedCertificate::try_from(&leaf).unwrap();
    rustls::client::verify_server_name(&parsed, &host).unwrap();
    let parameters = DeleteParams::default();
    accounts.delete(account, &parameters).await.unwrap();
    eventually("no Secret without its account", async || {
        secrets.get_opt(&name).await.ok()?.is_none().then_some(())
    })
    .await;
}

fn command(data: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_istio_ca"))
        .args(arguments)
        .arg(format!("--data-dir={}", data.display()))
        .output()
        .unwrap()
}

/// The operator's command, carried out by the replica with this folder.
fn operate(data: &Path, arguments: &[&str]) -> String {
    let output = command(data, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
#[ignore = "needs an API server: set KUBECONFIG"]
async fn replicas_share_what_is_revoked_and_a_new_pod_knows_it() {
    let client = Client::try_default().await.unwrap();
    let namespace = format!("citadel-replicas-{}", std::process::id());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    make_namespace(&namespaces, &namespace, Some("false")).await;
    let folder = tempfile::tempdir().unwrap();
    let folders = ["first", "second", "third"].map(|name| folder.path().join(name));
    let first = start(&folders[0], &namespace);
    let second = start(&folders[1], &namespace);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let content = async |name: &str, key: &str| {
        let config_map = config_maps.get_opt(name).await.ok()??;
        config_map.data?.get(key).cloned()
    };
    let root = eventually("the root", async || content(CONFIG_MAP, ROOT_KEY).await).await;
    let token = token(&client, &namespace, "istio-ca").await;
    let issue = async |citadel: &Citadel| {
        let chain = eventually("a certificate", async || {
            ask(citadel, &root, &token).await.ok()
        })
        .await;
        serial_of(&leaf(&chain[0])).unwrap()
    };
    let serials = [issue(&first).await, issue(&second).await];

    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
    let flag = format!("--identity={identity}");
    let told = operate(&folders[0], &["revoke", &flag]);
    assert!(told.contains(&serials[0]), "{told}");
    let is_refused = async |citadel: &Citadel| {
        eventually("it is refused", async || {
            let refused = ask(citadel, &root, &token).await.err()?;
            (refused.code() == Code::PermissionDenied).then_some(())
        })
        .await;
    };
    is_refused(&second).await;
    // The second replica has added what it has issued itself.
    eventually("both certificates are revoked", async || {
        let text = content(REVOCATIONS, "revocations.json").await?;
        let has_all = serials.iter().all(|serial| text.contains(serial));
        has_all.then_some(())
    })
    .await;
    for (folder, serial) in folders.iter().zip(&serials) {
        eventually("the ledger says so", async || {
            let shown = operate(folder, &["certs", "show", serial]);
            shown.contains("State          revoked").then_some(())
        })
        .await;
    }

    // Their folders go with them; what they knew stays.
    drop((first, second));
    let third = start(&folders[2], &namespace);
    is_refused(&third).await;
    operate(&folders[2], &["restore", &flag]);
    issue(&third).await;
    let text = content(REVOCATIONS, "revocations.json").await.unwrap();
    assert!(serials.iter().all(|serial| text.contains(serial)), "{text}");
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs an API server: set KUBECONFIG"]
async fn any_replica_rotates_the_root_of_all() {
    let client = Client::try_default().await.unwrap();
    let namespace = format!("citadel-rotation-{}", std::process::id());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    make_namespace(&namespaces, &namespace, Some("false")).await;
    let folder = tempfile::tempdir().unwrap();
    let folders = ["first", "second"].map(|name| folder.path().join(name));
    let first = start(&folders[0], &namespace);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let roots = async |count: usize| {
        eventually("the namespace has the roots", async || {
            let config_map = config_maps.get_opt(CONFIG_MAP).await.ok()??;
            let roots = config_map.data?.get(ROOT_KEY).cloned()?;
            (certificates_from_pem(&roots).ok()?.len() == count).then_some(roots)
        })
        .await
    };
    let root = roots(1).await;
    let second = start(&folders[1], &namespace);
    let token = token(&client, &namespace, "istio-ca").await;
    let chain = async |citadel: &Citadel| {
        eventually("a certificate", async || {
            ask(citadel, &root, &token).await.ok()
        })
        .await
    };
    assert_eq!(chain(&first).await[1], chain(&second).await[1]);

    operate(&folders[1], &["rotate-root"]);
    roots(2).await;
    // The first one has made it its own.
    eventually("both roots come with a certificate", async || {
        let both = chain(&first).await;
        let count = certificates_from_pem(&both[1]).ok()?.len();
        (count == 2 && both[1] == chain(&second).await[1]).then_some(())
    })
    .await;
    let refused = command(&folders[0], &["rotate-root"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("being rotated already"), "{error}");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let secret = secrets.get(SECRET).await.unwrap();
    assert!(text(&secret, "next-cert.pem").is_some());

    // Somebody deletes it: it is the same again.
    secrets
        .delete(SECRET, &DeleteParams::default())
        .await
        .unwrap();
    let again = eventually("the Secret again", async || {
        secrets.get_opt(SECRET).await.ok()?
    });
    assert_eq!(again.await.data, secret.data);
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
}
