//! The real binary: killed with SIGKILL while it issues, started again; bad command lines.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use citadel::ledger::Issued;
use citadel::testing::{ISSUER, TokenIssuer};
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use tonic::Request;

const PATIENCE: Duration = Duration::from_secs(20);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Ports {
    grpc: u16,
    monitoring: u16,
}

fn free_ports() -> Ports {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (a, b) = (bind(), bind());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    Ports {
        grpc: port(&a),
        monitoring: port(&b),
    }
}

fn start(folder: &Path, ports: &Ports) -> Server {
    let child = Command::new(env!("CARGO_BIN_EXE_istio_ca"))
        .arg("--self-signed-ca=true")
        .arg(format!("--grpc-port={}", ports.grpc))
        .arg(format!("--monitoring-port={}", ports.monitoring))
        .arg(format!("--data-dir={}", folder.join("data").display()))
        .arg(format!(
            "--root-cert-out={}",
            folder.join("root.pem").display()
        ))
        .arg(format!("--oidc-issuer={ISSUER}"))
        .arg(format!(
            "--oidc-jwks={}",
            folder.join("jwks.json").display()
        ))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(child);
    let deadline = Instant::now() + PATIENCE;
    while http_get(ports.monitoring, "/ready").is_none_or(|body| !body.starts_with("HTTP/1.1 200"))
    {
        assert!(Instant::now() < deadline, "citadel does not become ready");
        std::thread::yield_now();
    }
    server
}

fn http_get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn issued(port: u16) -> Vec<Issued> {
    let answer = http_get(port, "/debug/issued?limit=10000").unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

/// Asks for certificates until the server is gone; the number of those acknowledged.
async fn ask_until_killed(server: Server, port: u16, root: &[u8], token: &str) -> usize {
    let pem = Pem {
        roots: root.to_vec(),
        ..Pem::default()
    };
    let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])
        .and_then(|tls| tls.with_server_name("istio-citadel.istio-system.svc"))
        .unwrap();
    let target = format!("127.0.0.1:{port}");
    let channel = grpc::channel(&target, Some(tls), &ClientOptions::default()).unwrap();
    let mut client = IstioCertificateServiceClient::new(channel);
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    let mut server = Some(server);
    let mut acknowledged = 0;
    loop {
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.clone(),
            ..IstioCertificateRequest::default()
        });
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        if let Err(error) = client.create_certificate(request).await {
            assert!(server.is_none(), "refused before the kill: {error}");
            return acknowledged;
        }
        acknowledged += 1;
        if acknowledged == 10
            && let Some(mut running) = server.take()
        {
            // SIGKILL, while more requests are on their way.
            running.0.kill().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_time_it_comes_back_with_root_and_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = TokenIssuer::new();
    fs::write(folder.path().join("jwks.json"), issuer.jwks()).unwrap();
    let token = issuer.token("default", "bookinfo-details");
    let ports = free_ports();
    let mut acknowledged = 0;
    let mut first_root = None;
    for _ in 0..3 {
        let server = start(folder.path(), &ports);
        let root = fs::read(folder.path().join("root.pem")).unwrap();
        assert_eq!(*first_root.get_or_insert_with(|| root.clone()), root);
        let kept = issued(ports.monitoring).len();
        assert!(
            kept >= acknowledged,
            "{kept} of {acknowledged} entries are left"
        );
        acknowledged = kept + ask_until_killed(server, ports.grpc, &root, &token).await;
    }
    let _server = start(folder.path(), &ports);
    let entries = issued(ports.monitoring);
    assert!(entries.len() >= acknowledged);
    assert!(
        entries
            .iter()
            .all(|entry| entry.identity == "spiffe://cluster.local/ns/default/sa/bookinfo-details")
    );
    let data = fs::metadata(folder.path().join("data")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o777,
        0o700
    );
}

fn fail(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_istio_ca"))
        .args(arguments)
        .output()
        .unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_wrong_command_line_is_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", folder.path().join("data").display());
    let (code, text) = fail(&[&data]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.starts_with("istio_ca: no CA: give --self-signed-ca"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);

    let (code, text) = fail(&[
        &data,
        "--signing-cert=/no/c",
        "--signing-key=/no/k",
        "--root-cert=/no/r",
    ]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("read /no/c"), "{text}");

    let (code, text) = fail(&[&data, "--self-signed-ca", "--oidc-issuer=x"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("go together"), "{text}");

    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = format!("--grpc-port={}", taken.local_addr().unwrap().port());
    let (code, text) = fail(&[&data, "--self-signed-ca", &port]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("choose another with --grpc-port"), "{text}");
}

#[test]
fn the_probe_fails_without_a_fresh_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alive");
    let flag = format!("--probe-path={}", path.display());
    assert_ne!(fail(&["probe", &flag]).0, Some(0));
    fs::write(&path, "").unwrap();
    assert_eq!(fail(&["probe", &flag, "--interval=60s"]).0, Some(0));
    assert_ne!(fail(&["probe", &flag, "--interval=0"]).0, Some(0));
}
