//! A mesh for a test: `biremectl local up` under a name and on ports of its own, ended with the test; or one in a cluster
//! ([`cluster`]), of which the same is asked.

pub mod cluster;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::load::{Answer, HttpClient};

/// How long a mesh of debug programs may take to come up on a busy machine.
const START: Duration = Duration::from_secs(240);
const COMMAND: Duration = Duration::from_secs(60);
/// What a local mesh runs.
const PROGRAMS: &[&str] = &[
    "biremectl",
    "pilot-discovery",
    "galley",
    "istio_ca",
    "mixs",
    "sidecar-injector",
    "pilot-agent",
    "istio-iptables",
    "bookinfo",
];

/// Runs its arguments where iptables cannot be.
const HIDE_IPTABLES: &str = r#"program=$(command -v iptables-restore) &&
    mount --bind /dev/null "$(readlink -f "$program")"; exec "$0" "$@""#;

/// A mesh that runs.
pub struct Mesh {
    /// Its name.
    pub name: String,
    /// Where the ingress gateway is reached, `HOST:PORT`.
    gateway: String,
    /// Where Mixer's Prometheus adapter is.
    metrics: String,
    is_cluster: bool,
    output: Arc<Mutex<String>>,
    client: HttpClient,
    child: Option<Child>,
    person: Option<Person>,
}

/// An ordinary user of this machine, who can reach the programs.
#[derive(Clone, Debug)]
pub struct Person {
    /// Login name.
    pub name: String,
    /// Home.
    pub home: PathBuf,
    programs: PathBuf,
}

impl Person {
    /// The user of that name, made if there is none; needs root.
    ///
    /// # Errors
    /// When the user or a place for the programs cannot be made.
    pub fn make(name: &str) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let home = PathBuf::from(format!("/home/{name}"));
        if !run_quietly("id", &["-u", name])? {
            let made = run_quietly("useradd", &["--create-home", "--shell", "/bin/sh", name])?;
            anyhow::ensure!(made, "useradd {name} failed");
        }
        // What cargo built may lie where only root can look.
        let folder = std::env::temp_dir().join(format!("bireme-programs-{name}"));
        std::fs::create_dir_all(&folder).context("make a folder for the programs")?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
        for program in PROGRAMS {
            let (from, to) = (programs()?.join(program), folder.join(program));
            // Left by an earlier run.
            let _ = std::fs::remove_file(&to);
            if std::fs::hard_link(&from, &to).is_err() {
                std::fs::copy(&from, &to).with_context(|| format!("copy {program}"))?;
            }
        }
        Ok(Self {
            name: name.to_owned(),
            home,
            programs: folder,
        })
    }

    /// A command that this user starts, with nothing of our environment.
    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        let home = format!("HOME={}", self.home.display());
        command
            .args(["--reuid", &self.name, "--regid", &self.name])
            .args(["--init-groups", "env", "-i", &home])
            .arg("PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .arg(self.programs.join("biremectl"))
            .current_dir("/");
        command
    }

    /// How many processes run as this user.
    ///
    /// # Errors
    /// When nobody can count them.
    pub fn processes(&self) -> anyhow::Result<usize> {
        let output = std::process::Command::new("ps")
            .args(["-u", &self.name, "-o", "pid="])
            .output()
            .context("run ps")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().count())
    }
}

fn run_quietly(program: &str, arguments: &[&str]) -> anyhow::Result<bool> {
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    Ok(output.status.success())
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; -1 for a signal.
    pub code: i32,
}

/// The folder of the programs that were built with this test or benchmark.
///
/// # Errors
/// When the programs were not built.
pub fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    // A program lies beside biremectl, a test (target/debug/deps/it-…) in a folder below it.
    own.ancestors()
        .skip(1)
        .take(2)
        .find(|folder| folder.join("biremectl").exists())
        .map(Path::to_owned)
        .context("build the programs first: cargo build --workspace --bins")
}

