//! The state directory of a local mesh: where everything that must be found again lies, above all the record of every
//! process that was started. A record is a pid with the start time of its process, so that a pid that was used again
//! is never taken for ours; in addition every process of the mesh carries the mesh's id in its environment, which finds
//! the children that containers started themselves.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto_component::process::Usage;
use serde::{Deserialize, Serialize};

/// The variable that marks every process of a mesh; its value is [`Daemon::mesh_id`].
pub(crate) const MARK: &str = "BIREME_MESH";

/// The directory of one mesh.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
}

/// Where state may lie when not run as root.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Places {
    /// The session's own directory.
    #[arg(
        id = "runtime_dir",
        long = "runtime-dir",
        env = "XDG_RUNTIME_DIR",
        hide = true,
        hide_env_values = true,
        global = true
    )]
    pub runtime: Option<String>,
    /// The user's home.
    #[arg(
        id = "home_dir",
        long = "home-dir",
        env = "HOME",
        hide = true,
        hide_env_values = true,
        global = true
    )]
    pub home: Option<String>,
}

/// Who runs the mesh; `daemon.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Daemon {
    /// The process of `biremectl local up`.
    pub pid: i32,
    /// Its start time, in clock ticks since boot.
    pub start_time: u64,
    /// Unique to this run; the value of [`MARK`] in each of its processes.
    pub mesh_id: String,
}

/// Holds the mesh's name: only one `local up` of a name runs at a time.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<fs::File>,
}

