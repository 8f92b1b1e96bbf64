//! The inside of a container: what `biremectl pod-exec SPEC` does between being started and becoming the container's
//! program. It runs on a single thread, before any runtime, because namespaces are entered by thread.
//!
//! The container sees the host's files read-write where its user may, except: `/etc` is an overlay (changes stay in the
//! container), `/run`, `/tmp` and `/dev/shm` are its own, volumes lie at their mount paths, and Bireme's programs are in
//! `/usr/local/bin`. All mounts live in the container's mount namespace and vanish with it.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::Signal,
        statvfs::{FsFlags, statvfs},
    },
    unistd::{
        AccessFlags, Gid, Uid, access, chdir, chroot, pivot_root, setgid, setgroups, setsid, setuid,
    },
};
use serde::{Deserialize, Serialize};

/// Everything `pod-exec` has to know; written by the platform for each start of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// The pod's network namespace; none where it shares the machine's network.
    pub network: Option<PathBuf>,
    /// An empty directory to build the container's root on; none to run among the host's files.
    pub root: Option<PathBuf>,
    /// Volumes and programs.
    pub binds: Vec<Bind>,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Who the container runs as.
    pub user: User,
    /// Where it starts.
    pub directory: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
}

/// Something of the host that appears in the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub target: PathBuf,
    /// Whether it can be changed there.
    pub read_only: bool,
}

/// Numeric identity; none means that of the platform.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct User {
    /// User id.
    pub uid: Option<u32>,
    /// Group id; the user's number when not given.
    pub gid: Option<u32>,
}

/// Builds the container around this process and becomes its program. Returns only on failure.
pub(crate) fn exec(spec: &Path) -> anyhow::Error {
    match prepare(spec) {
        Ok(mut command) => {
            let program = command.get_program().to_owned();
            let error = command.exec();
            anyhow::Error::new(error).context(format!("start {}", program.display()))
        }
        Err(error) => error,
    }
}

/// `pod-enter`: as [`enter`], with the environment of the container's process.
pub(crate) fn enter_container(args: &crate::args::PodEnterArgs) -> anyhow::Error {
    // First of all: in a user namespace the environment may be another user's.
    if let Err(error) = join_namespace(args.pid, "user", CloneFlags::CLONE_NEWUSER) {
        return error;
    }
    let environment = match fs::read(format!("/proc/{}/environ", args.pid)) {
        Ok(bytes) => bytes,
        Err(error) => {
            return anyhow::Error::new(error).context("the container does not run any more");
        }
    };
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| {
        let text = String::from_utf8_lossy(variable).into_owned();
        text.split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    });
    enter(
        args.pid,
        User {
            uid: args.uid,
            gid: args.gid,
        },
        variables.collect(),
        &args.command,
    )
}

/// Joins a running container (its namespaces and root) and becomes `command` there. Returns only on failure.
fn enter(
    pid: i32,
    user: User,
    environment: Vec<(String, String)>,
    command: &[String],
) -> anyhow::Error {
    match join(pid, user, environment, command) {
        Ok(mut command) => {
            let program = command.get_program().to_owned();
            let error = command.exec();
            anyhow::Error::new(error)
                .context(format!("start {} in the container", program.display()))
        }
        Err(error) => error,
    }
}

/// Builds a container's root on `directory` and enters it: whether that can be done.
pub(crate) fn try_root(directory: &Path) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    build_root(directory, &Sandbox::default())
}

fn prepare(spec: &Path) -> anyhow::Result<Command> {
    let text = fs::read(spec).with_context(|| format!("read {}", spec.display()))?;
    let sandbox: Sandbox =
        serde_json::from_slice(&text).context("read the container's specification")?;
    if let Some(network) = &sandbox.network {
        let file = fs::File::open(network).context("open the pod's network namespace")?;
        setns(file, CloneFlags::CLONE_NEWNET).context("enter the pod's network namespace")?;
    }
    if let Some(root) = &sandbox.root {
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
        build_root(root, &sandbox)?;
    }
    // A session of its own, so that all of the container can be signalled as one group.
    setsid().context("make a session")?;
    become_user(sandbox.user)?;
    // Forgotten by the kernel when the user changes, hence here.
    set_pdeathsig(Signal::SIGKILL).context("follow the platform's end")?;
    chdir(&sandbox.directory)
        .with_context(|| format!("working directory {}", sandbox.directory.display()))?;
    program(&sandbox.command, sandbox.environment)
}

fn join(
    pid: i32,
    user: User,
    environment: Vec<(String, String)>,
    command: &[String],
) -> anyhow::Result<Command> {
    let root = fs::File::open(format!("/proc/{pid}/root"))
        .with_context(|| format!("open the root of the container's process {pid}"))?;
    join_namespace(pid, "net", CloneFlags::CLONE_NEWNET)?;
    if join_namespace(pid, "mnt", CloneFlags::CLONE_NEWNS)? {
        nix::unistd::fchdir(&root).context("enter the container's root")?;
        chroot(".").context("enter the container's root")?;
        chdir("/").context("enter the container's root")?;
    }
    become_user(user)?;
    program(command, environment)
}

