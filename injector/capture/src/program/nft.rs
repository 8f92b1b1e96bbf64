//! The rules by `nft -f`, in tables of our own.

use std::collections::BTreeMap;

use super::{ProgramError, run, run_with_input};
use crate::options::Options;
use crate::rules::{self, Family, TABLES};

pub(super) fn apply(options: &Options, families: &[Family]) -> Result<(), ProgramError> {
    let rules: String = families
        .iter()
        .map(|family| rules::nft::print(&rules::build(options, *family), *family))
        .collect();
    restore(&rules)
}

pub(super) fn check(options: &Options, family: Family) -> Result<(), ProgramError> {
    let wanted = rules::nft::print(&rules::build(options, family), family);
    for (table, _) in TABLES {
        let name = rules::nft::name(table, family);
        let Some((_, wanted)) = wanted.split_once(&format!("\ntable {name} {{")) else {
            continue;
        };
        let wanted = wanted.split("\n}").next().unwrap_or_default();
        let listing = [&["list", "table"][..], &name.split(' ').collect::<Vec<_>>()].concat();
        // A table that is not there has no rules.
        let present = run("nft", &listing).unwrap_or_default();
        let found = count_rules(&present);
        for (chain, wanted) in count_rules(wanted) {
            let found = found.get(chain).copied().unwrap_or_default();
            if found != wanted {
                return Err(ProgramError::Missing {
                    family,
                    table: name,
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
    let removal: String = families
        .iter()
        .copied()
        .map(rules::nft::print_removal)
        .collect();
    restore(&removal)
}

fn restore(rules: &str) -> Result<(), ProgramError> {
    run_with_input("nft", &["-f", "-"], rules).map(drop)
}

/// How many rules each chain of a table has; all of them are ours.
fn count_rules(table: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    let mut chain = None;
    for line in table.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = name.strip_suffix(" {");
        } else if line == "}" {
            chain = None;
        } else if let Some(chain) = chain
            && !line.is_empty()
            && !line.starts_with("type ")
        {
            *counts.entry(chain).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted_by_chain_and_hooks_left_out() {
        let present = "table ip istio_nat {\n\tchain ISTIO_OUTPUT {\n\t\tmeta skuid 1337 return\n\t\tjump ISTIO_REDIRECT\n\t}\n\n\
            \tchain EMPTY {\n\t}\n\n\
            \tchain OUTPUT {\n\t\ttype nat hook output priority -100; policy accept;\n\t\tmeta l4proto tcp jump ISTIO_OUTPUT\n\t}\n}\n";
        let want = BTreeMap::from([("ISTIO_OUTPUT", 2), ("OUTPUT", 1)]);
        assert_eq!(count_rules(present), want);
    }
}
