//! Galley as a process: files in, MCP, webhook and debug pages out.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it cannot go on"
)]

mod kubernetes;
mod server;
mod standing_in;
mod validate;
mod xds;

use proto_component::{
    drain::Drain,
    grpc::{ClientOptions, channel},
    tls::{ClientTls, Pem, ServerIdentity},
};
use proto_mcp::{
    metrics::McpMetrics,
    sink::{Sink, SinkOptions, SinkView, Subscription},
    snapshot::Collection,
};
use rcgen::{CertificateParams, KeyPair, SanType, string::Ia5String};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

pub(crate) const SOON: Duration = Duration::from_secs(60);
/// A process that is held up takes its drain's ten seconds; any other ends before this.
const GRACE: Duration = Duration::from_secs(8);
pub(crate) const VIRTUAL_SERVICES: &str = "istio/networking/v1alpha3/virtualservices";
pub(crate) const SERVICES: &str = proto::kind::SYNTHETIC_SERVICE_ENTRIES;
pub(crate) const MESH: &str = proto::kind::MESH_CONFIG;

/// A place for a Galley: folders, certificate, ports.
pub(crate) struct Place {
    dir: TempDir,
    pub(crate) mcp: u16,
    pub(crate) webhook: u16,
    pub(crate) monitoring: u16,
    certificate: String,
    is_secure: bool,
}

/// A Galley that runs; killed when dropped.
pub(crate) struct Running {
    child: Child,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        fs::write(dir.path().join("mesh.yaml"), "enableAutoMtls: true\n").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let id = "spiffe://cluster.local/ns/istio-system/sa/istio-galley-service-account";
        params
            .subject_alt_names
            .push(SanType::URI(Ia5String::try_from(id).unwrap()));
        let certificate = params.self_signed(&key).unwrap().pem();
        fs::write(dir.path().join("cert.pem"), &certificate).unwrap();
        fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        let [mcp, webhook, monitoring] = free_ports();
        Self {
            dir,
            mcp,
            webhook,
            monitoring,
            certificate,
            is_secure: false,
        }
    }

    pub(crate) fn secure() -> Self {
        Self {
            is_secure: true,
            ..Self::new()
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a configuration file as a careful tool does: whole, by rename.
    pub(crate) fn write(&self, name: &str, yaml: &str) {
        let path = self.path("config").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let next = self.path(".next");
        fs::write(&next, yaml).unwrap();
        fs::rename(next, path).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path("config").join(name)).unwrap();
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(&[])
    }

    pub(crate) fn start_with(&self, more: &[&str]) -> Running {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.path(file).display());
        let child = Command::new(env!("CARGO_BIN_EXE_galley"))
            .args(["server", "--enableServiceDiscovery=true"])
            .args(more)
            .arg(format!("--insecure={}", !self.is_secure))
            .arg(format!("--server-address=tcp://127.0.0.1:{}", self.mcp))
            .arg(format!("--validation-port={}", self.webhook))
            .arg(format!("--monitoringPort={}", self.monitoring))
            .args([
                flag("configPath", "config"),
                flag("meshConfigFile", "mesh.yaml"),
            ])
            .args([
                flag("tlsCertFile", "cert.pem"),
                flag("tlsKeyFile", "key.pem"),
            ])
            .args([
                flag("caCertFile", "cert.pem"),
                flag("accessListFile", "access.yaml"),
            ])
            .arg(flag("data-dir", "data"))
            .stdout(Stdio::from(fs::File::create(self.path("log")).unwrap()))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Running { child }
    }

    pub(crate) fn pem(&self) -> Pem {
        Pem {
            chain: self.certificate.clone().into_bytes(),
            key: fs::read(self.path("key.pem")).unwrap(),
            roots: self.certificate.clone().into_bytes(),
            ..Pem::default()
        }
    }

    /// A channel to the port that serves.
    pub(crate) fn channel(&self) -> tonic::transport::Channel {
        let tls = self
            .is_secure
            .then(|| ClientTls::from_pem(&self.pem(), ServerIdentity::Trusted, &["h2"]).unwrap());
        let target = format!("127.0.0.1:{}", self.mcp);
        channel(&target, tls, &ClientOptions::default()).unwrap()
    }

    /// A sink that accepts whatever comes.
    pub(crate) fn sink(&self, collections: &[&str]) -> SinkView {
        let channel = self.channel();
        let options = SinkOptions {
            id: "test".into(),
            collections: collections
                .iter()
                .map(|name| Subscription::required(*name))
                .collect(),
            ..SinkOptions::default()
        };
        let metrics = McpMetrics::unregistered("test");
        let sink = Sink::dial(channel, options, metrics, Drain::never());
        let view = sink.view();
        proto_component::task::spawn("consumer", async move {
            while let Some(update) = sink.next().await {
                update.ack();
            }
        });
        view
    }

    /// A page of the monitoring port, as text; empty while it does not answer.
    pub(crate) async fn page(&self, path: &str) -> String {
        let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitoring)).await else {
            return String::new();
        };
        http(stream, &format!("GET {path}"), "").await
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.page(path).await).unwrap_or_default()
    }

    pub(crate) async fn until(&self, path: &str, holds: impl Fn(&str) -> bool) {
        let end = Instant::now() + SOON;
        loop {
            let page = self.page(path).await;
            if holds(&page) {
                return;
            }
            assert!(Instant::now() < end, "{path} says still: {page}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks the webhook; the response of the review.
    pub(crate) async fn admit(&self, operation: &str, object: &Value) -> Value {
        let review = serde_json::json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "42", "operation": operation, "userInfo": {}, "namespace": "shop",
                "kind": {"group": "networking.istio.io", "version": "v1", "kind": "VirtualService"},
                "resource": {"group": "networking.istio.io", "version": "v1", "resource": "virtualservices"},
                "object": object,
            },
        });
        let trust = Pem {
            chain: Vec::new(),
            key: Vec::new(),
            ..self.pem()
        };
        let tls = ClientTls::from_pem(&trust, ServerIdentity::Trusted, &["http/1.1"]).unwrap();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.webhook))
            .await
            .unwrap();
        let name = tls.server_name("localhost").unwrap();
        let stream = tls.connector().connect(name, stream).await.unwrap();
        let answer = http(stream, "POST /admitpilot", &review.to_string()).await;
        serde_json::from_str::<Value>(&answer).unwrap()["response"].clone()
    }
}

impl Running {
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().unwrap();
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let took = SOON - end.duration_since(Instant::now());
                assert!(took < GRACE, "took {took:?} to end");
                return status;
            }
            assert!(Instant::now() < end, "does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a stream of its own; the body of the answer.
async fn http(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str, body: &str) -> String {
    let length = body.len();
    let text = format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // TLS servers may leave without a word.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default()
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

pub(crate) fn galley(args: &[&str], folder: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_galley"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// The same with something on standard input.
pub(crate) fn galley_reading(args: &[&str], input: &str) -> std::process::Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_galley"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It ends when it is dropped.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

pub(crate) fn route(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}\n"
    )
}

/// The state of a collection, once the sink has one for which the condition holds.
pub(crate) async fn state(
    sink: &SinkView,
    collection: &str,
    holds: impl Fn(&Collection) -> bool,
) -> Arc<Collection> {
    let end = Instant::now() + SOON;
    loop {
        if let Some(state) = sink.last_good(collection).filter(|state| holds(state)) {
            return state;
        }
        assert!(
            Instant::now() < end,
            "{collection} is still {:?}",
            sink.last_good(collection)
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
