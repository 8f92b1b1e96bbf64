//! A Mixer in this process, on ports of its own, with configuration from a folder.

use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use mixer::args::{Action, Command};
use mixer::bootstrap::Server;
use proto::istio::mixer::v1::mixer_client::MixerClient;
use proto::istio::mixer::v1::{CheckRequest, CheckResponse};
use proto_component::Process;
use proto_mesh::attribute::{Attributes, Value, codec, dictionary};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Channel;

/// Attributes that the tests' rules speak of.
pub(crate) const MANIFEST: &str = r"
apiVersion: config.istio.io/v1alpha2
kind: attributemanifest
metadata: {name: test, namespace: istio-system}
spec:
  attributes:
    context.reporter.kind: {valueType: STRING}
    destination.namespace: {valueType: STRING}
    source.namespace: {valueType: STRING}
    source.name: {valueType: STRING}
    source.ip: {valueType: IP_ADDRESS}
    request.headers: {valueType: STRING_MAP}
    request.size: {valueType: INT64}
    my.own: {valueType: STRING}
";

pub(crate) struct TestServer {
    pub(crate) client: MixerClient<Channel>,
    pub(crate) folder: TempDir,
    pub(crate) grpc: u16,
    pub(crate) monitoring: u16,
    pub(crate) prometheus: u16,
    process: Process,
}

impl TestServer {
    /// Starts with these documents and waits until they are in force.
    pub(crate) async fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        let url = format!("fs://{}", folder.path().display());
        Self::start_with(&url, folder).await
    }

    pub(crate) async fn start_with(url: &str, folder: TempDir) -> Self {
        let arguments = [
            "mixs",
            "server",
            "--address",
            "tcp://127.0.0.1:0",
            "--monitoringPort",
            "0",
            "--prometheusPort",
            "0",
            "--configStoreURL",
            url,
        ];
        let Action::Server(args) = Command::parse_from(arguments).action else {
            panic!("not a server");
        };
        let process = Process::detached("mixs");
        let server = Server::new(&process, &args).await.unwrap();
        let [grpc, monitoring, prometheus, _] = server.ports();
        let [grpc, monitoring, prometheus] = [grpc, monitoring, prometheus].map(Option::unwrap);
        proto_component::task::spawn("server", server.run());
        process.readiness.wait().await;
        let client = MixerClient::connect(format!("http://127.0.0.1:{grpc}"))
            .await
            .unwrap();
        Self {
            client,
            folder,
            grpc,
            monitoring,
            prometheus,
            process,
        }
    }

    /// Replaces the configuration; it is in force some time later.
    pub(crate) fn write(&self, config: &str) {
        let path = self.folder.path();
        // By rename, so that nobody reads half of it.
        let aside = path.join("config.new");
        std::fs::write(&aside, config).unwrap();
        std::fs::rename(aside, path.join("config.yaml")).unwrap();
    }

    pub(crate) async fn check(&mut self, request: CheckRequest) -> CheckResponse {
        self.client.check(request).await.unwrap().into_inner()
    }

    /// A page of the monitoring port.
    pub(crate) async fn page(&self, path: &str) -> String {
        get(self.monitoring, path).await
    }

    /// The mesh's metrics.
    pub(crate) async fn scrape(&self) -> String {
        get(self.prometheus, "/metrics").await
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.process.trigger.drain(Duration::from_millis(100));
    }
}

/// The body of a page on the loopback.
pub(crate) async fn get(port: u16, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Asks again until `condition` holds; the configuration takes a moment.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    for _ in 0..3000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never came true: {what}");
}

pub(crate) fn attributes<const N: usize>(entries: [(&'static str, Value); N]) -> Attributes {
    let mut attributes = Attributes::new();
    for (name, value) in entries {
        attributes.set(name, value);
    }
    attributes
}

pub(crate) fn request(attributes: &Attributes) -> CheckRequest {
    CheckRequest {
        attributes: Some(codec::encode(attributes, dictionary::WORDS.len())),
        global_word_count: u32::try_from(dictionary::WORDS.len()).unwrap(),
        ..CheckRequest::default()
    }
}

/// What an answer depended on, as text.
pub(crate) fn referenced(response: &CheckResponse) -> Vec<String> {
    let precondition = response.precondition.as_ref().unwrap();
    let referenced = precondition.referenced_attributes.as_ref().unwrap();
    referenced_text(referenced)
}

pub(crate) fn referenced_text(
    referenced: &proto::istio::mixer::v1::ReferencedAttributes,
) -> Vec<String> {
    let words = codec::Words::new(&referenced.words);
    let mut text: Vec<_> = referenced
        .attribute_matches
        .iter()
        .map(|found| {
            let name = words.get(found.name).unwrap();
            let mark = if found.condition == 1 { "-" } else { "" };
            match found.map_key {
                0 => format!("{mark}{name}"),
                key => format!("{mark}{name}[{}]", words.get(key).unwrap()),
            }
        })
        .collect();
    text.sort();
    text
}

pub(crate) fn default_config() -> String {
    let files = ["attributes", "kubernetesenv", "prometheus"];
    files.map(default_file).join("---\n")
}

/// One of the files that chart and local mesh choose from.
pub(crate) fn default_file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("default");
    std::fs::read_to_string(folder.join(name).with_extension("yaml")).unwrap()
}
