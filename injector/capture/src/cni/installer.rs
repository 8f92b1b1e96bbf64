//! Puts the plugin onto a node, keeps it there, and takes it away at the end: the program into the runtime's folders, a
//! kubeconfig of the DaemonSet's service account beside the network configurations, and an entry into the first of these.
//!
//! The state wanted is made anew at every look: a network that comes later and sorts before, an entry that somebody has
//! removed, a token that the kubelet has renewed. The environment is that of the installer of Istio 1.4, as is the
//! configuration's template (`__KUBECONFIG_FILEPATH__`, `__LOG_LEVEL__`).
//!
//! QUIRK: 1.4 makes a network of the plugin alone where there is none yet, which makes a node look ready that is not; here
//! the installer waits, unless it shall not be chained.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use proto_component::Process;
use serde_json::{Value, json};

use crate::cni::conflist::{self, TYPE};

mod args;

pub use args::InstallArgs;

/// What is put in the place of a configuration of a single plugin is remembered under this ending.
const REPLACED: &str = "before-istio-cni";

/// Installs, and stays until the drain.
///
/// # Errors
/// When the configuration cannot be used, or at the first look where something cannot be written.
pub async fn run(args: InstallArgs, process: Process) -> anyhow::Result<()> {
    let interval = Duration::from_secs(args.check_interval);
    let stays = args.sleep;
    let program = std::env::current_exe().context("find this program")?;
    let installer = Installer::new(args, program)?;
    let ready = process.readiness.condition("installed");
    let mut is_told = false;
    loop {
        // After the first success a look that fails (a folder away for a moment) is only told.
        match installer.reconcile() {
            Ok(done) => {
                for what in &done.changes {
                    tracing::info!(what, "installed");
                }
                if !done.is_complete && !is_told {
                    tracing::warn!(folder = %installer.args.mounted_net_dir.display(), "no network to extend yet; waiting for one");
                }
                is_told = !done.is_complete;
            }
            Err(error) if stays && process.readiness.is_ready() => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "cannot keep the plugin in place; trying again"
                );
            }
            Err(error) => return Err(error),
        }
        ready.set();
        if !stays {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = process.drain.signaled() => break,
        }
    }
    installer.remove();
    tracing::info!("removed");
    Ok(())
}

/// Tells whether everything is in place.
///
/// # Errors
/// With what is not.
pub fn check(args: InstallArgs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let installer = Installer {
        is_dry: true,
        ..Installer::new(args, program)?
    };
    let done = installer.reconcile()?;
    if !done.is_complete {
        bail!("there is no network to extend yet");
    }
    match done.changes.first() {
        None => Ok(()),
        Some(what) => bail!("not in place: {what}"),
    }
}

/// What a look has found.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// What was not as it should be.
    pub changes: Vec<String>,
    /// Whether the plugin is in a network.
    pub is_complete: bool,
}

/// One installation.
pub struct Installer {
    args: InstallArgs,
    program: PathBuf,
    entry: Value,
    is_dry: bool,
}

impl Installer {
    /// An installation of `program`; nothing is written yet.
    ///
    /// # Errors
    /// When the configuration is no JSON object.
    pub fn new(args: InstallArgs, program: PathBuf) -> anyhow::Result<Self> {
        let text = match (&args.network_config_file, &args.network_config) {
            (Some(file), _) => fs::read_to_string(file)
                .with_context(|| format!("read CNI_NETWORK_CONFIG_FILE {}", file.display()))?,
            (None, Some(text)) => text.clone(),
            (None, None) => bail!(
                "give the plugin's configuration: CNI_NETWORK_CONFIG or CNI_NETWORK_CONFIG_FILE"
            ),
        };
        let kubeconfig = args.net_dir.join(&args.kubeconfig_name);
        let text = text
            .replace("__KUBECONFIG_FILEPATH__", &kubeconfig.display().to_string())
            .replace("__KUBECONFIG_FILENAME__", &args.kubeconfig_name)
            .replace("__LOG_LEVEL__", &args.plugin_log_level);
        let entry: Value = serde_json::from_str(&text).context("the plugin's configuration")?;
        if entry["type"] != TYPE {
            bail!(
                "the plugin's configuration: type is {}; wanted \"{TYPE}\"",
                entry["type"]
            );
        }
        Ok(Installer {
            args,
            program,
            entry,
            is_dry: false,
        })
    }

