//! Two network namespaces, a node's and a pod's, and who answers in them. They are gone with the values.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};

/// Runs a script, but not for long: who gets no answer at all would ask for two minutes.
const PATIENTLY: &[&str] = &["timeout", "5", "bash", "-c"];

/// Runs a test on a thread with a network namespace of its own: the node's. What it starts inherits it.
pub(crate) fn on_a_node(test: impl FnOnce() + Send + 'static) {
    let node = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; this needs root");
        run("ip", &["link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = node.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A pod's network namespace, held by a process that sleeps in it.
pub(crate) struct Pod(Child);

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pod {
    pub(crate) fn new() -> Self {
        let mut command = Command::new("unshare");
        let mut child = command
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && echo ready && exec sleep 600",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        let mut output = child.stdout.take().unwrap();
        output.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"ready\n");
        Pod(child)
    }

    /// A pod connected to the node: 10.99.0.1 and fd99::1 there, 10.99.0.2 and fd99::2 here.
    pub(crate) fn connected() -> Self {
        let pod = Pod::new();
        let process = pod.0.id().to_string();
        let link = [
            "link", "add", "node0", "type", "veth", "peer", "name", "eth0", "netns",
        ];
        run("ip", &[&link[..], &[&process]].concat());
        // Without addresses of the link's own, whose routes would come some seconds later.
        run("ip", &["link", "set", "node0", "addrgenmode", "none"]);
        pod.run(&["ip", "link", "set", "eth0", "addrgenmode", "none"]);
        for address in ["10.99.0.1/24", "fd99::1/64"] {
            run(
                "ip",
                &[
                    "addr",
                    "add",
                    address,
                    "dev",
                    "node0",
                    if address.contains(':') {
                        "nodad"
                    } else {
                        "noprefixroute"
                    },
                ],
            );
        }
        run("ip", &["link", "set", "node0", "up"]);
        run("ip", &["route", "replace", "10.99.0.0/24", "dev", "node0"]);
        pod.run(&["ip", "link", "set", "eth0", "up"]);
        pod.run(&["ip", "addr", "add", "10.99.0.2/24", "dev", "eth0"]);
        pod.run(&["ip", "addr", "add", "fd99::2/64", "dev", "eth0", "nodad"]);
        pod.run(&["ip", "route", "add", "default", "via", "10.99.0.1"]);
        pod.run(&["ip", "-6", "route", "add", "default", "via", "fd99::1"]);
        pod
    }

    /// Its network namespace as a file.
    pub(crate) fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }

    /// Runs a program in it, which must succeed.
    pub(crate) fn run(&self, line: &[&str]) -> String {
        let output = self.try_run(line);
        assert!(
            output.status.success(),
            "{line:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a program in it.
    pub(crate) fn try_run(&self, line: &[&str]) -> Output {
        let namespace = format!("--net={}", self.namespace().display());
        Command::new("nsenter")
            .arg(namespace)
            .args(line)
            .output()
            .unwrap()
    }

    /// Answers in it from now on.
    pub(crate) fn serve(&self, servers: &[(&'static str, &str)]) {
        let namespace = File::open(self.namespace()).unwrap();
        let servers: Vec<(&str, SocketAddr)> = parse(servers);
        let bound = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            serve(&servers);
        });
        bound.join().unwrap();
    }

    /// Who answers a user of the pod who connects to an address: `udp 10.0.0.1:53`, `tcp [fd99::1]:80`.
    pub(crate) fn ask(&self, user: &str, target: &str) -> String {
        let user = format!("--reuid={user}");
        let script = question(target);
        let line = ["setpriv", &user, "--regid=1000", "--clear-groups"];
        said(&self.try_run(&[&line[..], PATIENTLY, &[&script]].concat()))
    }
}

fn parse(servers: &[(&'static str, &str)]) -> Vec<(&'static str, SocketAddr)> {
    servers
        .iter()
        .map(|(name, address)| (*name, address.parse().unwrap()))
        .collect()
}

/// Answers on the node from now on.
pub(crate) fn serve_on_node(servers: &[(&'static str, &str)]) {
    serve(&parse(servers));
}

/// Everybody who connects, or sends something by UDP over IPv4, is told who answers. The threads end with the process.
fn serve(servers: &[(&'static str, SocketAddr)]) {
    for (name, address) in servers.iter().copied() {
        let listener = listen(address);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
            }
        });
        if address.is_ipv6() {
            continue;
        }
        let socket = UdpSocket::bind(address).unwrap();
        thread::spawn(move || {
            let mut question = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut question) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }
}

/// As a proxy listens: it may be given connections that are meant for other addresses.
fn listen(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.listen(64).unwrap();
    socket.into()
}

/// Who answers on the node.
pub(crate) fn ask_on_node(target: &str) -> String {
    let mut command = Command::new(PATIENTLY[0]);
    command.args(&PATIENTLY[1..]).arg(question(target));
    said(&command.output().unwrap())
}

fn question(target: &str) -> String {
    let (protocol, address) = target.split_once(' ').unwrap();
    let (host, port) = address.rsplit_once(':').unwrap();
    let host = host.trim_matches(['[', ']']);
    let read = match protocol {
        "udp" => "dd bs=64 count=1 status=none",
        _ => "head -c 64",
    };
    format!("exec 3<>/dev/{protocol}/{host}/{port} && echo question >&3 && {read} <&3")
}

/// What was answered; `nobody` where nothing was.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.is_empty() {
        "nobody".to_owned()
    } else {
        text
    }
}

/// Runs a program on the node, which must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {problem}"
    );
}

/// Asks until the answer is the one that is wanted, as neighbours must be found first; at the end whatever it is.
pub(crate) fn eventually(want: &str, ask: impl Fn() -> String) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = ask();
        if answer == want || Instant::now() > deadline {
            return answer;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
