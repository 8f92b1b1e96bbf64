//! The real binary beside a pretended proxy program: bootstrap file, secrets over the socket, drain on SIGTERM.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::envoy::service::discovery::v3::DiscoveryRequest;
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto_component::grpc::{self, ClientOptions};

use crate::citadel::Citadel;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Agent(pub(crate) Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub(crate) fn agent(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilot-agent"));
    command
        .args([
            "proxy",
            "sidecar",
            "--unheard-of",
            "thing",
            "--proxyAdminPort",
        ])
        .arg(free_port().to_string())
        .arg("--configPath")
        .arg(folder.join("proxy"))
        .envs([
            ("POD_NAME", "web"),
            ("POD_NAMESPACE", "shop"),
            ("INSTANCE_IP", "127.0.0.1"),
        ])
        .env("SERVICE_ACCOUNT", "web-account")
        .stdout(Stdio::null());
    command
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Answers `/healthz/ready` with `status` as it is at the moment; the number of questions so far.
fn readiness(status: Arc<AtomicU16>) -> (u16, Arc<AtomicU16>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicU16::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut question = [0; 1024];
            let length = stream.read(&mut question).unwrap_or(0);
            let is_ours = question[..length].starts_with(b"GET /healthz/ready ");
            let status = if is_ours {
                status.load(Ordering::SeqCst)
            } else {
                404
            };
            let answer =
                format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, asked)
}

fn wait_for(port: u16, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilot-agent"));
    command
        .args(["wait", "--periodMillis", "10", "--statusPort"])
        .arg(port.to_string())
        .args(flags)
        .stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn waiting_ends_when_the_proxy_is_ready_and_fails_when_it_never_is() {
    let status = Arc::new(AtomicU16::new(503));
    let (port, asked) = readiness(status.clone());
    let mut waiting = Agent(wait_for(port, &[]).spawn().unwrap());
    eventually("it asks again and again", || {
        asked.load(Ordering::SeqCst) > 3
    })
    .await;
    assert!(waiting.0.try_wait().unwrap().is_none(), "it did not wait");
    status.store(200, Ordering::SeqCst);
    eventually("it ends", || waiting.0.try_wait().unwrap().is_some()).await;
    assert!(waiting.0.wait().unwrap().success());

    status.store(503, Ordering::SeqCst);
    let output = wait_for(port, &["--timeoutSeconds", "1"]).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("not ready after 1 s"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_secrets_to_the_proxy_that_it_runs_and_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let citadel = Citadel::start(folder.path(), Duration::from_secs(3600)).await;
    let log = folder.path().join("log");
    let program = folder.path().join("envoy");
    // What is under test is the agent: the proxy only says how it was called and when it was told to end.
    let script = format!(
        "#!/bin/sh\ntrap 'echo ended >> {0}; exit 0' TERM\necho \"$@\" > {0}\nwhile :; do sleep 0.02; done\n",
        log.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let status_port = free_port();
    let child = agent(folder.path())
        .arg("--binaryPath")
        .arg(&program)
        .args([
            "--caAddress",
            &citadel.address,
            "--statusPort",
            &status_port.to_string(),
        ])
        .arg("--caRootCert")
        .arg(&citadel.root_file)
        .arg("--tokenPath")
        .arg(&citadel.token_file)
        .env("TERMINATION_DRAIN_DURATION_SECONDS", "0")
        .spawn()
        .unwrap();
    let mut running = Agent(child);
    let called = || fs::read_to_string(&log).unwrap_or_default();
    eventually("the proxy is started", || called().ends_with('\n')).await;
    let file = folder.path().join("proxy/envoy-rev0.json");
    assert!(
        called().starts_with(&format!("-c {} --restart-epoch 0", file.display())),
        "{}",
        called()
    );
    let bootstrap: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        bootstrap["node"]["id"],
        "sidecar~127.0.0.1~web.shop~shop.svc.cluster.local"
    );

    let socket = format!("unix://{}", folder.path().join("proxy/SDS").display());
    let channel = grpc::channel(&socket, None, &ClientOptions::default()).unwrap();
    let mut secrets = SecretDiscoveryServiceClient::new(channel);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let names = vec!["default".to_owned(), "ROOTCA".to_owned()];
        let request = DiscoveryRequest {
            resource_names: names,
            ..DiscoveryRequest::default()
        };
        // The certificate and the roots come one after the other.
        if let Ok(answer) = secrets.fetch_secrets(request).await
            && answer.get_ref().resources.len() == 2
        {
            break;
        }
        assert!(Instant::now() < deadline, "no secret");
    }
    let answer = get(status_port, "/healthz/ready").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");

    let pid = Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    eventually("the agent ends", || running.0.try_wait().unwrap().is_some()).await;
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert!(called().ends_with("ended\n"), "{}", called());
    assert!(!folder.path().join("proxy/SDS").exists());
}

/// A bootstrap whose one cluster wants the workload's certificate; without the statistics listener, whose port is fixed.
fn custom_bootstrap(admin_port: u16, socket: &Path) -> String {
    let secret = |name: &str| {
        let service = serde_json::json!({"envoy_grpc": {"cluster_name": "sds-grpc"}});
        serde_json::json!({"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}}})
    };
    let endpoint = |name: &str, address: serde_json::Value| serde_json::json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]});
    let http2 = serde_json::json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}});
    let tls = serde_json::json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"tls_certificate_sds_secret_configs": [secret("default")],
            "validation_context_sds_secret_config": secret("ROOTCA")}}});
    let clusters = serde_json::json!([
        {"name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": http2,
            "load_assignment": endpoint("sds-grpc", serde_json::json!({"pipe": {"path": socket}}))},
        {"name": "peer", "type": "STATIC", "connect_timeout": "1s", "transport_socket": tls,
            "load_assignment": endpoint("peer", serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": 1}}))},
    ]);
    serde_json::json!({
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
        "static_resources": {"clusters": clusters},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_inside_gets_its_certificate_and_quits_with_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let citadel = Citadel::start(folder.path(), Duration::from_secs(3600)).await;
    let (admin_port, status_port) = (free_port(), free_port());
    let bootstrap = folder.path().join("bootstrap.json");
    let socket = folder.path().join("proxy/SDS");
    fs::write(&bootstrap, custom_bootstrap(admin_port, &socket)).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
        .args([
            "proxy",
            "sidecar",
            "--concurrency",
            "1",
            "--caAddress",
            &citadel.address,
        ])
        .args([
            "--proxyAdminPort",
            &admin_port.to_string(),
            "--statusPort",
            &status_port.to_string(),
        ])
        .arg("--configPath")
        .arg(folder.path().join("proxy"))
        .arg("--customConfigFile")
        .arg(&bootstrap)
        .arg("--caRootCert")
        .arg(&citadel.root_file)
        .arg("--tokenPath")
        .arg(&citadel.token_file)
        .envs([
            ("POD_NAME", "web"),
            ("POD_NAMESPACE", "shop"),
            ("SERVICE_ACCOUNT", "web-account"),
        ])
        .env("TERMINATION_DRAIN_DURATION_SECONDS", "0")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Agent(child);
    eventually("the proxy has the certificate", || {
        get(admin_port, "/certs")
            .is_some_and(|text| text.contains("spiffe://cluster.local/ns/shop/sa/web-account"))
    })
    .await;
    let mut stream = TcpStream::connect(("127.0.0.1", status_port)).unwrap();
    let request = "POST /quitquitquit HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    eventually("the agent ends", || running.0.try_wait().unwrap().is_some()).await;
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

fn fail(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_wrong_command_line_is_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) =
        fail(agent(folder.path()).args(["--binaryPath", "/no/envoy", "--statusPort", "0"]));
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(text, "pilot-agent: --binaryPath /no/envoy: no such file\n");
    let (code, text) = fail(agent(folder.path()).args(["--meshConfig", "/no/mesh"]));
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.starts_with("pilot-agent: read --meshConfig /no/mesh"),
        "{text}"
    );
    let (code, text) = fail(agent(folder.path()).args(["--controlPlaneAuthPolicy", "SOME"]));
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn a_request_prints_the_body_only_or_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        for answer in [
            "200 OK\r\ncontent-length: 4\r\n\r\nbody",
            "404 Not Found\r\ncontent-length: 4\r\n\r\ngone",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /config_dump?x=1 HTTP/1.1\r\n"));
            stream
                .write_all(format!("HTTP/1.1 {answer}").as_bytes())
                .unwrap();
        }
    });
    let ask = || {
        let output = Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
            .args([
                "request",
                "GET",
                "config_dump?x=1",
                "--proxyAdminPort",
                &port,
            ])
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(ask(), (true, "body".to_owned()));
    assert_eq!(ask(), (false, String::new()));
    server.join().unwrap();
    assert_eq!(ask(), (false, String::new()), "nobody listens any more");
}
