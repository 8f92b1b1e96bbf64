//! One container: started in its sandbox, watched by its probes, started again with back-off when it ends.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Container;
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use proto_component::{backoff::Backoff, listen::LISTEN_ADDRESS};
use tokio::{process::Child, time::Instant};

use super::{
    environment::{build_environment, expand},
    lifecycle::{PROXY_CONTAINER, PodContext},
    probe::Probes,
    sandbox::{Bind, Sandbox, User},
    status::ContainerState,
};
use crate::local::{state::MARK, store::now};

/// After running this long a container's next failure counts as its first.
const STABLE: Duration = Duration::from_secs(60);

/// The port of a sidecar that is an explicit proxy.
const HTTP_PROXY_PORT: u16 = 15002;

/// Files that the agent finds by itself in a container, and the variables that name them where there are no mounts.
const AGENT_FILES: &[(&str, &str)] = &[
    ("TOKEN_PATH", "/var/run/secrets/tokens/istio-token"),
    ("CA_ROOT_CERT", "/var/run/secrets/istio/root-cert.pem"),
    ("POD_LABELS_FILE", "/etc/istio/pod/labels"),
    ("CREDENTIALS_PATH", "/etc/istio/credentials"),
];

/// How a container came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit code, and stays so.
    Finished(i32),
    /// The pod was told to go.
    Stopped,
}

/// A container within its pod.
pub(crate) struct Run<'a> {
    /// The pod.
    pub pod: &'a Arc<PodContext>,
    /// Position among the init containers first, then the others.
    pub index: usize,
    /// Its specification.
    pub container: &'a Container,
    /// The pod's volumes on the host.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// Whether it must come to an end by itself.
    pub is_init: bool,
}

