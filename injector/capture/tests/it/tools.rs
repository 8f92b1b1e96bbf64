//! Which programs a program of ours finds.

use std::os::unix::fs::symlink;

/// What nft needs beside itself.
const WITHOUT_IPTABLES: &[&str] = &["nft", "ip"];

/// A search path for programs.
pub(crate) struct Tools {
    path: String,
    _folder: Option<tempfile::TempDir>,
}

impl Tools {
    /// All that there is.
    pub(crate) fn iptables() -> Self {
        let path = std::env::var_os("PATH").unwrap();
        Tools {
            path: path.into_string().unwrap(),
            _folder: None,
        }
    }

    /// All that is needed where iptables is absent.
    pub(crate) fn nft() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in WITHOUT_IPTABLES {
            let path = std::env::var_os("PATH").unwrap();
            let found = std::env::split_paths(&path)
                .map(|folder| folder.join(name))
                .find(|program| program.is_file())
                .unwrap_or_else(|| panic!("there is no {name} here"));
            symlink(found, folder.path().join(name)).unwrap();
        }
        Tools {
            path: folder.path().display().to_string(),
            _folder: Some(folder),
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}