/// The project's folder.
#[must_use]
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// The program, as we or somebody else start it.
fn biremectl(person: Option<&Person>) -> anyhow::Result<Command> {
    if let Some(person) = person {
        return Ok(person.command());
    }
    let mut command = Command::new(programs()?.join("biremectl"));
    command.current_dir(project());
    Ok(command)
}

/// Two ports that are free at this moment.
fn free_ports() -> anyhow::Result<(u16, u16)> {
    let bind = || TcpListener::bind("127.0.0.1:0").context("find a free port");
    let port = |listener: &TcpListener| anyhow::Ok(listener.local_addr()?.port());
    // Both are held until both are known: else they may be one.
    let (first, second) = (bind()?, bind()?);
    Ok((port(&first)?, port(&second)?))
}

impl Mesh {
    /// Brings up a mesh called `name` with further arguments for `local up`, and waits until it says that it is up.
    ///
    /// # Errors
    /// When it does not come up in time; the error holds what it printed.
    pub async fn up(name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::on_free_ports(biremectl(None)?, None, name, arguments).await
    }

    /// As [`Mesh::up`], where iptables is absent; needs root.
    ///
    /// # Errors
    /// As [`Mesh::up`].
    pub async fn up_without_iptables(name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", HIDE_IPTABLES])
            .arg(programs()?.join("biremectl"))
            .current_dir(project());
        Self::on_free_ports(command, None, name, arguments).await
    }

    /// As [`Mesh::up`], by an ordinary user.
    ///
    /// # Errors
    /// As [`Mesh::up`].
    pub async fn up_as(person: &Person, name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::on_free_ports(person.command(), Some(person), name, arguments).await
    }

    /// Brings up the mesh that a newcomer gets: no arguments, the usual ports.
    ///
    /// # Errors
    /// As [`Mesh::up`].
    pub async fn up_as_a_newcomer() -> anyhow::Result<Self> {
        Self::start(biremectl(None)?, None, "default", (8080, 42422), &[]).await
    }

    async fn on_free_ports(
        command: Command,
        person: Option<&Person>,
        name: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let ports = free_ports()?;
        let given = format!(
            "local.hostPorts.http={},local.hostPorts.https=0,local.hostPorts.tcp=0,\
             local.hostPorts.pilot=0,local.hostPorts.metrics={}",
            ports.0, ports.1
        );
        let arguments = [&["--set", &given], arguments].concat();
        Self::start(command, person, name, ports, &arguments).await
    }

    async fn start(
        mut command: Command,
        person: Option<&Person>,
        name: &str,
        (http_port, metrics_port): (u16, u16),
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        command
            .args(["local", "up", "--name", name])
            .args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("start biremectl")?;
        let stdout = child.stdout.take().context("standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut shown = String::new();
        let wait = async {
            while let Some(line) = lines.next_line().await? {
                shown.push_str(&line);
                shown.push('\n');
                if line.starts_with("The mesh is up") {
                    return anyhow::Ok(true);
                }
            }
            Ok(false)
        };
        let is_up = tokio::time::timeout(START, wait).await;
        let mut mesh = Mesh {
            name: name.to_owned(),
            gateway: format!("127.0.0.1:{http_port}"),
            metrics: format!("127.0.0.1:{metrics_port}"),
            is_cluster: false,
            output: Arc::default(),
            client: HttpClient::default(),
            child: Some(child),
            person: person.cloned(),
        };
        if !matches!(is_up, Ok(Ok(true))) {
            let complaint = mesh.end().await;
            bail!("the mesh did not come up:\n{shown}{complaint}");
        }
        shown.clone_into(&mut mesh.output.lock());
        // What it goes on to print must go somewhere, or it would wait for a reader.
        let output = mesh.output.clone();
        proto_component::task::spawn("mesh-output", async move {
            while let Ok(Some(line)) = lines.next_line().await {
                output.lock().push_str(&(line + "\n"));
            }
        });
        Ok(mesh)
    }

    /// What `local up` has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().clone()
    }

