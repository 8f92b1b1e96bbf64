//! A component as a process: with the arguments that the chart gives its container, and as the chart's service account.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use e2e::load::{Answer, HttpClient};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::NAMESPACE;

/// What the chart calls a component, and how a process of it differs from its container.
pub(crate) struct Kind {
    /// Its Deployment, which is also its Service and its Lease.
    pub(crate) deployment: &'static str,
    program: &'static str,
    kubeconfig: &'static str,
    /// The flag of the port that others reach, and the port's name in the Service.
    port: (&'static str, &'static str),
    /// Flags of ports that the chart leaves as they are; several components run on this machine.
    other_ports: &'static [&'static str],
}

pub(crate) const GALLEY: Kind = Kind {
    deployment: "istio-galley",
    program: "galley",
    kubeconfig: "--kubeconfig",
    port: ("--validation-port", "https-validation"),
    other_ports: &["--server-address"],
};
pub(crate) const INJECTOR: Kind = Kind {
    deployment: "istio-sidecar-injector",
    program: "sidecar-injector",
    kubeconfig: "--kubeconfig",
    port: ("--port", "https-inject"),
    other_ports: &[],
};
pub(crate) const PILOT: Kind = Kind {
    deployment: "istio-pilot",
    program: "pilot-discovery",
    kubeconfig: "--kubeconfig",
    port: ("--grpcAddr", "grpc-xds"),
    other_ports: &["--httpAddr", "--mtlsGrpcAddr", "--secureGrpcAddr"],
};
pub(crate) const CITADEL: Kind = Kind {
    deployment: "istio-citadel",
    program: "istio_ca",
    kubeconfig: "--kube-config",
    port: ("--grpc-port", "grpc-citadel"),
    other_ports: &[],
};

/// A component as a process, ended with the value.
pub(crate) struct Component {
    process: Child,
    /// Its volumes, each in a folder of its name.
    pub(crate) folder: PathBuf,
    /// Its name among replicas.
    pub(crate) name: String,
    /// Its port of metrics and health.
    monitoring: u16,
    /// The port that others reach.
    pub(crate) port: u16,
    /// Those of [`Kind::other_ports`].
    pub(crate) other_ports: Vec<u16>,
}

