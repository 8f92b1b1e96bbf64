//! The CNI plugin in a chain behind the reference plugins, installed by the installer; its API server is a stand-in that knows
//! three pods.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use axum::Json;
use axum::extract::Path as Segments;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};

use crate::interception::{EVERYTHING, IN_POD, ON_NODE, check};
use crate::network::{Pod, on_a_node, run, serve_on_node};
use crate::tools::Tools;

/// Where Debian's `containernetworking-plugins` and everybody else's are.
const REFERENCE: &[&str] = &["/usr/lib/cni", "/opt/cni/bin"];

/// A node with a network, and the plugin installed into it.
struct Node {
    folder: tempfile::TempDir,
    list: Value,
    tools: Tools,
}

impl Node {
    fn new(network: &Value, tools: Tools) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["net.d", "bin"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("net.d/10-net.conflist"), network.to_string()).unwrap();
        for name in ["token", "ca.crt"] {
            fs::write(path(name), "x").unwrap();
        }
        let address = serve_pods();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(path("kubeconfig"), kubeconfig.to_string()).unwrap();
        let config = json!({
            "cniVersion": "1.0.0", "name": "istio-cni", "type": "istio-cni", "log_level": "warn",
            "kubernetes": {"kubeconfig": path("kubeconfig"), "exclude_namespaces": ["kube-system"]},
        });
        let installed = Command::new(env!("CARGO_BIN_EXE_istio-cni"))
            .arg("install")
            .env("CNI_NETWORK_CONFIG", config.to_string())
            .env("MOUNTED_CNI_NET_DIR", path("net.d"))
            .env("MOUNTED_CNI_BIN_DIRS", path("bin"))
            .env("KUBE_CA_FILE", path("ca.crt"))
            .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
            .env("SLEEP", "false")
            .args(["--token", &path("token")])
            .output()
            .unwrap();
        assert!(installed.status.success(), "{installed:?}");
        let list = fs::read_to_string(path("net.d/10-net.conflist")).unwrap();
        let list = serde_json::from_str(&list).unwrap();
        Node {
            folder,
            list,
            tools,
        }
    }

    /// Calls one plugin as a runtime does; its answer, or its error.
    fn call(
        &self,
        plugin: &Value,
        command: &str,
        pod: (&str, &Path),
        previous: &Value,
    ) -> Result<Value, Value> {
        let mut config = plugin.clone();
        for key in ["cniVersion", "name"] {
            config[key] = self.list[key].clone();
        }
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let own = self.folder.path().join("bin");
        let folders: Vec<PathBuf> = REFERENCE.iter().map(PathBuf::from).chain([own]).collect();
        let name = plugin["type"].as_str().unwrap();
        let program = folders
            .iter()
            .map(|folder| folder.join(name))
            .find(|program| program.is_file());
        let program = program.unwrap_or_else(|| panic!("there is no plugin {name} in {folders:?}"));
        let (identity, namespace) = pod;
        let (space, pod_name) = identity.split_once('/').unwrap();
        let mut child = Command::new(program)
            .env("PATH", self.tools.path())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod_name)
            .env("CNI_NETNS", namespace)
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={space};K8S_POD_NAME={pod_name}"),
            )
            .env("CNI_PATH", std::env::join_paths(&folders).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.to_string().as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            Ok(answer)
        } else {
            Err(answer)
        }
    }

    fn plugins(&self) -> Vec<Value> {
        self.list["plugins"].as_array().unwrap().clone()
    }

    /// Adds a pod to the network; the last plugin's answer.
    fn add(&self, name: &str, namespace: &Path) -> Result<Value, Value> {
        let mut result = Value::Null;
        for plugin in self.plugins() {
            result = self.call(&plugin, "ADD", (name, namespace), &result)?;
        }
        Ok(result)
    }

    fn check(&self, name: &str, namespace: &Path, result: &Value) -> Result<(), Value> {
        for plugin in self.plugins() {
            self.call(&plugin, "CHECK", (name, namespace), result)?;
        }
        Ok(())
    }

    fn delete(&self, name: &str, namespace: &Path, result: &Value) {
        for plugin in self.plugins().iter().rev() {
            self.call(plugin, "DEL", (name, namespace), result).unwrap();
        }
    }
}

/// The part of an API server that the plugin uses, in this network namespace.
fn serve_pods() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let pods = get(
                |Segments((_, name)): Segments<(String, String)>| async move {
                    match pod(&name) {
                        Some(pod) => (StatusCode::OK, Json(pod)),
                        None => (StatusCode::NOT_FOUND, Json(not_found(&name))),
                    }
                },
            );
            let routes =
                axum::Router::new().route("/api/v1/namespaces/{namespace}/pods/{name}", pods);
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
    });
    address
}

