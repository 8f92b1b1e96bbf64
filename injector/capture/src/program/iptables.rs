//! The rules by `iptables-restore`, whose tables are everybody's.

use std::collections::BTreeMap;

use super::{ProgramError, run, run_with_input};
use crate::options::Options;
use crate::rules::{self, Family, TABLES};

/// The programs of one family.
#[derive(Clone, Copy)]
struct Tools {
    save: &'static str,
    restore: &'static str,
}

/// Rules of others stay; and on a node others (kube-proxy) hold the lock now and then.
const RESTORE: &[&str] = &["--noflush", "--wait=30"];

fn tools(family: Family) -> Tools {
    match family {
        Family::V4 => Tools {
            save: "iptables-save",
            restore: "iptables-restore",
        },
        Family::V6 => Tools {
            save: "ip6tables-save",
            restore: "ip6tables-restore",
        },
    }
}

/// IPv6 may be missing among the installed programs.
pub(super) fn has_ipv6() -> bool {
    run("ip6tables-save", &["-t", "nat"]).is_ok()
}

pub(super) fn apply(options: &Options, families: &[Family]) -> Result<(), ProgramError> {
    for family in families {
        let rules = rules::iptables::print(&rules::build(options, *family));
        run_with_input(tools(*family).restore, RESTORE, &rules)?;
    }
    Ok(())
}

pub(super) fn check(options: &Options, family: Family) -> Result<(), ProgramError> {
    let wanted = rules::iptables::print(&rules::build(options, family));
    for (table, chains) in TABLES {
        let wanted = count_rules(section(&wanted, table), chains);
        let present = run(tools(family).save, &["-t", table])?;
        let found = count_rules(&present, chains);
        for (chain, wanted) in wanted {
            let found = found.get(chain).copied().unwrap_or_default();
            if found != wanted {
                return Err(ProgramError::Missing {
                    family,
                    table: (*table).to_owned(),
                    chain: chain.to_owned(),
                    wanted,
                    found,
                });
            }
        }
    }
    Ok(())
}

pub(super) fn clean(families: &[Family]) -> Result<(), ProgramError> {
    for family in families {
        let tools = tools(*family);
        for (table, chains) in TABLES {
            let removal = build_removal(&run(tools.save, &["-t", table])?, table, chains);
            if !removal.is_empty() {
                run_with_input(tools.restore, RESTORE, &removal)?;
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