    /// Puts in place what is not.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn reconcile(&self) -> anyhow::Result<Reconciled> {
        let mut done = Reconciled::default();
        self.install_program(&mut done)?;
        let kubeconfig = self.kubeconfig()?;
        self.write(
            &self.kubeconfig_path(),
            kubeconfig.as_bytes(),
            0o600,
            &mut done,
        )?;
        if self.args.chained {
            self.extend_network(&mut done)?;
        } else {
            let alone = conflist::insert(
                &json!({
                    "cniVersion": self.entry["cniVersion"].as_str().unwrap_or("1.0.0"), "name": TYPE, "plugins": [],
                }),
                &self.entry,
            );
            self.write(
                &self.alone_path(),
                conflist::text(&alone).as_bytes(),
                0o644,
                &mut done,
            )?;
            done.is_complete = true;
        }
        Ok(done)
    }

    fn install_program(&self, done: &mut Reconciled) -> anyhow::Result<()> {
        if self
            .args
            .skip_binaries
            .iter()
            .any(|skipped| skipped == TYPE)
        {
            return Ok(());
        }
        let own = fs::metadata(&self.program).context("read this program")?;
        let mut found = false;
        for folder in self
            .args
            .mounted_bin_dirs
            .iter()
            .filter(|folder| folder.is_dir())
        {
            found = true;
            let target = folder.join(TYPE);
            // Same size and not older: a copy of ours. Hashing it every second would cost more than it tells.
            let is_there = fs::metadata(&target).is_ok_and(|there| {
                !self.args.update_binaries
                    || (there.len() == own.len() && there.mtime() >= own.mtime())
            });
            if is_there {
                continue;
            }
            let bytes = fs::read(&self.program).context("read this program")?;
            self.write(&target, &bytes, 0o755, done)?;
        }
        if !found {
            bail!(
                "none of the folders for the program is there: {:?}",
                self.args.mounted_bin_dirs
            );
        }
        Ok(())
    }

    /// Adds the entry to the first network, and takes it out of one that was the first before.
    fn extend_network(&self, done: &mut Reconciled) -> anyhow::Result<()> {
        let Some((path, list)) = self.network()? else {
            return Ok(());
        };
        let wanted = conflist::insert(&list, &self.entry);
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let target = if name.ends_with(".conflist") {
            path.clone()
        } else {
            path.with_extension("conflist")
        };
        let mode = fs::metadata(&path).map_or(0o644, |found| found.permissions().mode() & 0o777);
        self.write(&target, conflist::text(&wanted).as_bytes(), mode, done)?;
        if target != path && !self.is_dry {
            let kept = path.with_file_name(format!("{name}.{REPLACED}"));
            fs::rename(&path, &kept).with_context(|| format!("put {} aside", path.display()))?;
        }
        for (other, list) in self.configurations()? {
            if other != target && has_entry(&list) && !conflist::is_ours_alone(&list) {
                self.write(
                    &other,
                    conflist::text(&conflist::remove(&list)).as_bytes(),
                    mode,
                    done,
                )?;
            }
        }
        done.is_complete = true;
        Ok(())
    }

    /// The network to extend: the one that is named, or the first that is sound, as the runtime takes it.
    fn network(&self) -> anyhow::Result<Option<(PathBuf, Value)>> {
        let named = &self.args.conf_name;
        let listed = format!("{named}list");
        let fits = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            named.is_empty() || name == *named || name == *listed
        };
        let all = self.configurations()?;
        Ok(all
            .into_iter()
            .find(|(path, list)| fits(path) && !conflist::is_ours_alone(list)))
    }

    /// The sound configurations, in the runtime's order.
    fn configurations(&self) -> anyhow::Result<Vec<(PathBuf, Value)>> {
        let folder = &self.args.mounted_net_dir;
        let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .collect();
        paths.retain(|path| {
            let ending = path.extension().unwrap_or_default();
            ending == "conf" || ending == "conflist" || ending == "json"
        });
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            match conflist::parse(&text) {
                Ok(list) => found.push((path, list)),
                Err(error) => {
                    tracing::debug!(file = %path.display(), %error, "no network configuration");
                }
            }
        }
        Ok(found)
    }

    /// Access to the API server for the plugin, which runs outside of every pod.
    fn kubeconfig(&self) -> anyhow::Result<String> {
        let args = &self.args;
        let token = fs::read_to_string(&args.token)
            .with_context(|| format!("read {}", args.token.display()))?;
        let host = if args.api_host.contains(':') {
            format!("[{}]", args.api_host)
        } else {
            args.api_host.clone()
        };
        let mut cluster = json!({"server": format!("https://{host}:{}", args.api_port)});
        if args.skip_tls_verify {
            cluster["insecure-skip-tls-verify"] = json!(true);
        } else {
            let authority = fs::read(&args.authority)
                .with_context(|| format!("read {}", args.authority.display()))?;
            cluster["certificate-authority-data"] = json!(BASE64.encode(authority));
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": TYPE,
            "clusters": [{"name": TYPE, "cluster": cluster}],
            "users": [{"name": TYPE, "user": {"token": token.trim()}}],
            "contexts": [{"name": TYPE, "context": {"cluster": TYPE, "user": TYPE}}],
        });
        Ok(format!("{config:#}\n"))
    }

    fn kubeconfig_path(&self) -> PathBuf {
        self.args.mounted_net_dir.join(&self.args.kubeconfig_name)
    }

    fn alone_path(&self) -> PathBuf {
        let name = match self.args.conf_name.as_str() {
            "" => "YYY-istio-cni.conflist",
            name => name,
        };
        self.args.mounted_net_dir.join(name)
    }

    /// Writes a file whole or not at all, where it does not hold that already.
    fn write(
        &self,
        path: &Path,
        bytes: &[u8],
        mode: u32,
        done: &mut Reconciled,
    ) -> anyhow::Result<()> {
        let is_so = fs::read(path).is_ok_and(|there| there == bytes)
            && fs::metadata(path).is_ok_and(|there| there.permissions().mode() & 0o777 == mode);
        if is_so {
            return Ok(());
        }
        done.changes.push(path.display().to_string());
        if self.is_dry {
            return Ok(());
        }
        replace(path, bytes, mode).with_context(|| format!("write {}", path.display()))
    }

    /// Takes everything away again. What cannot be removed is told; the rest goes.
    pub fn remove(&self) {
        // First the entry, so that no pod asks for a program that is gone.
        if let Err(error) = self.leave_networks() {
            tracing::error!(
                error = format!("{error:#}"),
                "the plugin is still in the node's network"
            );
            return;
        }
        let programs = self
            .args
            .mounted_bin_dirs
            .iter()
            .map(|folder| folder.join(TYPE));
        let is_skipped = self
            .args
            .skip_binaries
            .iter()
            .any(|skipped| skipped == TYPE);
        let programs = programs.filter(|_| !is_skipped);
        for path in programs.chain([self.kubeconfig_path()]) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "left behind");
                }
                _ => {}
            }
        }
    }

    fn leave_networks(&self) -> anyhow::Result<()> {
        for (path, list) in self.configurations()? {
            if !has_entry(&list) {
                continue;
            }
            let named = || format!("restore {}", path.display());
            let single = path.with_extension(format!("conf.{REPLACED}"));
            if conflist::is_ours_alone(&list) {
                fs::remove_file(&path).with_context(named)?;
            } else if single.exists() {
                fs::rename(&single, path.with_extension("conf")).with_context(named)?;
                fs::remove_file(&path).with_context(named)?;
            } else {
                let mode = fs::metadata(&path)
                    .with_context(named)?
                    .permissions()
                    .mode()
                    & 0o777;
                replace(
                    &path,
                    conflist::text(&conflist::remove(&list)).as_bytes(),
                    mode,
                )
                .with_context(named)?;
            }
        }
        Ok(())
    }
}

fn has_entry(list: &Value) -> bool {
    let plugins = list["plugins"].as_array();
    plugins.is_some_and(|plugins| plugins.iter().any(|plugin| plugin["type"] == TYPE))
}

/// Writes beside the file, under a name that no runtime reads, and renames.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    let written = file
        .write_all(bytes)
        // Whatever the umask is.
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests;