    /// The URL of `path` at the ingress gateway.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway)
    }

    /// The URL of what Mixer has counted.
    #[must_use]
    pub fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.metrics)
    }

    /// Whether it is in a cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Gets `path` through the ingress gateway.
    ///
    /// # Errors
    /// No whole answer in time.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.client.get(&self.url(path)).await
    }

    /// Gets the product page as the user `user`.
    ///
    /// # Errors
    /// No whole answer in time.
    pub async fn product_page_as(&self, user: &str) -> anyhow::Result<Answer> {
        self.client
            .get_with(
                &self.url("/productpage"),
                &[("cookie", &format!("session={user}"))],
            )
            .await
    }

    /// Process id of the `biremectl` that runs the mesh.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Runs `biremectl ARGUMENTS --mesh NAME`, with `input` on standard input.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::null());
        let output = tokio::time::timeout(COMMAND, command.output());
        let output = output
            .await
            .with_context(|| format!("{arguments:?} did not end"))?
            .context("run biremectl")?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }

    /// Starts `biremectl`, with pipes for input and output; dropping the process ends it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().context("run biremectl")
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        if self.is_cluster {
            return cluster::command(arguments);
        }
        let mut command = biremectl(self.person.as_ref())?;
        let split = arguments
            .iter()
            .position(|argument| *argument == "--")
            .unwrap_or(arguments.len());
        command
            .args(&arguments[..split])
            .args(["--mesh", &self.name])
            .args(&arguments[split..])
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs `biremectl` and wants it to succeed.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub async fn ctl_ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.ctl(arguments).await?;
        anyhow::ensure!(
            output.code == 0,
            "{arguments:?}: exit {}\n{}{}",
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Applies a manifest of the sample, `networking/destination-rule-all.yaml`.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.ctl_ok(&["local", "apply", "-f", &format!("e2e/bookinfo/{manifest}")])
            .await
    }

    /// Deletes the objects of a manifest of the sample.
    ///
    /// # Errors
    /// When they are not there.
    pub async fn delete(&self, manifest: &str) -> anyhow::Result<String> {
        self.ctl_ok(&["local", "delete", "-f", &format!("e2e/bookinfo/{manifest}")])
            .await
    }

    /// Kills `biremectl local up` itself (SIGKILL), so that it cannot tidy up.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn kill(&self) -> anyhow::Result<()> {
        let pid = self.pid().context("biremectl has ended")?.to_string();
        let status = std::process::Command::new("kill")
            .args(["-9", &pid])
            .status()?;
        anyhow::ensure!(status.success(), "kill -9 {pid}: {status}");
        Ok(())
    }

    /// Ends the mesh and waits until it is gone; returns what it wrote to standard error.
    pub async fn end(&mut self) -> String {
        let Some(child) = self.child.take() else {
            return String::new();
        };
        let down = self.ctl(&["local", "down"]).await;
        let output = tokio::time::timeout(COMMAND, child.wait_with_output()).await;
        let complaint = match output {
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).into_owned(),
            _ => "it did not end".to_owned(),
        };
        match down {
            Ok(output) if output.code == 0 => complaint,
            Ok(output) => format!("{complaint}{}", output.stderr),
            Err(error) => format!("{complaint}{error:#}"),
        }
    }
}

impl Drop for Mesh {
    /// A test that failed leaves no mesh behind.
    fn drop(&mut self) {
        if self.child.take().is_some()
            && let Ok(mut command) = biremectl(self.person.as_ref())
        {
            let down = command.as_std_mut();
            drop(down.args(["local", "down", "--name", &self.name]).output());
        }
    }
}

/// Asks until `is_so`, at most `patience` long, and says what was asked for if it never is.
///
/// # Errors
/// When it is not so in time.
pub async fn eventually<F>(what: &str, patience: Duration, mut is_so: F) -> anyhow::Result<Duration>
where
    F: AsyncFnMut() -> bool,
{
    let start = Instant::now();
    loop {
        if is_so().await {
            return Ok(start.elapsed());
        }
        // A last look is taken however long the one before took.
        if start.elapsed() >= patience {
            bail!("not in {patience:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
