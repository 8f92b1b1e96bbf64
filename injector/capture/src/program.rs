//! Puts the rules into the kernel, and takes them out again, with the programs that every distribution ships.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::options::{Mode, Options};
use crate::rules::{self, Family, TABLES, TPROXY_MARK, TPROXY_ROUTE_TABLE};

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

/// The programs of one family.
#[derive(Clone, Copy)]
struct Tools {
    family: Family,
    save: &'static str,
    restore: &'static str,
    /// For `ip`.
    flag: &'static str,
}

const V4: Tools = Tools {
    family: Family::V4,
    save: "iptables-save",
    restore: "iptables-restore",
    flag: "-4",
};
const V6: Tools = Tools {
    family: Family::V6,
    save: "ip6tables-save",
    restore: "ip6tables-restore",
    flag: "-6",
};

/// Rules of others stay; and on a node others (kube-proxy) hold the lock now and then.
const RESTORE: &[&str] = &["--noflush", "--wait=30"];

/// Programs the rules that `options` ask for. Rules of an earlier run are replaced, so it may run again.
///
/// IPv6 is programmed where the kernel has it; a pod without IPv6 is no error.
///
/// # Errors
/// When a program is missing or refuses.
pub fn apply(options: &Options) -> Result<(), ProgramError> {
    clean()?;
    for tools in families() {
        let rules = rules::build(options, tools.family);
        run_with_input(tools.restore, RESTORE, &rules)?;
        if tools.family == Family::V6 {
            run("ip", &["-6", "addr", "replace", "::6/128", "dev", "lo"])?;
        }
        if options.mode == Mode::Tproxy {
            let (mark, table) = (TPROXY_MARK.to_string(), TPROXY_ROUTE_TABLE.to_string());
            let rule = ["rule", "add", "fwmark", &mark, "lookup", &table];
            run("ip", &[&[tools.flag], &rule[..]].concat())?;
            let route = [
                "route", "replace", "local", "default", "dev", "lo", "table", &table,
            ];
            run("ip", &[&[tools.flag], &route[..]].concat())?;
        }
    }
    Ok(())
}

/// Looks whether the rules that `options` ask for are there.
///
/// # Errors
/// The first chain that has not as many rules as it should.
pub fn check(options: &Options) -> Result<(), ProgramError> {
    for tools in families() {
        let wanted = rules::build(options, tools.family);
        for (table, chains) in TABLES {
            let wanted = count_rules(section(&wanted, table), chains);
            let present = run(tools.save, &["-t", table])?;
            let found = count_rules(&present, chains);
            for (chain, wanted) in wanted {
                let found = found.get(chain).copied().unwrap_or_default();
                if found != wanted {
                    return Err(ProgramError::Missing {
                        family: tools.family,
                        table: (*table).to_owned(),
                        chain: chain.to_owned(),
                        wanted,
                        found,
                    });
                }
            }
        }
    }
    Ok(())
}

/// The part about one table of what `iptables-restore` takes.
fn section<'a>(rules: &'a str, table: &str) -> &'a str {
    let start = format!("*{table}\n");
    let rest = rules.split_once(&start).map_or("", |(_, rest)| rest);
    rest.split_once("COMMIT").map_or("", |(section, _)| section)
}

/// How many rules each chain has: all of ours', and of others' those that jump to ours.
fn count_rules<'a>(present: &'a str, ours: &[&str]) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for rule in present.lines().filter_map(|line| line.strip_prefix("-A ")) {
        let chain = rule.split(' ').next().unwrap_or_default();
        if ours.contains(&chain) || jumps_to(rule, ours) {
            *counts.entry(chain).or_default() += 1;
        }
    }
    counts
}

fn jumps_to(rule: &str, chains: &[&str]) -> bool {
    chains
        .iter()
        .any(|chain| rule.ends_with(&format!("-j {chain}")))
}

/// Removes every rule, chain and route of ours; nothing else is touched.
///
/// # Errors
/// When a program is missing or refuses.
pub fn clean() -> Result<(), ProgramError> {
    for tools in families() {
        for (table, chains) in TABLES {
            let removal = build_removal(&run(tools.save, &["-t", table])?, table, chains);
            if !removal.is_empty() {
                run_with_input(tools.restore, RESTORE, &removal)?;
            }
        }
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
        if jumps_to(rule, &ours)
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

/// The families that there are.
fn families() -> impl Iterator<Item = Tools> {
    [V4].into_iter().chain(has_ipv6().then_some(V6))
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
    use crate::rules::NAT_CHAINS;

    #[test]
    fn rules_are_counted_by_chain_and_those_of_others_left_out() {
        let present = "*nat\n:PREROUTING ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
            -A OUTPUT -j OTHER\n-A ISTIO_OUTPUT -o lo -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n";
        let want = BTreeMap::from([("ISTIO_OUTPUT", 2), ("OUTPUT", 1)]);
        assert_eq!(count_rules(section(present, "nat"), NAT_CHAINS), want);
        assert!(count_rules(section(present, "mangle"), NAT_CHAINS).is_empty());
    }

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
