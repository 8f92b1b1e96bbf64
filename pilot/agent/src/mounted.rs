//! The workload's certificate from files, in place of Citadel's answers: the Secret `istio.ACCOUNT`, which Citadel keeps in a
//! cluster, as the pod mounts it (`FILE_MOUNTED_CERTS`). What is to be trusted, and what is revoked, comes with it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use proto_component::drain::Drain;
use proto_component::file_watcher::FileWatcher;
use proto_component::tls::{CRLS, ClientAuth, Pem, PemFiles, ServerTls};
use zeroize::Zeroize as _;

use crate::secret::{Anchors, Workload};
use crate::secret_cache::SecretCache;

/// Where Istio's templates mount it.
pub const FOLDER: &str = "/etc/certs";
const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "root-cert.pem";
const END: &str = "-----END CERTIFICATE-----";

/// Keeps the cache as the files are, until the drain; what is broken leaves it as it was.
pub async fn follow(folder: PathBuf, cache: SecretCache, drain: Drain) {
    let files = [CHAIN, KEY, ROOTS, CRLS].map(|name| folder.join(name));
    let mut watcher = FileWatcher::files(files);
    loop {
        match read(&folder) {
            Ok((workload, anchors)) => {
                let serial = workload.serial.clone();
                tracing::info!(target: "ca", serial, not_after = %workload.not_after, "the certificate is from files");
                cache.set_anchors(anchors);
                if (*cache.workload()).as_ref() != Some(&workload) {
                    cache.set_workload(workload);
                }
            }
            Err(error) => {
                let (error, has_one) = (format!("{error:#}"), cache.workload().is_some());
                tracing::warn!(target: "ca", error, folder = %folder.display(), has_one, "no certificate in the files");
            }
        }
        tokio::select! {
            () = watcher.changed() => {}
            () = drain.signaled() => return,
        }
    }
}

fn read(folder: &Path) -> anyhow::Result<(Workload, Anchors)> {
    let roots = folder.join(ROOTS);
    let files = PemFiles::new(folder.join(CHAIN), folder.join(KEY), Some(roots));
    let mut pem = files.read()?;
    let taken = take(&pem);
    pem.key.zeroize();
    taken
}

fn take(pem: &Pem) -> anyhow::Result<(Workload, Anchors)> {
    // Key and chain may be of two versions, while the files are being replaced.
    ServerTls::from_pem(pem, ClientAuth::None, &[])?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).context("no text");
    let (chain, roots) = (text(&pem.chain)?, text(&pem.roots)?);
    let certificates = chain.split_inclusive(END).map(str::trim);
    let certificates = certificates.filter(|text| !text.is_empty());
    let mut answer: Vec<String> = certificates.map(str::to_owned).collect();
    answer.push(roots.clone());
    let workload = Workload::new(text(&pem.key)?, &answer)?;
    let anchors = Anchors::from_pem(roots, text(&pem.crls)?)?;
    Ok((workload, anchors))
}
