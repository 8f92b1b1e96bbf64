//! A component as a process: with the arguments that the chart gives its container, and as the chart's service account.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::NAMESPACE;

/// A component as a process, ended with the value.
pub(crate) struct Component {
    process: Child,
    /// Its volumes, each in a folder of its name.
    pub(crate) folder: PathBuf,
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = self.process.kill();
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

/// Flags of ports that the chart leaves as they are; several components run on this machine.
fn ports_of(program: &str) -> &'static [&'static str] {
    match program {
        "galley" => &["--server-address"],
        "pilot-discovery" => &[
            "--httpAddr",
            "--grpcAddr",
            "--mtlsGrpcAddr",
            "--secureGrpcAddr",
        ],
        _ => &[],
    }
}

/// Starts what the chart calls `deployment`: its arguments with volumes in a folder of our own and free ports, its service
/// account's token, and an endpoint of its service here.
pub(crate) async fn start(
    client: &Client,
    deployment: &str,
    program: &str,
    kubeconfig: &str,
    port_flag: &str,
    port_name: &str,
) -> Component {
    let monitoring = free_port();
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let found = serde_json::to_value(api.get(deployment).await.unwrap()).unwrap();
    let pod = &found["spec"]["template"]["spec"];
    let folder =
        std::env::temp_dir().join(format!("bireme-kube-{deployment}-{}", std::process::id()));
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
        let volume = pod["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|volume| volume["name"] == name);
        write_volume(client, volume.unwrap(), &target).await;
        moved.push((place.to_owned(), target.display().to_string()));
    }
    let port = free_port();
    let arguments = container["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|argument| {
            let mut text = argument.as_str().unwrap().to_owned();
            for (from, to) in &moved {
                text = text.replace(from, to);
            }
            if text.starts_with(port_flag) {
                return format!("{port_flag}={port}");
            }
            match text.split_once('=') {
                Some((flag @ ("--monitoringPort" | "--monitoring-port"), _)) => {
                    format!("{flag}={monitoring}")
                }
                Some((flag @ "--monitoringAddr", _)) => format!("{flag}=127.0.0.1:{monitoring}"),
                _ => text,
            }
        });
    let account = pod["serviceAccountName"].as_str().unwrap();
    let config = write_kubeconfig(client, account, &folder).await;
    let mut command = Command::new(debug_folder().join(program));
    command.args(arguments).arg(kubeconfig).arg(config);
    let more = ports_of(program).iter();
    command.args(more.map(|flag| format!("{flag}=127.0.0.1:{}", free_port())));
    let log = fs::File::create(folder.join("log")).unwrap();
    let process = command
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{deployment}-here"), "labels": {"kubernetes.io/service-name": deployment}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [own_address()], "conditions": {"ready": true}}],
        "ports": [{"name": port_name, "port": port}],
    }))
    .unwrap();
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let params = PatchParams::apply("test").force();
    slices
        .patch(&slice.name_any(), &params, &Patch::Apply(&slice))
        .await
        .unwrap();
    Component { process, folder }
}

async fn write_volume(client: &Client, volume: &Value, folder: &Path) {
    if let Some(name) = volume["configMap"]["name"].as_str() {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let found = api.get_opt(name).await.unwrap();
        for (key, text) in found.and_then(|found| found.data).unwrap_or_default() {
            fs::write(folder.join(key), text).unwrap();
        }
    } else if let Some(name) = volume["secret"]["secretName"].as_str() {
        let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
        // Some are optional.
        let found = api.get_opt(name).await.unwrap();
        for (key, bytes) in found.and_then(|found| found.data).unwrap_or_default() {
            fs::write(folder.join(key), bytes.0).unwrap();
        }
    }
}

/// The programs of this build.
pub(crate) fn debug_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_owned()
}

/// A kubeconfig that speaks for a service account.
async fn write_kubeconfig(client: &Client, account: &str, folder: &Path) -> PathBuf {
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
