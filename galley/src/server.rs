//! The MCP server: who may subscribe, and the socket on which they do.

use anyhow::Context as _;
use parking_lot::Mutex;
use proto_component::{drain::Drain, file_watcher::FileWatcher, listen::Peer, task};
use proto_mcp::source::Authorize;
use serde::Deserialize;
use std::{collections::BTreeSet, fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Who may (or may not) subscribe, from the file `--accessListFile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessList {
    /// Whether the list names those who may not.
    #[serde(
        default,
        rename = "isblacklist",
        alias = "IsBlackList",
        alias = "isBlackList"
    )]
    is_denied: bool,
    /// SPIFFE ids.
    #[serde(default, alias = "Allowed")]
    allowed: BTreeSet<String>,
}

/// How often refusals are logged.
#[derive(Clone, Copy, Debug)]
pub struct RefusalLog {
    /// Refusals logged at once.
    pub burst: u32,
    /// Time after which one more is logged.
    pub every: Duration,
}

/// Everybody may subscribe.
pub fn allow_all() -> Authorize {
    Arc::new(|_| Ok(()))
}

/// Only those may whom the list lets; it is followed, and where there is none everybody may who has a certificate.
pub fn follow_access_list(
    path: PathBuf,
    log: RefusalLog,
    drain: Drain,
) -> anyhow::Result<Authorize> {
    let list = Arc::new(Mutex::new(read(&path)?));
    let current = list.clone();
    task::spawn("access-list", async move {
        let mut watcher = FileWatcher::files([path.clone()]);
        loop {
            tokio::select! {
                () = watcher.changed() => {}
                () = drain.signaled() => return,
            }
            match read(&path) {
                Ok(list) => {
                    tracing::info!(target: "mcp", restricts = list.is_some(), "access list read");
                    *current.lock() = list;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(target: "mcp", error, "access list refused; the last good one stays");
                }
            }
        }
    });
    let limit = Mutex::new((f64::from(log.burst), Instant::now()));
    Ok(Arc::new(move |peer: &Peer| {
        let outcome = decide(list.lock().as_ref(), peer);
        if let Err(reason) = &outcome
            && may_log(&limit, log)
        {
            tracing::warn!(target: "mcp", reason, remote = ?peer.remote, "subscription refused");
        }
        outcome
    }))
}

fn read(path: &PathBuf) -> anyhow::Result<Option<AccessList>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).context(format!("read --accessListFile {}", path.display()));
        }
    };
    let list = serde_saphyr::from_str(&text)
        .with_context(|| format!("read --accessListFile {}", path.display()))?;
    Ok(Some(list))
}

fn decide(list: Option<&AccessList>, peer: &Peer) -> Result<(), String> {
    let Some(list) = list else { return Ok(()) };
    let id = peer
        .spiffe_id
        .as_deref()
        .ok_or("the certificate holds no SPIFFE id")?;
    if list.allowed.contains(id) == list.is_denied {
        return Err(format!("{id} may not subscribe (--accessListFile)"));
    }
    Ok(())
}

fn may_log(limit: &Mutex<(f64, Instant)>, log: RefusalLog) -> bool {
    let mut limit = limit.lock();
    let (tokens, at) = *limit;
    let now = Instant::now();
    let earned = now.duration_since(at).as_secs_f64() / log.every.as_secs_f64().max(1e-3);
    let tokens = (tokens + earned).min(f64::from(log.burst));
    let may = tokens >= 1.0;
    *limit = (if may { tokens - 1.0 } else { tokens }, now);
    may
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: Option<&str>) -> Peer {
        Peer {
            spiffe_id: id.map(str::to_owned),
            ..Peer::default()
        }
    }

    #[test]
    fn the_list_allows_or_denies() {
        let list: AccessList = serde_saphyr::from_str("allowed: [spiffe://a/pilot]\n").unwrap();
        assert!(decide(Some(&list), &peer(Some("spiffe://a/pilot"))).is_ok());
        assert!(decide(Some(&list), &peer(Some("spiffe://a/other"))).is_err());
        assert!(decide(Some(&list), &peer(None)).is_err());
        let denied = AccessList {
            is_denied: true,
            ..list
        };
        assert!(decide(Some(&denied), &peer(Some("spiffe://a/pilot"))).is_err());
        assert!(decide(Some(&denied), &peer(Some("spiffe://a/other"))).is_ok());
        assert!(decide(None, &peer(None)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_logged_now_and_then() {
        let log = RefusalLog {
            burst: 1,
            every: Duration::from_secs(60),
        };
        let limit = Mutex::new((1.0, Instant::now()));
        assert!(may_log(&limit, log));
        assert!(!may_log(&limit, log));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(may_log(&limit, log));
    }
}