/// Enters a namespace of the container's process; false if this is it already, as where pods share the machine's network and
/// files (there nobody would be allowed to enter it).
fn join_namespace(pid: i32, what: &str, kind: CloneFlags) -> anyhow::Result<bool> {
    let path = format!("/proc/{pid}/ns/{what}");
    let file = fs::File::open(&path)
        .with_context(|| format!("open {path}; the container does not run any more"))?;
    if fs::metadata(format!("/proc/self/ns/{what}"))?.ino() == file.metadata()?.ino() {
        return Ok(false);
    }
    setns(file, kind).with_context(|| format!("enter {path}"))?;
    Ok(true)
}

fn program(command: &[String], environment: Vec<(String, String)>) -> anyhow::Result<Command> {
    let (name, args) = command
        .split_first()
        .context("the container has no command")?;
    let path = environment
        .iter()
        .rev()
        .find(|(name, _)| name == "PATH")
        .map_or("", |(_, path)| path);
    let file = find_program(name, path)
        .with_context(|| format!("{name} is not in the container's PATH ({path})"))?;
    let mut program = Command::new(file);
    program.arg0(name).args(args).env_clear().envs(environment);
    Ok(program)
}

fn find_program(name: &str, path: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name));
    }
    path.split(':')
        .map(|directory| Path::new(directory).join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

fn become_user(user: User) -> anyhow::Result<()> {
    let Some(gid) = user.gid.or(user.uid) else {
        return Ok(());
    };
    setgroups(&[Gid::from_raw(gid)]).context("set groups")?;
    setgid(Gid::from_raw(gid)).with_context(|| format!("become group {gid}"))?;
    if let Some(uid) = user.uid {
        setuid(Uid::from_raw(uid)).with_context(|| format!("become user {uid}"))?;
    }
    Ok(())
}

/// The container's root while it is built.
struct Root<'a> {
    path: &'a Path,
    /// Directories (in the container's view) that can be written without touching the host.
    own: Vec<PathBuf>,
    overlays: usize,
}

fn build_root(path: &Path, sandbox: &Sandbox) -> anyhow::Result<()> {
    mount_fs(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None,
    )?;
    mount_fs(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=0755"),
    )?;
    let hidden = path.join(".bireme");
    fs::create_dir(&hidden)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700))?;
    let mut root = Root {
        path,
        own: vec![PathBuf::from("/")],
        overlays: 0,
    };
    root.mirror_host()?;
    root.overlay(Path::new("/etc"))?;
    root.overlay(Path::new("/usr/local/bin"))?;
    for bind in &sandbox.binds {
        root.bind(bind)
            .with_context(|| format!("mount {}", bind.target.display()))?;
    }
    root.write_file("/etc/resolv.conf", &sandbox.resolv_conf)?;
    root.write_file("/etc/hosts", &sandbox.hosts)?;
    root.enter()
}

