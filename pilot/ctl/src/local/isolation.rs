//! What keeps pods apart on this machine; decided before anything else runs, because a user namespace is entered by a process
//! that has one thread.
//!
//! Root makes network and mount namespaces; an ordinary user makes them inside a user namespace. There the sidecar's user
//! (1337) must exist, or nobody could tell the proxy's connections from the application's: so a range of subordinate
//! users is needed (`/etc/subuid`, `newuidmap`). Where anything of this is missing, pods share the machine's network: each
//! has a loopback address, nothing is redirected, and the sidecar is the application's HTTP proxy.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{User, getegid, geteuid},
};
use proto_component::process::Usage;

use super::{
    Interception,
    network::{node::Node, service_proxy::Firewall},
    platform::Mode,
    pod::sandbox,
    state::StateDir,
};

/// The sidecar's user and group, which interception lets through.
const PROXY_USER: u32 = 1337;
/// How long the attempt may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the namespace is there (its standard input ends), then says whom it holds. Runs outside of it.
const WRITE_MAPS: &str =
    r#"cat >/dev/null; newuidmap "$1" 0 "$2" 1 1 "$3" "$4" && newgidmap "$1" 0 "$5" 1 1 "$6" "$7""#;

/// How pods are kept apart, and why so.
#[derive(Clone, Debug)]
pub(crate) struct Isolation {
    /// How.
    pub mode: Mode,
    /// One line for people.
    pub description: String,
}

/// Decides. An ordinary user's process is in a user namespace of its own afterwards, if pods are to have namespaces.
pub(crate) fn settle(wanted: Interception, state: &StateDir) -> anyhow::Result<Isolation> {
    let shared = |reason: &str| Isolation {
        mode: Mode::Shared,
        description: format!(
            "pods share this machine's network, a loopback address each; nothing is redirected, sidecars are HTTP proxies ({reason})"
        ),
    };
    if wanted == Interception::None {
        return Ok(shared("--interception none"));
    }
    match attempt(state) {
        Ok(()) => {}
        Err(error) if wanted == Interception::Auto => return Ok(shared(&format!("{error:#}"))),
        Err(error) => {
            return Err(Usage(format!(
                "--interception redirect: {error:#}; use `--interception none`, or run it as root with iproute2 and iptables (or nftables) installed"
            ))
            .into());
        }
    }
    let who = if geteuid().is_root() {
        "root"
    } else {
        enter_user_namespace()?;
        "in a user namespace"
    };
    Ok(Isolation {
        mode: Mode::Isolated,
        description: format!(
            "each pod is a network namespace of its own ({who}; {} redirects)",
            Firewall::find().name()
        ),
    })
}

/// Tries in another process, which ends with all that it made.
fn attempt(state: &StateDir) -> anyhow::Result<()> {
    let directory = state.path("attempt");
    super::state::create_private(&directory)?;
    let outcome = run_attempt(&directory);
    // It is empty, and the state directory takes it along otherwise.
    let _ = fs::remove_dir(&directory);
    outcome
}

fn run_attempt(directory: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("find this program's file")?;
    let mut child = Command::new(own)
        .arg("pod-attempt")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start a process")?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().context("wait for a process")?.is_none() {
        if Instant::now() > deadline {
            // It may have ended at this moment.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().context("wait for a process")?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.trim();
    let complaint = complaint.strip_prefix("biremectl: ").unwrap_or(complaint);
    anyhow::bail!(
        "{}",
        if complaint.is_empty() {
            "namespaces cannot be made"
        } else {
            complaint
        }
    )
}

/// `pod-attempt`: makes a node, a pod's network and a container's root in `directory`.
pub(crate) fn try_everything(directory: &Path) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        enter_user_namespace()?;
    }
    Node::try_isolation()?;
    sandbox::try_root(directory)
}

/// Moves this process (of one thread) into a user namespace where it is root, and where the proxy's user exists.
pub(crate) fn enter_user_namespace() -> anyhow::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let name = User::from_uid(geteuid())
        .ok()
        .flatten()
        .map_or_else(String::new, |user| user.name);
    let uids = subordinate("/etc/subuid", &name, uid)?;
    let gids = subordinate("/etc/subgid", &name, uid)?;
    let pid = std::process::id();
    let numbers = [pid, uid, uids.0, uids.1, gid, gids.0, gids.1];
    let mut helper = Command::new("sh")
        .args(["-c", WRITE_MAPS, "sh"])
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run sh")?;
    let made =
        unshare(CloneFlags::CLONE_NEWUSER).context("this machine lets users make no namespaces");
    // Its standard input ends here.
    drop(helper.stdin.take());
    let output = helper
        .wait_with_output()
        .context("wait for newuidmap and newgidmap")?;
    made?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "a user namespace needs newuidmap and newgidmap (package uidmap): {}",
        complaint.trim()
    );
    Ok(())
}

/// The first range of `file` that is `name`'s and big enough for the proxy's user: its first number and how many there are.
fn subordinate(file: &str, name: &str, uid: u32) -> anyhow::Result<(u32, u32)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    find_range(&text, name, uid).with_context(|| {
        format!("{file} gives user {uid} no range of {PROXY_USER} or more; as root, `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}` does")
    })
}

fn find_range(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    let range = |line: &str| {
        let mut parts = line.trim().split(':');
        let owner = parts.next()?;
        let (first, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let is_own = (owner == name && !name.is_empty()) || owner == uid.to_string();
        (is_own && count >= PROXY_USER).then_some((first, count))
    };
    text.lines().find_map(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_or_number_if_it_holds_the_proxys_user() {
        let text =
            "root:1:5\nann:100000:65536\nbob:200000:100\nbob:300000:2000\n1007:400000:65536\n";
        assert_eq!(find_range(text, "ann", 1), Some((100_000, 65536)));
        assert_eq!(find_range(text, "bob", 2), Some((300_000, 2000)));
        assert_eq!(find_range(text, "", 1007), Some((400_000, 65536)));
        assert_eq!(find_range(text, "eve", 3), None);
        assert_eq!(find_range("ann:x:y\n:::\n", "ann", 1), None);
    }
}