impl StateDir {
    /// The directory of the mesh called `name`.
    ///
    /// Root's state lies in `/run`; that of others in `$XDG_RUNTIME_DIR` if that is theirs, else in `~/.local/state`.
    pub(crate) fn new(name: &str, places: &Places) -> anyhow::Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
            return Err(Usage(format!(
                "--name {name:?} is not a name: use lower-case letters, digits and dashes, at most 40"
            ))
            .into());
        }
        let user = nix::unistd::geteuid();
        let is_own = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == user.as_raw())
        };
        let runtime = places.runtime.as_ref().map(PathBuf::from).filter(is_own);
        let home = places.home.as_ref().map(PathBuf::from).filter(is_own);
        let base = if user.is_root() {
            PathBuf::from("/run")
        } else {
            runtime
                .or_else(|| home.map(|home| home.join(".local/state")))
                .unwrap_or_else(|| std::env::temp_dir().join(format!("bireme-{user}")))
        };
        Ok(Self {
            root: base.join("bireme/local").join(name),
        })
    }

    /// The path of something in it.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.root.join(inside)
    }

    /// The control API's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("control.sock")
    }

    /// Makes the directory (only its owner may look into it) and takes its name.
    pub(crate) fn lock(&self) -> anyhow::Result<Lock> {
        create_private(&self.root)?;
        let path = self.root.with_extension("lock");
        let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Lock { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Usage(format!(
                "a mesh of this name is running already ({}): end it with `biremectl local down`, or give this one a --name",
                self.root.display()
            ))
            .into()),
            Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// True when there is something of an earlier run.
    pub(crate) fn is_stale(&self) -> bool {
        self.path("daemon.json").exists()
    }

    /// Whether the directory exists at all.
    pub(crate) fn exists(&self) -> bool {
        self.root.exists()
    }

    /// Notes that this process runs the mesh.
    pub(crate) fn claim(&self) -> anyhow::Result<Daemon> {
        let pid = i32::try_from(std::process::id()).context("own pid")?;
        let daemon = Daemon {
            pid,
            start_time: start_time(pid).context("own start time in /proc")?,
            mesh_id: uuid::Uuid::new_v4().to_string(),
        };
        create_private(&self.path("processes"))?;
        write_atomically(&self.path("daemon.json"), &serde_json::to_vec(&daemon)?)?;
        Ok(daemon)
    }

    /// Who runs, or ran, the mesh.
    pub(crate) fn daemon(&self) -> Option<Daemon> {
        let bytes = fs::read(self.path("daemon.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Notes a process that was started; the record goes with [`StateDir::forget`].
    pub(crate) fn record(&self, pid: i32) -> io::Result<()> {
        // A process that is gone already needs no record.
        let Some(start) = start_time(pid) else {
            return Ok(());
        };
        write_atomically(
            &self.path(format!("processes/{pid}")),
            start.to_string().as_bytes(),
        )
    }

    /// Strikes a process out.
    pub(crate) fn forget(&self, pid: i32) {
        let _ = fs::remove_file(self.path(format!("processes/{pid}")));
    }

    /// Every process of this mesh that is alive: recorded ones, and those that carry its mark.
    fn processes(&self, mesh_id: &str) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path("processes")).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            let pid = entry.file_name().to_string_lossy().parse().ok();
            let recorded = fs::read_to_string(entry.path())
                .ok()
                .and_then(|text| text.parse::<u64>().ok());
            if let (Some(pid), Some(recorded)) = (pid, recorded)
                && start_time(pid) == Some(recorded)
            {
                found.push(pid);
            }
        }
        for pid in marked(mesh_id) {
            if !found.contains(&pid) {
                found.push(pid);
            }
        }
        found.retain(|pid| u32::try_from(*pid) != Ok(std::process::id()));
        found
    }

    /// Ends what is left of a run whose `biremectl` is gone, then removes the directory. Returns the number of processes ended.
    pub(crate) async fn sweep(&self) -> anyhow::Result<usize> {
        let mut ended = 0;
        if let Some(daemon) = self.daemon() {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            loop {
                let alive = self.processes(&daemon.mesh_id);
                if alive.is_empty() {
                    break;
                }
                anyhow::ensure!(
                    tokio::time::Instant::now() < deadline,
                    "processes {alive:?} do not end; try `local down` again"
                );
                for pid in &alive {
                    // It may have ended by itself since.
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
                ended = ended.max(alive.len());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.remove()?;
        Ok(ended)
    }

    /// Removes the directory and its lock file.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        // The mesh that is ending may still write a log line: what it adds is found on the next try.
        let mut tries = 0;
        while let Err(error) = fs::remove_dir_all(&self.root) {
            tries += 1;
            if error.kind() == io::ErrorKind::NotFound {
                break;
            }
            if error.kind() == io::ErrorKind::PermissionDenied && tries == 1 {
                remove_as_owner(&self.root)?;
                continue;
            }
            if error.kind() != io::ErrorKind::DirectoryNotEmpty || tries > 100 {
                return Err(error).with_context(|| format!("remove {}", self.root.display()));
            }
        }
        let _ = fs::remove_file(self.root.with_extension("lock"));
        // The parents go with the last mesh; they stay if something else is in them.
        for parent in self.root.ancestors().skip(1).take(2) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Daemon {
    /// Whether it is the calling process.
    pub(crate) fn is_this_process(&self) -> bool {
        u32::try_from(self.pid) == Ok(std::process::id())
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

/// Removes what the users of a user namespace left, in a process that enters such a namespace for it.
fn remove_as_owner(path: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("find this program's file")?;
    let output = std::process::Command::new(own)
        .arg("pod-remove")
        .arg(path)
        .output()
        .context("start a process")?;
    anyhow::ensure!(
        output.status.success(),
        "remove {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// `pod-remove`: the work of [`remove_as_owner`].
pub(crate) fn remove_all(path: &Path) -> anyhow::Result<()> {
    super::isolation::enter_user_namespace()?;
    fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))
}

/// Makes a directory, and the missing ones above it, for the owner's eyes only.
pub(crate) fn create_private(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("create {}", path.display()))
}

/// Writes a file so that a reader sees the old content or the new one, never half of it.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{:08x}", rand::random::<u32>()));
    fs::write(&temporary, content)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// A process's start time (field 22 of `/proc/PID/stat`); none once it is gone or only waits to be reaped.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Resident memory of a process in bytes.
pub(crate) fn resident_memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Processes whose environment carries the mark of a mesh.
fn marked(mesh_id: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mesh_id}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        // Other users' processes, and kernel threads, cannot be read or have none.
        let Ok(environment) = fs::read(entry.path().join("environ")) else {
            continue;
        };
        let is_marked = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes());
        if is_marked && start_time(pid).is_some() {
            found.push(pid);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).unwrap() > 0);
        assert_eq!(start_time(i32::MAX), None);
        assert!(resident_memory(own).unwrap() > 100_000);
    }

    #[test]
    fn a_name_that_would_leave_the_directory_is_refused() {
        assert!(StateDir::new("../x", &Places::default()).is_err());
        assert!(StateDir::new("Test", &Places::default()).is_err());
        assert!(StateDir::new("test-1", &Places::default()).is_ok());
    }

    #[tokio::test]
    async fn a_recorded_pid_of_another_process_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir {
            root: directory.path().join("mesh"),
        };
        let _lock = state.lock().unwrap();
        assert!(state.lock().is_err());
        let daemon = state.claim().unwrap();
        assert!(daemon.is_alive());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        write_atomically(&state.path(format!("processes/{pid}")), b"1").unwrap();
        assert_eq!(state.sweep().await.unwrap(), 0);
        assert!(start_time(pid).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!state.exists());
    }
}
