//! A proxy as a process of its own, whose memory, descriptors and CPU time can be read from the system. `PROXY_BINARY` names
//! another program to run in its place (a real Envoy: what a test wants of us is what that one does).

use crate::running::{Admin, eventually};
use std::{
    ops::Deref,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// A running process.
pub(crate) struct Process {
    child: Child,
    admin: Admin,
    _folder: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Deref for Process {
    type Target = Admin;

    fn deref(&self) -> &Admin {
        &self.admin
    }
}

impl Process {
    /// Starts one from a bootstrap (without its admin section) with further arguments. Its admin interface answers.
    pub(crate) async fn start(bootstrap: &str, arguments: &[&str]) -> Self {
        let ours = env!("CARGO_BIN_EXE_bireme-proxy").to_owned();
        let binary = std::env::var("PROXY_BINARY").unwrap_or(ours);
        let folder = tempfile::tempdir().unwrap();
        let (file, place) = (
            folder.path().join("bootstrap.yaml"),
            folder.path().join("admin"),
        );
        let admin = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}";
        std::fs::write(&file, format!("{admin}\n{bootstrap}")).unwrap();
        let child = Command::new(binary)
            .arg("-c")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&place)
            .args(["--log-level", "error", "--use-dynamic-base-id"])
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let admin = eventually("the admin address", || async {
            std::fs::read_to_string(&place).ok()?.trim().parse().ok()
        })
        .await;
        Self {
            child,
            admin: Admin(admin),
            _folder: folder,
        }
    }

    /// One with this listener and these clusters, and a single worker. It is ready.
    pub(crate) async fn serving(listener: &str, clusters: &[String], arguments: &[&str]) -> Self {
        let clusters = clusters.join(", ");
        let bootstrap =
            format!("static_resources: {{listeners: [{listener}], clusters: [{clusters}]}}");
        let process = Self::start(&bootstrap, &[&["--concurrency", "1"], arguments].concat()).await;
        process.is_ready().await;
        process
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// User and system time so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        let text = self.read("stat");
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    /// Nanoseconds on a CPU, of all threads, for what is too short for ticks.
    pub(crate) fn run_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let nanos = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Memory, in MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        let text = self.read("statm");
        let pages: f64 = text.split(' ').nth(1).unwrap().parse().unwrap();
        pages / 256.0
    }

    /// Memory of its own, without the files that it has mapped (its code), in MiB.
    pub(crate) fn own_mib(&self) -> f64 {
        let text = self.read("statm");
        let mut pages = text
            .split(' ')
            .skip(1)
            .map(|word| word.parse::<f64>().unwrap());
        (pages.next().unwrap() - pages.next().unwrap()) / 256.0
    }

    /// Waits until it has given back all but so much of its own memory.
    pub(crate) async fn has_given_back_all_but(&self, most: f64) {
        eventually("memory given back", || async {
            (self.own_mib() < most).then_some(())
        })
        .await;
    }

    /// KiB of huge pages.
    pub(crate) fn huge_pages(&self) -> u64 {
        let text = self.read("smaps_rollup");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.unwrap().parse().unwrap()
    }

    /// Open files, sockets among them.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Waits until no more than so many descriptors are open.
    pub(crate) async fn has_closed_all_but(&self, most: usize) {
        eventually("the end of all connections", || async {
            (self.descriptors() <= most).then_some(())
        })
        .await;
    }
}
