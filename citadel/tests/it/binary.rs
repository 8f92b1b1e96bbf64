//! The real binary: killed with SIGKILL while it issues, started again; bad command lines.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use citadel::admin::Entry;
use citadel::pki::{certificates_from_pem, serial_of};
use citadel::testing::{ISSUER, TokenIssuer};
use parking_lot::Mutex;
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto_component::grpc::{self, ClientOptions};
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use tonic::Request;

const PATIENCE: Duration = Duration::from_secs(60);
const CALLERS: usize = 8;

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

/// What the ledger says, by the operator's command.
fn certs(folder: &Path, arguments: &[&str]) -> String {
    let data = format!("--data-dir={}", folder.join("data").display());
    let output = Command::new(env!("CARGO_BIN_EXE_istio_ca"))
        .args(arguments)
        .arg(data)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

fn issued(folder: &Path) -> Vec<Entry> {
    let text = certs(folder, &["certs", "list", "--limit=100000", "-o=json"]);
    serde_json::from_str(&text).unwrap()
}

/// Asks for certificates until the server is gone; the serial numbers of those acknowledged.
async fn ask_until_killed(
    server: Server,
    port: u16,
    root: &[u8],
    token: &str,
    kill_after: usize,
) -> Vec<String> {
    let pem = Pem {
        roots: root.to_vec(),
        ..Pem::default()
    };
    let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])
        .and_then(|tls| tls.with_server_name("istio-citadel.istio-system.svc"))
        .unwrap();
    let target = format!("127.0.0.1:{port}");
    let channel = grpc::channel(&target, Some(tls), &ClientOptions::default()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default();
    let csr = csr.serialize_request(&key).unwrap().pem().unwrap();
    let server = Mutex::new(Some(server));
    let acknowledged = Mutex::new(Vec::new());
    // Several at once, so that there are always some on their way.
    let callers = (0..CALLERS).map(|_| async {
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        loop {
            let mut request = Request::new(IstioCertificateRequest {
                csr: csr.clone(),
                ..IstioCertificateRequest::default()
            });
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
            let answer = match client.create_certificate(request).await {
                Ok(answer) => answer.into_inner(),
                Err(error) => {
                    let is_killed = server.lock().is_none();
                    assert!(is_killed, "refused before the kill: {error}");
                    return;
                }
            };
            let leaf = certificates_from_pem(&answer.cert_chain[0]).unwrap();
            let mut acknowledged = acknowledged.lock();
            acknowledged.push(serial_of(&leaf[0]).unwrap());
            if acknowledged.len() >= kill_after
                && let Some(mut running) = server.lock().take()
            {
                running.0.kill().unwrap();
            }
        }
    });
    futures::future::join_all(callers).await;
    acknowledged.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_time_it_comes_back_with_root_and_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = TokenIssuer::new();
    fs::write(folder.path().join("jwks.json"), issuer.jwks()).unwrap();
    let token = issuer.token("default", "bookinfo-details");
    let ports = free_ports();
    let mut acknowledged = Vec::new();
    let mut first_root = None;
    for kill_after in [1, 40, 3, 170, 11, 90] {
        let server = start(folder.path(), &ports);
        let root = fs::read(folder.path().join("root.pem")).unwrap();
        assert_eq!(*first_root.get_or_insert_with(|| root.clone()), root);
        acknowledged.extend(ask_until_killed(server, ports.grpc, &root, &token, kill_after).await);
    }
    let _server = start(folder.path(), &ports);
    let identity = "spiffe://cluster.local/ns/default/sa/bookinfo-details";
    let entries = issued(folder.path());
    assert!(
        entries
            .iter()
            .all(|entry| entry.issued.identity == identity && !entry.revoked)
    );
    for serial in &acknowledged {
        assert!(
            entries.iter().any(|entry| entry.issued.serial == *serial),
            "{serial} was acknowledged and is not in the ledger"
        );
    }
    let verified = certs(folder.path(), &["certs", "verify"]);
    assert_eq!(
        verified,
        format!("{} entries, each as it was written\n", entries.len())
    );
    operators_see_and_revoke(folder.path(), identity, &acknowledged);
    files_are_their_owners_only(&folder.path().join("data"));
}

/// Whatever the umask: the root's key is among them.
fn files_are_their_owners_only(path: &Path) {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path), 0o700, "{}", path.display());
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files_are_their_owners_only(&entry.path());
        } else {
            let mode = mode(&entry.path());
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
        }
    }
}

fn operators_see_and_revoke(folder: &Path, identity: &str, serials: &[String]) {
    let shown = certs(folder, &["certs", "show", &serials[0].to_uppercase()]);
    assert!(
        shown.contains(identity) && shown.contains("State          good"),
        "{shown}"
    );
    let shown = certs(folder, &["certs", "show", "-o=json", &serials[0]]);
    let entry: Entry = serde_json::from_str(&shown).unwrap();
    assert_eq!(entry.issued.serial, serials[0]);
    assert!(entry.issued.peer.is_some() && !entry.revoked, "{shown}");
    let list = certs(
        folder,
        &["certs", "list", "--limit=2", "--identity", identity],
    );
    assert_eq!(list.lines().count(), 3, "{list}");
    let text = certs(folder, &["revoke", "--serial", &serials[0]]);
    assert_eq!(text, format!("revoked {} of {identity}\n", serials[0]));
    let shown = certs(folder, &["certs", "show", &serials[0]]);
    assert!(shown.contains("State          revoked"), "{shown}");
    certs(folder, &["revoke", "--identity", identity]);
    assert!(issued(folder).iter().all(|entry| entry.revoked));
    let text = certs(folder, &["restore", "--identity", identity]);
    assert!(text.contains("may have certificates again"), "{text}");
    certs(folder, &["rotate-root"]);
    let (code, error) = fail(&[
        "rotate-root",
        &format!("--data-dir={}", folder.join("data").display()),
    ]);
    assert!(
        code != Some(0) && error.contains("being rotated already"),
        "{error}"
    );
    let socket = fs::metadata(folder.join("data/admin.sock")).unwrap();
    assert!(std::os::unix::fs::FileTypeExt::is_socket(
        &socket.file_type()
    ));
    let data = format!("--data-dir={}", folder.join("data").display());
    for (arguments, text) in [
        (
            ["revoke", "--serial=77"],
            "no certificate with serial number 77",
        ),
        (["revoke", "--identity=me"], "is no identity"),
    ] {
        let (code, error) = fail(&[&arguments[..], &[data.as_str()][..]].concat());
        assert!(
            code != Some(0) && error.contains(text),
            "{arguments:?}: {error}"
        );
    }
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
