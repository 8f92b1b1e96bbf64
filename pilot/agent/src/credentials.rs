//! Certificates that come as files: a gateway's credentials (`NAME`, `NAME-cacert`, also as `kubernetes://NAME`) below one
//! folder, and single files by the names that Istio uses for them (`file-cert:CHAIN~KEY`, `file-root:ROOTS`, and
//! `file-root:system` for those that the system trusts).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto_component::drain::Drain;

use crate::secret::{Files, Versioned};
use crate::secret_cache::SecretCache;

/// Credentials that are followed at most.
pub const MAX: usize = 256;
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Suffix of a name that asks for the trust anchors only.
const CA_SUFFIX: &str = "-cacert";
/// The name in the place of a file.
const SYSTEM: &str = "system";
/// Where systems have the roots that they trust, which are those of Debian, Fedora, openSUSE, RHEL and Alpine.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const MAX_FILE: u64 = 1 << 20;

/// The files behind one name.
#[derive(Debug, Clone)]
pub struct Credential {
    chain: Vec<PathBuf>,
    key: Vec<PathBuf>,
    roots: Vec<PathBuf>,
    wants_roots: bool,
    seen: Vec<Option<(u64, i64, i64, u64)>>,
}

impl Credential {
    /// The files for `name`; nothing for names that cannot be files'.
    pub fn named(folder: &Path, name: &str) -> Option<Self> {
        if let Some(files) = name.strip_prefix("file-cert:") {
            let (chain, key) = files.split_once('~')?;
            return Some(Self::new(
                vec![chain.into()],
                vec![key.into()],
                Vec::new(),
                false,
            ));
        }
        if let Some(file) = name.strip_prefix("file-root:") {
            let roots = match file {
                SYSTEM => SYSTEM_ROOTS.map(PathBuf::from).into(),
                _ => vec![file.into()],
            };
            return Some(Self::new(Vec::new(), Vec::new(), roots, true));
        }
        let name = name.strip_prefix("kubernetes://").unwrap_or(name);
        let (name, wants_roots) = match name.strip_suffix(CA_SUFFIX) {
            Some(name) => (name, true),
            None => (name, false),
        };
        // The name comes from outside: it must not lead out of the folder.
        let is_plain = !name.is_empty()
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !is_plain {
            return None;
        }
        let files = |folder: &Path, names: [&str; 2]| names.map(|name| folder.join(name));
        let own = folder.join(name);
        // A secret of its own for the trust anchors comes before those beside the key.
        let anchors = folder.join(format!("{name}{CA_SUFFIX}"));
        let anchors = [anchors.as_path(), &own].map(|folder| files(folder, ["ca.crt", "cacert"]));
        Some(Self::new(
            files(&own, ["tls.crt", "cert"]).into(),
            files(&own, ["tls.key", "key"]).into(),
            anchors.concat(),
            wants_roots,
        ))
    }

    fn new(chain: Vec<PathBuf>, key: Vec<PathBuf>, roots: Vec<PathBuf>, wants_roots: bool) -> Self {
        let mut credential = Self {
            chain,
            key,
            roots,
            wants_roots,
            seen: Vec::new(),
        };
        credential.seen = credential.signature();
        credential
    }

    /// The secret of this moment.
    pub fn read(&self, name: &str) -> Option<Versioned> {
        let files = Files {
            chain: first(&self.chain),
            key: first(&self.key),
            roots: first(&self.roots),
        };
        if self.wants_roots {
            files.roots(name)
        } else {
            files.certificate(name)
        }
    }

    /// Whether the files have changed since the last look.
    pub fn refresh(&mut self) -> bool {
        let now = self.signature();
        let is_changed = now != self.seen;
        self.seen = now;
        is_changed
    }

    fn signature(&self) -> Vec<Option<(u64, i64, i64, u64)>> {
        let all = self.chain.iter().chain(&self.key).chain(&self.roots);
        let facts = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((
                metadata.ino(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.size(),
            ))
        };
        all.map(facts).collect()
    }
}

/// Looks at the files in use again and again, until the drain.
pub async fn follow(cache: SecretCache, drain: Drain) {
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => cache.check_files(),
            () = drain.signaled() => return,
        }
    }
}

/// The first of `files` that can be read.
fn first(files: &[PathBuf]) -> Option<String> {
    files.iter().find_map(|path| {
        let is_small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MAX_FILE);
        is_small.then(|| fs::read_to_string(path).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_appears_and_changes_with_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let cache = SecretCache::new(folder.path().to_owned());
        let mut changes = cache.subscribe();
        assert!(cache.get("shop").is_none());
        fs::create_dir(folder.path().join("shop")).unwrap();
        for (name, text) in [
            ("tls.crt", "chain"),
            ("tls.key", "key"),
            ("ca.crt", "roots"),
        ] {
            fs::write(folder.path().join("shop").join(name), text).unwrap();
        }
        cache.check_files();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let secret = cache.get("shop").unwrap();
        assert_eq!(secret.secret.name, "shop");
        assert!(cache.get("kubernetes://shop").is_some());
        assert!(cache.get("shop-cacert").is_some());
        fs::write(folder.path().join("shop/tls.key"), "another").unwrap();
        cache.check_files();
        assert!(changes.has_changed().unwrap());
        assert_ne!(cache.get("shop").unwrap().version, secret.version);
        let beside = cache.get("shop-cacert").unwrap().version;
        fs::create_dir(folder.path().join("shop-cacert")).unwrap();
        fs::write(folder.path().join("shop-cacert/cacert"), "other roots").unwrap();
        cache.check_files();
        assert_ne!(cache.get("shop-cacert").unwrap().version, beside);
    }

    #[test]
    fn names_do_not_lead_out_of_the_folder() {
        for name in [
            "",
            "..",
            "../x",
            "a/b",
            ".hidden",
            "kubernetes://../x",
            "kubernetes://ns/x",
        ] {
            assert!(Credential::named(Path::new("/f"), name).is_none(), "{name}");
        }
        assert!(Credential::named(Path::new("/f"), "file-cert:/a~/b").is_some());
        let roots = |name| Credential::named(Path::new("/f"), name).unwrap().roots;
        assert_eq!(roots("file-root:/a"), [PathBuf::from("/a")]);
        assert_eq!(roots("file-root:system"), SYSTEM_ROOTS.map(PathBuf::from));
    }
}
