//! Puts the rules into the kernel, and takes them out again, with the programs that every distribution ships.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::options::{Mode, Options};
use crate::rules::{self, Family, MANGLE_CHAINS, NAT_CHAINS, TPROXY_MARK, TPROXY_ROUTE_TABLE};

/// Why the rules are not in place.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
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
}

/// Programs the rules that `options` ask for. Rules of an earlier run are replaced, so it may run again.
///
/// IPv6 is programmed where the kernel has it; a pod without IPv6 is no error.
///
/// # Errors
/// When a program is missing or refuses.
pub fn apply(options: &Options) -> Result<(), ProgramError> {
    clean()?;
    run_with_input(
        "iptables-restore",
        &["--noflush"],
        &rules::build(options, Family::V4),
    )?;
    let ipv6 = has_ipv6();
    if ipv6 {
        run_with_input(
            "ip6tables-restore",
            &["--noflush"],
            &rules::build(options, Family::V6),
        )?;
        run("ip", &["-6", "addr", "replace", "::6/128", "dev", "lo"])?;
    }
    if options.mode == Mode::Tproxy {
        let (mark, table) = (TPROXY_MARK.to_string(), TPROXY_ROUTE_TABLE.to_string());
        for family in if ipv6 {
            ["-4", "-6"].as_slice()
        } else {
            &["-4"]
        } {
            run(
                "ip",
                &[family, "rule", "add", "fwmark", &mark, "lookup", &table],
            )?;
            run(
                "ip",
                &[
                    family, "route", "replace", "local", "default", "dev", "lo", "table", &table,
                ],
            )?;
        }
    }
    Ok(())
}

/// Removes every rule, chain and route of ours; nothing else is touched.
///
/// # Errors
/// When a program is missing or refuses.
pub fn clean() -> Result<(), ProgramError> {
    clean_family("iptables-save", "iptables-restore")?;
    if has_ipv6() {
        clean_family("ip6tables-save", "ip6tables-restore")?;
    }
    let (mark, table) = (TPROXY_MARK.to_string(), TPROXY_ROUTE_TABLE.to_string());
    // What is not there cannot be deleted, and need not be.
    for family in ["-4", "-6"] {
        let _ = run(
            "ip",
            &[family, "rule", "del", "fwmark", &mark, "lookup", &table],
        );
        let _ = run("ip", &[family, "route", "flush", "table", &table]);
    }
    let _ = run("ip", &["-6", "addr", "del", "::6/128", "dev", "lo"]);
    Ok(())
}

fn clean_family(save: &str, restore: &str) -> Result<(), ProgramError> {
    for (table, chains) in [("nat", NAT_CHAINS), ("mangle", MANGLE_CHAINS)] {
        let present = run(save, &["-t", table])?;
        let removal = build_removal(&present, table, chains);
        if !removal.is_empty() {
            run_with_input(restore, &["--noflush"], &removal)?;
        }
    }
    Ok(())
}

/// What to feed to `iptables-restore` so that our chains of `table`, as `present` lists it, go away.
fn build_removal(present: &str, table: &str, chains: &[&str]) -> String {
    let ours: Vec<&str> = chains
        .iter()
        .copied()
        .filter(|chain| {
            present
                .lines()
                .any(|line| line.starts_with(&format!(":{chain} ")))
        })
        .collect();
    if ours.is_empty() {
        return String::new();
    }
    let mut text = format!("*{table}\n");
    for line in present.lines() {
        let Some(rule) = line.strip_prefix("-A ") else {
            continue;
        };
        let jumps_to_ours = ours
            .iter()
            .any(|chain| rule.ends_with(&format!("-j {chain}")));
        if jumps_to_ours
            && !ours
                .iter()
                .any(|chain| rule.starts_with(&format!("{chain} ")))
        {
            text.push_str(&format!("-D {rule}\n"));
        }
    }
    for action in ["-F", "-X"] {
        for chain in &ours {
            text.push_str(&format!("{action} {chain}\n"));
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// A pod may have no IPv6 at all, in the kernel or among the installed programs.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
        && std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
            .is_ok_and(|value| value.trim() == "0")
        && run("ip6tables-save", &["-t", "nat"]).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_takes_our_chains_and_the_jumps_to_them_only() {
        let present = "*nat\n:PREROUTING ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n:OTHER - [0:0]\n\
            -A OUTPUT -p tcp -j ISTIO_OUTPUT\n-A OUTPUT -j OTHER\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n";
        let want = "*nat\n-D OUTPUT -p tcp -j ISTIO_OUTPUT\n-F ISTIO_OUTPUT\n-F ISTIO_REDIRECT\n\
            -X ISTIO_OUTPUT\n-X ISTIO_REDIRECT\nCOMMIT\n";
        assert_eq!(build_removal(present, "nat", NAT_CHAINS), want);
        assert_eq!(
            build_removal("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", "nat", NAT_CHAINS),
            ""
        );
    }
}