impl Root<'_> {
    fn inside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Every entry of the host's root, except what is the container's own.
    fn mirror_host(&mut self) -> anyhow::Result<()> {
        for entry in fs::read_dir("/").context("read /")? {
            let entry = entry.context("read /")?;
            let (source, target) = (entry.path(), self.path.join(entry.file_name()));
            let kind = entry.file_type().context("read /")?;
            if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
            } else if kind.is_dir() {
                fs::create_dir(&target)?;
                match entry.file_name().to_str() {
                    Some("run") => self.own.push(source),
                    Some("tmp") => {
                        fs::set_permissions(&target, fs::Permissions::from_mode(0o1777))?;
                        self.own.push(source);
                    }
                    Some("etc") => {}
                    _ => mount_bind(&source, &target)?,
                }
            }
        }
        Ok(())
    }

    /// Makes a directory of the host changeable without changing the host.
    fn overlay(&mut self, directory: &Path) -> anyhow::Result<()> {
        let (upper, work) = (
            self.path.join(format!(".bireme/upper-{}", self.overlays)),
            self.path.join(format!(".bireme/work-{}", self.overlays)),
        );
        self.overlays += 1;
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        // The overlay's root takes its permissions from the upper directory.
        if let Ok(meta) = fs::metadata(directory) {
            fs::set_permissions(&upper, meta.permissions())?;
        }
        let target = self.inside(directory);
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            directory.display(),
            upper.display(),
            work.display()
        );
        mount_fs(
            Some("overlay"),
            &target,
            Some("overlay"),
            MsFlags::empty(),
            Some(&options),
        )?;
        self.own.push(directory.to_owned());
        Ok(())
    }

    fn bind(&mut self, bind: &Bind) -> anyhow::Result<()> {
        let target = in_host_view(&bind.target)?;
        let inside = self.inside(&target);
        let is_dir = fs::metadata(&bind.source)
            .with_context(|| format!("look at {}", bind.source.display()))?
            .is_dir();
        if !inside.exists() {
            self.make_writable(&target)?;
            let parent = inside.parent().context("a mount path below /")?;
            fs::create_dir_all(if is_dir { &inside } else { parent })?;
            if !is_dir {
                fs::File::create(&inside)?;
            }
        }
        mount_bind(&bind.source, &inside)?;
        if bind.read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let flags = flags | locked_flags(&inside)?;
            mount_fs(None, &inside, None, flags, None)?;
        }
        Ok(())
    }

    /// Sees to it that `target`'s missing directories can be made without making them on the host.
    fn make_writable(&mut self, target: &Path) -> anyhow::Result<()> {
        let existing = target
            .ancestors()
            .skip(1)
            .find(|ancestor| self.inside(ancestor).is_dir())
            .context("a mount path below /")?
            .to_owned();
        let is_own = existing == Path::new("/")
            || self.own.iter().skip(1).any(|own| existing.starts_with(own));
        // In a user namespace not even root may write to what belongs to a user of the host.
        let is_writable = access(&self.inside(&existing), AccessFlags::W_OK).is_ok();
        if is_own && is_writable {
            Ok(())
        } else {
            self.overlay(&existing)
        }
    }

    fn write_file(&self, path: &str, content: &str) -> anyhow::Result<()> {
        let inside = self.inside(Path::new(path));
        // It may be a link to somewhere in /run.
        match fs::remove_file(&inside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Container runtimes bind these files; then they are written in place, on a copy.
            Err(_) => {
                let copy = self
                    .path
                    .join(".bireme")
                    .join(inside.file_name().unwrap_or_default());
                fs::write(&copy, content).with_context(|| format!("write {path}"))?;
                return mount_bind(&copy, &inside);
            }
        }
        fs::write(&inside, content).with_context(|| format!("write {path}"))
    }

    fn enter(&self) -> anyhow::Result<()> {
        let old = self.path.join(".bireme/old");
        fs::create_dir(&old)?;
        chdir(self.path).context("enter the container's root")?;
        if pivot_root(self.path, &old).is_ok() {
            chdir("/").context("enter the container's root")?;
            umount2("/.bireme/old", MntFlags::MNT_DETACH).context("let go of the host's root")?;
            return Ok(());
        }
        // The root of a machine that runs from its initramfs cannot be exchanged.
        chroot(self.path).context("enter the container's root")?;
        chdir("/").context("enter the container's root")
    }
}

/// The path with the host's symbolic links followed as far as it exists (`/var/run/x` is `/run/x`).
fn in_host_view(path: &Path) -> anyhow::Result<PathBuf> {
    anyhow::ensure!(
        path.is_absolute()
            && path
                .components()
                .all(|part| !matches!(part, Component::ParentDir)),
        "a mount path must be absolute and without `..`"
    );
    for ancestor in path.ancestors() {
        if let Ok(real) = fs::canonicalize(ancestor) {
            let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return Ok(if rest == Path::new("") {
                real
            } else {
                real.join(rest)
            });
        }
    }
    Ok(path.to_owned())
}

/// Restrictions of the mount at `path`, which nobody may lift in a user namespace.
fn locked_flags(path: &Path) -> anyhow::Result<MsFlags> {
    let present = statvfs(path).context("look at the mount")?.flags();
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let kept = pairs.iter().filter(|(flag, _)| present.contains(*flag));
    Ok(kept.fold(MsFlags::empty(), |all, (_, flag)| all | *flag))
}

fn mount_bind(source: &Path, target: &Path) -> anyhow::Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("bind {} to {}", source.display(), target.display()))
}

fn mount_fs(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> anyhow::Result<()> {
    mount(
        source.map(OsStr::new),
        target,
        kind.map(OsStr::new),
        flags,
        options.map(OsStr::new),
    )
    .with_context(|| format!("mount {} on {}", kind.unwrap_or("flags"), target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_host_are_followed_as_far_as_they_go() {
        let directory = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir(real.join("run")).unwrap();
        std::os::unix::fs::symlink(real.join("run"), real.join("var-run")).unwrap();
        assert_eq!(
            in_host_view(&real.join("var-run/secrets/x")).unwrap(),
            real.join("run/secrets/x")
        );
        assert!(in_host_view(Path::new("relative")).is_err());
        assert!(in_host_view(Path::new("/run/../etc")).is_err());
    }

    #[test]
    fn a_program_is_looked_up_in_the_containers_path() {
        assert_eq!(find_program("/bin/x", "").unwrap(), Path::new("/bin/x"));
        assert!(find_program("sh", "/nowhere:/bin:/usr/bin").is_some());
        assert!(find_program("sh", "").is_none());
    }
}
