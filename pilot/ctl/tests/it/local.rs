//! The platform without a control plane: plain pods of this machine's commands.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const OFF: &str = "galley.enabled=false,pilot.enabled=false,security.enabled=false,mixer.policy.enabled=false,\
    mixer.telemetry.enabled=false,sidecarInjectorWebhook.enabled=false,gateways.enabled=false,\
    local.hostPorts.http=0,local.hostPorts.https=0,local.hostPorts.tcp=0,local.hostPorts.pilot=0,local.hostPorts.metrics=0";

/// Runs its arguments where iptables cannot be.
const HIDE_IPTABLES: &str = r#"program=$(command -v iptables-restore) &&
    mount --bind /dev/null "$(readlink -f "$program")"; exec "$0" "$@""#;

/// A mesh of its own name; gone when this is dropped.
struct Mesh {
    name: &'static str,
    up: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

/// Two web servers behind a service: each answers with the name of its pod.
fn manifest(port: u16) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: page}}
data: {{greeting: hello}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      initContainers:
      - name: prepare
        command: [sh, -c, "cp /etc/page/greeting /srv-data/index && echo $(POD) >> /srv-data/index"]
        env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
        volumeMounts: [{{name: page, mountPath: /etc/page}}, {{name: data, mountPath: /srv-data}}]
      containers:
      - name: web
        command: [python3, -m, http.server, "8000"]
        workingDir: /srv-data
        ports: [{{name: http, containerPort: 8000, hostPort: {port}}}]
        readinessProbe: {{httpGet: {{path: /index, port: http}}}}
        volumeMounts: [{{name: data, mountPath: /srv-data}}]
      volumes:
      - {{name: page, configMap: {{name: page}}}}
      - {{name: data, emptyDir: {{}}}}
"#
    )
}

impl Mesh {
    fn up(name: &'static str) -> Self {
        Self::start(name, Command::new(env!("CARGO_BIN_EXE_biremectl")))
    }

    /// Where iptables is absent.
    fn up_with_nft(name: &'static str) -> Self {
        let mut command = Command::new("unshare");
        let program = env!("CARGO_BIN_EXE_biremectl");
        command.args(["--mount", "sh", "-c", HIDE_IPTABLES, program]);
        Self::start(name, command)
    }

    fn start(name: &'static str, mut command: Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let app = directory.path().join("app.yaml");
        fs::write(&app, manifest(port)).unwrap();
        let up = command
            .args(["local", "up", "--name", name, "--set", OFF, "--app"])
            .arg(&app)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mesh = Self {
            name,
            up,
            port,
            _directory: directory,
        };
        eventually("the pods are ready", || {
            mesh.run(&["status"]).contains("2/2")
        });
        // The network follows a moment later.
        eventually("the page through the host's port", || mesh.page().is_some());
        mesh
    }

    fn output(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_biremectl"))
            .args(["local", "--name", self.name])
            .args(args)
            .output()
            .unwrap()
    }

    fn run(&self, args: &[&str]) -> String {
        String::from_utf8_lossy(&self.output(args).stdout).into_owned()
    }

    fn state(&self) -> PathBuf {
        PathBuf::from("/run/bireme/local").join(self.name)
    }

    fn pids(&self) -> Vec<u64> {
        let status: serde_json::Value =
            serde_json::from_str(&self.run(&["status", "-o", "json"])).unwrap();
        let pids = status[0]["pids"].as_array().unwrap().iter();
        pids.map(|pid| pid.as_u64().unwrap()).collect()
    }