impl Run<'_> {
    /// Keeps the container running (or runs it to its end, if that is what it is for).
    pub(crate) async fn supervise(&self) -> End {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
        loop {
            let started = Instant::now();
            let outcome = match self.start().await {
                Ok(child) => match self.watch(child).await {
                    Some(outcome) => outcome,
                    None => return End::Stopped,
                },
                Err(error) => Outcome {
                    code: 128,
                    message: format!("{error:#}"),
                },
            };
            if outcome.code == 0 && (self.is_init || !self.pod.restarts_always()) {
                self.pod
                    .set_state(self.index, ContainerState::Terminated { code: 0 });
                return End::Finished(0);
            }
            if self.pod.restarts_never() {
                self.pod.set_state(
                    self.index,
                    ContainerState::Terminated { code: outcome.code },
                );
                return End::Finished(outcome.code);
            }
            if started.elapsed() > STABLE {
                backoff.reset();
            }
            let delay = backoff.next_delay();
            let reason = if backoff.attempts() > 2 {
                "CrashLoopBackOff"
            } else {
                "Error"
            };
            self.pod.set_state(
                self.index,
                ContainerState::Waiting {
                    reason,
                    message: outcome.message,
                },
            );
            let mut stop = self.pod.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = stop.wait_for(Option::is_some) => return End::Stopped,
            }
            self.pod.count_restart(self.index);
        }
    }

    async fn start(&self) -> anyhow::Result<Child> {
        let sandbox = self.sandbox()?;
        let platform = &self.pod.platform;
        let directory = self
            .pod
            .directory
            .join("containers")
            .join(&self.container.name);
        fs::create_dir_all(directory.join("root")).context("make the container's directory")?;
        let spec = directory.join("spec.json");
        fs::write(&spec, serde_json::to_vec(&sandbox)?)
            .context("write the container's specification")?;
        let log_path = self.pod.log_path(&self.container.name);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("open {}", log_path.display()))?;
        if let Some(uid) = sandbox.user.uid {
            // Programs open /dev/stdout anew, which asks for the file's permissions.
            std::os::unix::fs::fchown(&log, Some(uid), None)
                .context("give the log to the container's user")?;
        }
        let mut command = tokio::process::Command::new(&platform.programs.own);
        command
            .arg("pod-exec")
            .arg(&spec)
            .env_clear()
            .env(MARK, &platform.mesh_id)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("use the log")?)
            .stderr(log)
            .kill_on_drop(true);
        let child = command.spawn().context("start a process")?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .context("the process ended at once")?;
        platform.state.record(pid).context("record the process")?;
        self.pod.set_state(
            self.index,
            ContainerState::Running {
                pid,
                started: now(),
            },
        );
        Ok(child)
    }

    /// Waits for the end; none when the pod was told to go (the container is gone then).
    async fn watch(&self, mut child: Child) -> Option<Outcome> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let mut probes = Probes::start(self.pod, self.index, self.container);
        let mut stop = self.pod.stop.clone();
        let outcome = tokio::select! {
            status = child.wait() => Some(Outcome::of(status)),
            Some(reason) = probes.failed.recv() => {
                end(&mut child, pid, Duration::from_secs(2)).await;
                Some(Outcome { code: 137, message: reason.to_owned() })
            }
            grace = async { stop.wait_for(Option::is_some).await.map_or(Duration::ZERO, |grace| grace.unwrap_or_default()) } => {
                self.pod.set_ready(self.index, false);
                end(&mut child, pid, grace).await;
                None
            }
        };
        drop(probes);
        if let Some(pid) = pid {
            // What it left behind in its session goes with it.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            self.pod.platform.state.forget(pid);
        }
        outcome
    }

    fn sandbox(&self) -> anyhow::Result<Sandbox> {
        let (pod, container) = (self.pod, self.container);
        let platform = &pod.platform;
        let fields = pod.fields();
        let mut environment = build_environment(container, &fields, &platform.store)?;
        environment.push((MARK.to_owned(), platform.mesh_id.clone()));
        let isolated = platform.mode.is_isolated();
        if !isolated {
            self.add_shared_network(&mut environment);
        }
        let mut command = match &container.command {
            Some(command) if !command.is_empty() => command.clone(),
            _ => platform
                .programs
                .command_of_image(container.image.as_deref().unwrap_or_default())?,
        };
        command.extend(container.args.iter().flatten().cloned());
        command.extend(platform.programs.extra_args(container));
        let command = command
            .iter()
            .map(|argument| expand(argument, &environment))
            .collect();
        let mut sandbox = Sandbox {
            network: pod.network_path(),
            root: isolated.then(|| {
                pod.directory
                    .join("containers")
                    .join(&container.name)
                    .join("root")
            }),
            binds: self.binds()?,
            resolv_conf: platform.resolv_conf(pod.namespace()),
            hosts: format!(
                "127.0.0.1 localhost\n::1 localhost\n{} {}\n",
                pod.ip(),
                pod.name()
            ),
            user: user(pod, container),
            directory: container
                .working_dir
                .as_deref()
                .map_or_else(|| PathBuf::from("/"), PathBuf::from),
            command,
            environment,
        };
        if !isolated {
            platform.programs.among_host_files(&mut sandbox);
        }
        Ok(sandbox)
    }

    /// What a program must know where pods share the machine's network: its address, and whom to ask for services. The
    /// agent also learns where its files are, which are not at their usual places.
    fn add_shared_network(&self, environment: &mut Vec<(String, String)>) {
        let pod = self.pod;
        let (own, has_sidecar) = (pod.ip(), pod.has_sidecar());
        let application = pod.platform.node.plan().application(own);
        let mut add = |name: &str, value: String| {
            if environment.iter().all(|(known, _)| known != name) {
                environment.push((name.to_owned(), value));
            }
        };
        if self.container.name == PROXY_CONTAINER {
            add(LISTEN_ADDRESS, own.to_string());
            if has_sidecar {
                add("ISTIO_META_APPLICATION_ADDRESS", application.to_string());
            }
            for (name, path) in AGENT_FILES {
                add(name, (*path).to_owned());
            }
        } else if has_sidecar {
            add(LISTEN_ADDRESS, application.to_string());
            add("http_proxy", format!("http://{own}:{HTTP_PROXY_PORT}"));
            add("no_proxy", "localhost,127.0.0.0/8".to_owned());
        } else {
            add(LISTEN_ADDRESS, own.to_string());
        }
    }

    fn binds(&self) -> anyhow::Result<Vec<Bind>> {
        let mut binds = self.pod.platform.programs.binds();
        for mount in self.container.volume_mounts.iter().flatten() {
            let volume = self.volumes.get(&mount.name).with_context(|| {
                format!("there is no volume {} for {}", mount.name, mount.mount_path)
            })?;
            let source = match mount.sub_path.as_deref() {
                Some(inside) if !inside.is_empty() => volume.join(inside),
                _ => volume.clone(),
            };
            let target = PathBuf::from(&mount.mount_path);
            binds.push(Bind {
                source,
                target,
                read_only: mount.read_only.unwrap_or(false),
            });
        }
        // A mount inside another one comes after it.
        binds.sort_by_key(|bind| bind.target.components().count());
        Ok(binds)
    }
}

/// How a process ended.
struct Outcome {
    code: i32,
    message: String,
}

impl Outcome {
    fn of(status: std::io::Result<std::process::ExitStatus>) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Self {
                    code,
                    message: format!("exit code {code}"),
                },
                (None, signal) => {
                    let signal = signal.unwrap_or_default();
                    Self {
                        code: 128 + signal,
                        message: format!("killed by signal {signal}"),
                    }
                }
            },
            Err(error) => Self {
                code: 128,
                message: error.to_string(),
            },
        }
    }
}

/// Asks the process to end, and makes it after `grace`.
async fn end(child: &mut Child, pid: Option<i32>, grace: Duration) {
    if let Some(pid) = pid {
        // It may have ended already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Whom the container runs as: its own wish, the pod's, or the platform's user.
pub(crate) fn user(pod: &PodContext, container: &Container) -> User {
    let own = container.security_context.as_ref();
    let shared = pod
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let number = |own: Option<i64>, shared: Option<i64>| {
        own.or(shared).and_then(|id| u32::try_from(id).ok())
    };
    // Without mounts of its own a program of another user could not even reach its volumes.
    if !pod.platform.mode.is_isolated() {
        return User::default();
    }
    User {
        uid: number(
            own.and_then(|context| context.run_as_user),
            shared.and_then(|context| context.run_as_user),
        ),
        gid: number(
            own.and_then(|context| context.run_as_group),
            shared.and_then(|context| context.run_as_group),
        ),
    }
}