fn pod(name: &str) -> Option<Value> {
    let annotations = match name {
        "injected" => json!({"sidecar.istio.io/status": "{}"}),
        "plain" => json!({}),
        "wrong" => {
            json!({"sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/includeInboundPorts": "http"})
        }
        _ => return None,
    };
    Some(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
        "spec": {"containers": [{"name": "web"}, {"name": "istio-proxy"}]},
    }))
}

fn not_found(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound",
        "message": format!("pods \"{name}\" not found"),
    })
}

/// A network made by the reference plugins `main` and `portmap`.
fn network(main: &Value, folder: &Path) -> Value {
    let mut main = main.clone();
    main["ipam"] = json!({
        "type": "host-local", "dataDir": folder.join("ipam"),
        "ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.2", "gateway": "10.99.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let chain = [
        json!({"type": "loopback"}),
        main,
        json!({"type": "tuning", "sysctl": {}}),
    ];
    json!({"cniVersion": "1.0.0", "name": "bireme-test", "plugins": chain[1..]})
}

#[test]
#[ignore = "needs root, iptables, nft and containernetworking-plugins"]
fn pods_of_the_reference_plugins_are_intercepted_and_left_without_a_trace() {
    let damage = "iptables -t nat -D ISTIO_OUTPUT 1";
    let damage_nft = "nft flush chain ip istio_nat ISTIO_OUTPUT";
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true});
    for (main, tools, damage) in [
        (bridge, Tools::iptables(), damage),
        (json!({"type": "ptp"}), Tools::iptables(), damage),
        (json!({"type": "ptp"}), Tools::nft(), damage_nft),
    ] {
        on_a_node(move || {
            let folder = tempfile::tempdir().unwrap();
            let node = Node::new(&network(&main, folder.path()), tools);
            let pod = Pod::new();
            let namespace = pod.namespace();
            let result = node.add("shop/injected", &namespace).unwrap();
            // What the plugins before have said is passed through.
            assert_eq!(result["cniVersion"], "1.0.0");
            assert_eq!(result["ips"][0]["address"], "10.99.0.2/24", "{result}");
            if main["type"] == "ptp" {
                run("ip", &["addr", "add", "10.99.0.1/32", "dev", "lo"]);
            }
            pod.serve(IN_POD);
            serve_on_node(ON_NODE);
            check(&pod, &main.to_string(), EVERYTHING);

            node.check("shop/injected", &namespace, &result).unwrap();
            pod.run(&damage.split(' ').collect::<Vec<_>>());
            let error = node
                .check("shop/injected", &namespace, &result)
                .unwrap_err();
            assert!(
                error["msg"].as_str().unwrap().contains("ISTIO_OUTPUT"),
                "{error}"
            );

            node.delete("shop/injected", &namespace, &result);
            let left = ["iptables-save", "nft list ruleset", "ip -o link"]
                .map(|line| pod.run(&line.split(' ').collect::<Vec<_>>()))
                .concat();
            assert!(!left.contains("ISTIO") && !left.contains("eth0"), "{left}");
            // A second time, and without the namespace: a runtime may ask again.
            drop(pod);
            node.delete("shop/injected", &namespace, &result);
        });
    }
}

#[test]
#[ignore = "needs root, iptables and containernetworking-plugins"]
fn pods_that_are_none_of_ours_are_left_alone_and_wrong_ones_refused() {
    on_a_node(|| {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::new(
            &network(&json!({"type": "ptp"}), folder.path()),
            Tools::iptables(),
        );
        for name in ["shop/plain", "kube-system/unknown"] {
            let pod = Pod::new();
            let result = node.add(name, &pod.namespace()).unwrap();
            assert!(!pod.run(&["iptables-save"]).contains("ISTIO"), "{name}");
            node.check(name, &pod.namespace(), &result).unwrap();
            node.delete(name, &pod.namespace(), &result);
        }
        for (name, code, reason) in [
            ("shop/wrong", 100, "\"http\" is not a port"),
            ("shop/unknown", 11, "pods \"unknown\" not found"),
        ] {
            let pod = Pod::new();
            let error = node.add(name, &pod.namespace()).unwrap_err();
            assert_eq!(error["code"], code, "{error}");
            assert!(error["msg"].as_str().unwrap().contains(reason), "{error}");
        }
    });
}
