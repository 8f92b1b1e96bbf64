//! Resource monitors: how much of a resource is in use, as a share of what there may be.

use std::{io, path::PathBuf};

/// A resource to look at.
#[derive(Debug)]
pub(super) enum Monitor {
    /// The process's memory.
    Heap {
        /// The most it should take.
        most: u64,
    },
    /// The memory of the control group.
    Cgroup {
        /// The most it should take; none for the group's own limit.
        most: Option<u64>,
    },
    /// Whatever a file says.
    Injected(PathBuf),
}

impl Monitor {
    /// The share in use; 1 is full.
    pub(super) fn pressure(&self) -> io::Result<f64> {
        match self {
            Self::Heap { most } => {
                let resident = crate::admin::resident_bytes();
                let resident = resident.ok_or_else(|| io::Error::other("no /proc/self/statm"))?;
                Ok(share(resident, *most))
            }
            Self::Cgroup { most } => {
                let used = read_number(&[
                    "/sys/fs/cgroup/memory.current",
                    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                ])?;
                let limit = read_number(&[
                    "/sys/fs/cgroup/memory.max",
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                ]);
                let limit = limit.unwrap_or(u64::MAX);
                Ok(share(used, most.map_or(limit, |most| most.min(limit))))
            }
            Self::Injected(path) => {
                let text = std::fs::read_to_string(path)?;
                let value: f64 = text.trim().parse().map_err(io::Error::other)?;
                if (0.0..=1.0).contains(&value) {
                    Ok(value)
                } else {
                    Err(io::Error::other("pressure out of range"))
                }
            }
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a share needs no more than a double has"
)]
fn share(used: u64, most: u64) -> f64 {
    used as f64 / most.max(1) as f64
}

fn read_number(paths: &[&str]) -> io::Result<u64> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for path in paths {
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim() == "max" => return Ok(u64::MAX),
            Ok(text) => return text.trim().parse().map_err(io::Error::other),
            Err(error) => last = error,
        }
    }
    Err(last)
}