impl Component {
    /// Ends it as a node that vanishes does: it gives nothing back.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
    }

    /// Whether it says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        let found = self.page("/ready").await;
        found.is_ok_and(|answer| answer.status == 200)
    }

    /// A page of its port of metrics and health.
    pub(crate) async fn page(&self, path: &str) -> anyhow::Result<Answer> {
        let url = format!("http://127.0.0.1:{}{path}", self.monitoring);
        HttpClient::default().get(&url).await
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            let pid = self.process.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
            for _ in 0..200 {
                if !self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// This machine's own address: endpoints may not be on loopback.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent by this.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("0.0.0.0:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Starts the only replica of a component.
pub(crate) async fn start(client: &Client, kind: &Kind) -> Component {
    start_replica(client, kind, "0").await
}

/// Starts one of several replicas.
pub(crate) async fn start_replica(client: &Client, kind: &Kind, replica: &str) -> Component {
    start_with(client, kind, replica, &str::to_owned).await
}

/// Starts what the chart calls a Deployment: its arguments with volumes (their texts changed by `edit`) in a folder of our own and
/// free ports, its service account's token, and an endpoint of its service here.
pub(crate) async fn start_with(
    client: &Client,
    kind: &Kind,
    replica: &str,
    edit: &dyn Fn(&str) -> String,
) -> Component {
    let name = format!("{}-{replica}", kind.deployment);
    let monitoring = free_port();
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let found = serde_json::to_value(api.get(kind.deployment).await.unwrap()).unwrap();
    let pod = &found["spec"]["template"]["spec"];
    let folder = std::env::temp_dir().join(format!("bireme-kube-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let container = &pod["containers"][0];
    let mut moved = Vec::new();
    for mount in container["volumeMounts"].as_array().unwrap() {
        let (name, place) = (
            mount["name"].as_str().unwrap(),
            mount["mountPath"].as_str().unwrap(),
        );
        let target = folder.join(name);
        fs::create_dir_all(&target).unwrap();
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == name);
        write_volume(client, volume.unwrap(), &target, edit).await;
        moved.push((place.to_owned(), target.display().to_string()));
    }
    let port = free_port();
    let arguments = container["args"].as_array().unwrap().iter();
    let arguments = arguments.map(|argument| {
        let mut text = argument.as_str().unwrap().to_owned();
        for (from, to) in &moved {
            text = text.replace(from, to);
        }
        match text.split_once('=') {
            Some((flag @ ("--monitoringPort" | "--monitoring-port"), _)) => {
                format!("{flag}={monitoring}")
            }
            Some((flag @ "--monitoringAddr", _)) => format!("{flag}=127.0.0.1:{monitoring}"),
            _ => text,
        }
    });
    let (port_flag, _) = kind.port;
    let arguments = arguments.filter(|argument| !argument.starts_with(port_flag));
    let address = if port_flag.ends_with("Addr") { ":" } else { "" };
    let account = pod["serviceAccountName"].as_str().unwrap();
    let config = write_kubeconfig(client, account, &folder).await;
    let mut command = Command::new(debug_folder().join(kind.program));
    command.args(arguments).arg(kind.kubeconfig).arg(config);
    command.arg(format!("{port_flag}={address}{port}"));
    let others: Vec<(&str, u16)> = (kind.other_ports.iter())
        .map(|flag| (*flag, free_port()))
        .collect();
    command.args(
        others
            .iter()
            .map(|(flag, port)| format!("{flag}=127.0.0.1:{port}")),
    );
    // Where it looks for certificates without being told.
    command.env("PILOT_CERT_DIR", folder.join("istio-certs"));
    for variable in container["env"].as_array().into_iter().flatten() {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("metadata.name") => &name,
            Some("metadata.namespace") => NAMESPACE,
            _ => variable["value"].as_str().unwrap_or_default(),
        };
        command.env(variable["name"].as_str().unwrap(), value);
    }
    let log = fs::File::create(folder.join("log")).unwrap();
    let process = command
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    publish(client, kind, &name, port).await;
    Component {
        process,
        folder,
        name,
        monitoring,
        port,
        other_ports: others.into_iter().map(|(_, port)| port).collect(),
    }
}

/// Makes a port here an endpoint of a component's service.
async fn publish(client: &Client, kind: &Kind, name: &str, port: u16) {
    let slice: EndpointSlice = serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": kind.deployment, "here": "yes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [own_address()], "conditions": {"ready": true}}],
        "ports": [{"name": kind.port.1, "port": port}],
    }))
    .unwrap();
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let params = PatchParams::apply("test").force();
    slices
        .patch(&slice.name_any(), &params, &Patch::Apply(&slice))
        .await
        .unwrap();
}

/// What a replica has said so far.
pub(crate) fn log_of(component: &Component) -> String {
    fs::read_to_string(component.folder.join("log")).unwrap_or_default()
}

async fn write_volume(
    client: &Client,
    volume: &Value,
    folder: &Path,
    edit: &dyn Fn(&str) -> String,
) {
    if let Some(name) = volume["configMap"]["name"].as_str() {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let found = api.get_opt(name).await.unwrap();
        for (key, text) in found.and_then(|found| found.data).unwrap_or_default() {
            fs::write(folder.join(key), edit(&text)).unwrap();
        }
    } else if let Some(name) = volume["secret"]["secretName"].as_str() {
        write_secret(client, name, folder).await;
    }
}

/// Brings a Secret's files into a folder; none if there is no such Secret, as some are optional.
pub(crate) async fn write_secret(client: &Client, name: &str, folder: &Path) {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let found = api.get_opt(name).await.unwrap();
    for (key, bytes) in found.and_then(|found| found.data).unwrap_or_default() {
        fs::write(folder.join(key), bytes.0).unwrap();
    }
}

/// The programs of this build.
pub(crate) fn debug_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_owned()
}

/// A kubeconfig that speaks for a service account.
pub(crate) async fn write_kubeconfig(client: &Client, account: &str, folder: &Path) -> PathBuf {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let request: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": 3600}}))
            .unwrap();
    let token = api
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    let token = token.status.unwrap().token;
    let text = fs::read_to_string(std::env::var_os("KUBECONFIG").unwrap()).unwrap();
    let mut config = proto::yaml::parse_documents(&text).remove(0).unwrap().value;
    config["users"][0]["user"] = json!({"token": token});
    let path = folder.join("kubeconfig");
    fs::write(&path, config.to_string()).unwrap();
    path
}
