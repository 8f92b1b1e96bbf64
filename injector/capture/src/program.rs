//! Puts the rules into the kernel, and takes them out again, with the programs that every distribution ships: iptables, or nft
//! where that is absent.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::options::{Mode, Options};
use crate::rules::{self, Family, TPROXY_MARK, TPROXY_ROUTE_TABLE};

mod iptables;
mod nft;

/// Why the rules are not in place.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is no program for it.
    #[error("there is neither iptables nor nft here: install the package iptables or nftables")]
    Absent,
    /// The program is missing.
    #[error("cannot run {program}: {error}; install the package iptables (or iproute2 for ip)")]
    Run {
        /// Its name.
        program: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The program refused.
    #[error("{program} failed: {output}")]
    Refused {
        /// Its name and arguments.
        program: String,
        /// What it printed.
        output: String,
    },
    /// Rules are missing.
    #[error("{family:?} chain {chain} of table {table} has {found} rules of ours, not {wanted}")]
    Missing {
        /// IPv4 or IPv6.
        family: Family,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
        /// Rules there should be.
        wanted: usize,
        /// Rules there are.
        found: usize,
    },
}

/// What programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Iptables,
    Nft,
}

impl Backend {
    /// The first that there is.
    fn find() -> Result<Self, ProgramError> {
        if is_installed("iptables-restore") {
            Ok(Backend::Iptables)
        } else if is_installed("nft") {
            Ok(Backend::Nft)
        } else {
            Err(ProgramError::Absent)
        }
    }

    /// The families that there are.
    fn families(self) -> Vec<Family> {
        let has_ipv6 = has_ipv6() && (self == Backend::Nft || iptables::has_ipv6());
        [Family::V4]
            .into_iter()
            .chain(has_ipv6.then_some(Family::V6))
            .collect()
    }

    fn clean(self) -> Result<(), ProgramError> {
        match self {
            Backend::Iptables => iptables::clean(&self.families())?,
            Backend::Nft => nft::clean(&self.families())?,
        }
        let (mark, table) = (TPROXY_MARK.to_string(), TPROXY_ROUTE_TABLE.to_string());
        // What is not there cannot be deleted, and need not be.
        for family in ["-4", "-6"] {
            let rule = ["rule", "del", "fwmark", &mark, "lookup", &table];
            let _ = run("ip", &[&[family], &rule[..]].concat());
            let _ = run("ip", &[family, "route", "flush", "table", &table]);
        }
        let _ = run("ip", &["-6", "addr", "del", "::6/128", "dev", "lo"]);
        Ok(())
    }
}

/// Programs the rules that `options` ask for. Rules of an earlier run are replaced, so it may run again.
///
/// IPv6 is programmed where the kernel has it; a pod without IPv6 is no error.
///
/// # Errors
/// When a program is missing or refuses.
pub fn apply(options: &Options) -> Result<(), ProgramError> {
    let backend = Backend::find()?;
    backend.clean()?;
    let families = backend.families();
    match backend {
        Backend::Iptables => iptables::apply(options, &families)?,
        Backend::Nft => nft::apply(options, &families)?,
    }
    for family in families {
        let flag = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        if family == Family::V6 {
            run("ip", &["-6", "addr", "replace", "::6/128", "dev", "lo"])?;
        }
        if options.mode == Mode::Tproxy {
            let (mark, table) = (TPROXY_MARK.to_string(), TPROXY_ROUTE_TABLE.to_string());
            let rule = ["rule", "add", "fwmark", &mark, "lookup", &table];
            run("ip", &[&[flag], &rule[..]].concat())?;
            let route = [
                "route", "replace", "local", "default", "dev", "lo", "table", &table,
            ];
            run("ip", &[&[flag], &route[..]].concat())?;
        }
    }
    Ok(())
}

/// Looks whether the rules that `options` ask for are there.
///
/// # Errors
/// The first chain that has not as many rules as it should.
pub fn check(options: &Options) -> Result<(), ProgramError> {
    let backend = Backend::find()?;
    for family in backend.families() {
        match backend {
            Backend::Iptables => iptables::check(options, family)?,
            Backend::Nft => nft::check(options, family)?,
        }
    }
    Ok(())
}

/// Removes every rule, chain and route of ours; nothing else is touched.
///
/// # Errors
/// When a program is missing or refuses.
pub fn clean() -> Result<(), ProgramError> {
    Backend::find()?.clean()
}

/// The rules of both families as the program takes them that would be run.
#[must_use]
pub fn print(options: &Options) -> String {
    let backend = Backend::find().unwrap_or(Backend::Iptables);
    let print = |family| {
        let rules = rules::build(options, family);
        match backend {
            Backend::Iptables => rules::iptables::print(&rules),
            Backend::Nft => rules::nft::print(&rules, family),
        }
    };
    [Family::V4, Family::V6].map(print).concat()
}

/// A pod may have no IPv6 at all.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
        && std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
            .is_ok_and(|value| value.trim() == "0")
}

/// Whether it can be run at all, by the same search as when it is.
fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    command.output().is_ok()
}

fn run(program: &str, arguments: &[&str]) -> Result<String, ProgramError> {
    run_with_input(program, arguments, "")
}

fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
    let failed = |error| ProgramError::Run {
        program: program.to_owned(),
        error,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why on its way out.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(ProgramError::Refused {
        program: format!("{program} {}", arguments.join(" ")),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
