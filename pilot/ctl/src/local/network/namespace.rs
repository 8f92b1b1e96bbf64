//! Network namespaces: made on a thread of their own, held by an open file, entered by path.

use std::{
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns, unshare};

/// The pods' gateway, on the node's end of every pod's link.
const LINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
const LINK_ADDRESS_IPV6: &str = "fe80::1";

/// A network namespace; it ends when this is dropped and the last process in it has gone.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// Moves the calling thread into a new namespace and holds it.
    pub(crate) fn unshare_thread() -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        let file = File::open("/proc/thread-self/ns/net").context("open the new namespace")?;
        Ok(Self { file })
    }

    /// A path by which other processes of this user can enter it, as long as this process lives.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.file.as_raw_fd()
        ))
    }

    /// Makes a pod's namespace: loopback, and a link to `node` that carries the default route; `second` is its IPv6 address.
    pub(crate) fn for_pod(
        node: &Path,
        link: &str,
        address: Ipv4Addr,
        second: Option<Ipv6Addr>,
    ) -> anyhow::Result<Self> {
        let mut batch = format!(
            "link set lo up\n\
             link add eth0 type veth peer name {link} netns {}\n\
             addr add {address}/32 dev eth0\n\
             link set eth0 up\n\
             route add {LINK_ADDRESS} dev eth0 scope link\n\
             route add default via {LINK_ADDRESS} dev eth0 src {address}\n",
            node.display()
        );
        if let Some(second) = second {
            batch.push_str(&format!(
                "addr add {second}/128 dev eth0 nodad\n\
                 route add default via {LINK_ADDRESS_IPV6} dev eth0 src {second}\n"
            ));
        }
        on_own_thread(move || {
            let namespace = Self::unshare_thread()?;
            run_with_input("ip", &["-batch", "-"], &batch)?;
            // As container runtimes do: gateways listen on port 80 without being root.
            std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
                .context("let every user bind low ports")?;
            Ok(namespace)
        })
    }

    /// What `ip -batch` is told on the node's side of a pod's link.
    pub(crate) fn node_side(
        link: &str,
        pod: Ipv4Addr,
        second: Option<Ipv6Addr>,
        node: Ipv4Addr,
    ) -> String {
        let mut batch = format!(
            "addr add {LINK_ADDRESS}/32 dev {link}\n\
             link set {link} up\n\
             route add {pod}/32 dev {link} src {node}\n"
        );
        if let Some(second) = second {
            batch.push_str(&format!(
                "addr add {LINK_ADDRESS_IPV6}/64 dev {link} nodad\n\
                 route add {second}/128 dev {link}\n"
            ));
        }
        batch
    }

    /// Connects to `address` as seen from inside the namespace.
    pub(crate) fn connect(
        &self,
        address: SocketAddr,
        patience: Duration,
    ) -> anyhow::Result<TcpStream> {
        let file = self.file.try_clone().context("keep the namespace open")?;
        on_own_thread(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("enter the pod's network namespace")?;
            TcpStream::connect_timeout(&address, patience)
                .with_context(|| format!("connect to {address} in the pod"))
        })
    }
}

/// Runs `work` on a thread that ends with it: a thread's namespace cannot be trusted afterwards.
fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    std::thread::Builder::new()
        .name("namespace".into())
        .spawn(work)
        .context("start a thread")?
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the namespace's thread panicked")))
}

/// Runs a program of the system with `input`, in the calling thread's namespaces.
pub(crate) fn run_with_input(program: &str, args: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program} (is it installed?)"))?;
    let mut stdin = child.stdin.take().context("standard input of the child")?;
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        complaint.trim()
    );
    written.with_context(|| format!("write to {program}"))
}
