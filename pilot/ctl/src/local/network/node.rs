//! The node: the namespace between the pods, and the thread that lives in it.
//!
//! Sockets belong to the namespace of the thread that makes them. So one thread enters the node's namespace for good and
//! runs a small runtime there: name server, probes, webhook calls and the far ends of forwarded ports all run on it.
//! Containers are started from it as well, because a child is told of its parent's death when the *thread* ends.

use std::{
    future::Future,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use proto_component::task;
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    namespace::{Namespace, run_with_input},
    plan::Plan,
    service_proxy::Firewall,
};

/// The node's own address: where probes and forwarded connections come from.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The name server's address, the usual one of a cluster.
pub(crate) const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Handle to the node's thread; the thread ends with the last one.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: Handle,
    namespace: Option<Namespace>,
    plan: Plan,
    /// Keeps the mesh's loopback addresses.
    _held: Option<TcpListener>,
    _stop: oneshot::Sender<()>,
}

impl Node {
    /// Makes the node's namespace and starts its thread; with `has_ipv6` its pods have both families.
    pub(crate) async fn start_isolated(has_ipv6: bool) -> anyhow::Result<Self> {
        let enter = move || {
            let namespace = Namespace::unshare_thread()?;
            set_up(has_ipv6)?;
            Ok(Some(namespace))
        };
        Self::start(enter, Plan::Isolated { has_ipv6 }, None).await
    }

    /// Starts the node's thread on the machine's own network, with loopback addresses for the mesh called `name`.
    pub(crate) async fn start_shared(name: &str) -> anyhow::Result<Self> {
        let (plan, held) = Plan::take_loopback(name)?;
        Self::start(|| Ok(None), plan, Some(held)).await
    }

    /// Which addresses the mesh has.
    pub(crate) fn plan(&self) -> Plan {
        self.inner.plan
    }

    /// Makes a node's namespace and a pod's, and lets go of them: whether both can be had.
    pub(crate) fn try_isolation() -> anyhow::Result<()> {
        let node = Namespace::unshare_thread()?;
        set_up(false)?;
        let address = Plan::Isolated { has_ipv6: false }.pod(1);
        let address = address.context("an address")?;
        Namespace::for_pod(&node.path(), "pod0", address, None)?;
        Ok(())
    }

    async fn start(
        enter: impl FnOnce() -> anyhow::Result<Option<Namespace>> + Send + 'static,
        plan: Plan,
        held: Option<TcpListener>,
    ) -> anyhow::Result<Self> {
        let (started, wait_started) = oneshot::channel();
        let (stop, wait_stop) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("node".into())
            .spawn(move || {
                let ready = enter().and_then(|namespace| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .context("start the node's runtime")?;
                    Ok((namespace, runtime))
                });
                match ready {
                    Ok((namespace, runtime)) => {
                        let handle = runtime.handle().clone();
                        // Nobody waits any more if `up` was interrupted.
                        if started.send(Ok((handle, namespace))).is_ok() {
                            let _ = runtime.block_on(wait_stop);
                        }
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })
            .context("start the node's thread")?;
        let (handle, namespace) = wait_started.await.context("the node's thread ended")??;
        Ok(Self {
            inner: Arc::new(Inner {
                handle,
                namespace,
                plan,
                _held: held,
                _stop: stop,
            }),
        })
    }

    /// Path of the node's namespace; none when it is the host's.
    pub(crate) fn namespace(&self) -> Option<PathBuf> {
        self.inner.namespace.as_ref().map(Namespace::path)
    }

    /// Starts a task on the node's thread.
    pub(crate) fn spawn<F>(
        &self,
        name: &'static str,
        future: F,
    ) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _on_node = self.inner.handle.enter();
        task::spawn(name, future)
    }

    /// Runs `future` on the node's thread and waits for it.
    pub(crate) async fn run<F, T>(&self, name: &'static str, future: F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.spawn(name, future)
            .await
            .context("the node's thread is gone")?
    }

    /// Runs a program of the system in the node's namespace, off the node's own thread.
    pub(crate) async fn run_program(
        &self,
        program: &'static str,
        args: &'static [&'static str],
        input: String,
    ) -> anyhow::Result<()> {
        self.run("node-program", async move {
            // Started from the node's thread, so the helper thread is in the node's namespace as well.
            tokio::task::spawn_blocking(move || run_with_input(program, args, &input))
                .await
                .context("the helper thread ended")?
        })
        .await
    }

    /// Hooks a pod up; the namespace returned keeps the link alive.
    pub(crate) async fn add_pod(
        &self,
        link: String,
        address: Ipv4Addr,
    ) -> anyhow::Result<Namespace> {
        let node = self.namespace().context("pods share the host's network")?;
        let name = link.clone();
        let second = self.plan().second(address);
        let namespace =
            tokio::task::spawn_blocking(move || Namespace::for_pod(&node, &name, address, second))
                .await
                .context("make the pod's network")??;
        let batch = Namespace::node_side(&link, address, second, ADDRESS);
        self.run_program("ip", &["-batch", "-"], batch).await?;
        Ok(namespace)
    }
}

/// Addresses and kernel settings of the node's namespace; runs on its thread.
fn set_up(has_ipv6: bool) -> anyhow::Result<()> {
    run_with_input(
        "ip",
        &["-batch", "-"],
        &format!(
            "link set lo up\naddr add {ADDRESS}/32 dev lo\naddr add {DNS_ADDRESS}/32 dev lo\n"
        ),
    )?;
    let forwards_ipv6 = has_ipv6.then_some(("net/ipv6/conf/all/forwarding", "1"));
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
    ];
    for (setting, value) in settings.into_iter().chain(forwards_ipv6) {
        std::fs::write(format!("/proc/sys/{setting}"), value)
            .with_context(|| format!("set {setting} in the node's namespace"))?;
    }
    // Fails here, with the reason, where the kernel lacks what cluster addresses need.
    let firewall = Firewall::find();
    let (program, arguments) = firewall.restore();
    run_with_input(program, arguments, &firewall.build_rules(&[]))
}