    /// The page, through the port on the host.
    fn page(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream
            .write_all(b"GET /index HTTP/1.0\r\nHost: web\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.into())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.output(&["down"]);
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
#[ignore = "needs root and iptables"]
fn pods_have_volumes_names_services_and_host_ports() {
    let mesh = Mesh::up("it-pods");
    let page = mesh.page().unwrap();
    assert!(page.starts_with("hello"), "{page}");
    assert!(page.contains("web-"), "{page}");
    let script = "import urllib.request as r; print(sorted({r.urlopen('http://web/index').read() for _ in range(40)}))";
    // Here, too, the network may follow a moment later.
    eventually("both pods answer", || {
        let answer = mesh.run(&["exec", "deploy/web", "--", "python3", "-c", script]);
        answer.matches("hello").count() == 2
    });
    let hosts = mesh.run(&["exec", "deploy/web", "--", "cat", "/etc/resolv.conf"]);
    assert!(hosts.contains("search default.svc.cluster.local"));
    let unknown = mesh.output(&["exec", "deploy/web", "--", "getent", "hosts", "nothing"]);
    assert!(!unknown.status.success());
    assert!(mesh.run(&["logs", "deploy/web"]).contains("GET /index"));
    // Nothing of it shows on the host.
    assert!(!fs::exists("/srv-data").unwrap());
    let links = Command::new("ip").args(["link"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains("pod0-"));
}

#[test]
#[ignore = "needs root and nft"]
fn services_are_reached_where_iptables_is_absent() {
    let mesh = Mesh::up_with_nft("it-nft");
    let programs = mesh.output(&["exec", "deploy/web", "--", "iptables-restore", "--version"]);
    assert!(!programs.status.success(), "{programs:?}");
    // Both endpoints, of which one is the pod itself.
    let script = "import urllib.request as r; print(sorted({r.urlopen('http://web/index').read() for _ in range(40)}))";
    let answer = mesh.run(&["exec", "deploy/web", "--", "python3", "-c", script]);
    assert_eq!(answer.matches("hello").count(), 2, "{answer}");
    mesh.run(&["scale", "web", "--replicas", "0"]);
    eventually("nobody is there", || mesh.page().is_none());
}

#[test]
#[ignore = "needs root and iptables"]
fn a_killed_pod_comes_back_and_scaling_follows() {
    let mesh = Mesh::up("it-restart");
    let killed = mesh.run(&["kill", "web"]);
    assert_eq!(killed.matches("killed").count(), 2, "{killed}");
    eventually("restarted", || {
        let status: serde_json::Value =
            serde_json::from_str(&mesh.run(&["status", "-o", "json"])).unwrap();
        status[0]["restarts"] == 2 && status[0]["ready"] == "2/2"
    });
    mesh.run(&["scale", "web", "--replicas", "3"]);
    eventually("three pods", || mesh.run(&["status"]).contains("3/3"));
    mesh.run(&["restart", "web"]);
    mesh.run(&["scale", "web", "--replicas", "1"]);
    eventually("one pod", || {
        mesh.run(&["get", "pods"]).lines().count() == 2 && mesh.run(&["status"]).contains("1/1")
    });
    eventually("the page through the one left", || mesh.page().is_some());
}

#[test]
#[ignore = "needs root and iptables"]
fn down_after_a_kill_finds_everything_and_nothing_else() {
    let mut mesh = Mesh::up("it-kill");
    // A process that leaves its container's session must be found as well.
    let stray = "setsid sleep 600 >/dev/null 2>&1 & echo $!";
    let stray = mesh.run(&["exec", "deploy/web", "--", "sh", "-c", stray]);
    let mut pids = mesh.pids();
    pids.push(stray.trim().parse().unwrap());
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    mesh.up.kill().unwrap();
    mesh.up.wait().unwrap();
    let refused = mesh.output(&["status"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("local down"), "{error}");
    let down = mesh.run(&["down"]);
    assert!(down.contains("the mesh is gone"), "{down}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
    assert!(!mesh.state().exists());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/it-kill/"));
    assert!(is_alive(u64::from(other.id())));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
#[ignore = "needs root and iptables"]
fn a_second_mesh_of_the_same_name_is_refused() {
    let mesh = Mesh::up("it-twice");
    let second = mesh.output(&["up", "--app", "none", "--set", OFF]);
    assert_eq!(second.status.code(), Some(2));
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(error.contains("running already"), "{error}");
    assert!(mesh.page().is_some());
}

#[test]
#[ignore = "needs root and iptables"]
fn a_taken_port_is_one_clear_line() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let output = Command::new(env!("CARGO_BIN_EXE_biremectl"))
        .args(["local", "up", "--name", "it-port", "--app", "none", "--set"])
        .arg(
            OFF.replace("gateways.enabled=false,", "")
                .replace("http=0", &format!("http={port}")),
        )
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!fs::exists("/run/bireme/local/it-port").unwrap());
}
