//! The rules as `nft -f` reads them, in tables of our own: what others have in theirs is not touched.

use std::fmt::Write as _;

use super::{Action, Family, Match, Protocol, Rule, TABLES, Table};

/// Where the kernel enters a table: the table, the chain, and what makes it that of iptables' table of the same name.
const HOOKS: &[(&str, &str, &str)] = &[
    (
        "nat",
        "PREROUTING",
        "type nat hook prerouting priority -100",
    ),
    ("nat", "OUTPUT", "type nat hook output priority -100"),
    (
        "mangle",
        "PREROUTING",
        "type filter hook prerouting priority -150",
    ),
];

/// The tables as input for `nft -f`: what an earlier run has left of them is replaced, in one step.
#[must_use]
pub fn print(tables: &[Table], family: Family) -> String {
    let mut text = print_removal(family);
    for table in tables {
        let _ = writeln!(text, "table {} {{", name(table.name, family));
        for chain in table.chains {
            print_chain(&mut text, table, chain, None, family);
        }
        for (_, chain, hook) in HOOKS.iter().filter(|(name, ..)| *name == table.name) {
            print_chain(&mut text, table, chain, Some(hook), family);
        }
        text.push_str("}\n");
    }
    text
}

/// Takes our tables away. What is not there cannot be deleted, so it is made first.
#[must_use]
pub fn print_removal(family: Family) -> String {
    let names = TABLES.iter().map(|(table, _)| name(table, family));
    names
        .map(|name| format!("add table {name}\ndelete table {name}\n"))
        .collect()
}

/// A table's family and name, as `nft` wants them.
#[must_use]
pub fn name(table: &str, family: Family) -> String {
    format!("{} istio_{table}", address(family))
}

fn print_chain(text: &mut String, table: &Table, chain: &str, hook: Option<&str>, family: Family) {
    let _ = writeln!(text, "\tchain {chain} {{");
    if let Some(hook) = hook {
        let _ = writeln!(text, "\t\t{hook}; policy accept;");
    }
    for rule in table.rules.iter().filter(|rule| rule.chain == chain) {
        let _ = writeln!(text, "\t\t{}", line(rule, family));
    }
    text.push_str("\t}\n");
}

fn line(rule: &Rule, family: Family) -> String {
    let address = address(family);
    let mut text = String::new();
    for part in &rule.matches {
        let part = match part {
            Match::Protocol(protocol) => format!("meta l4proto {}", protocol_name(*protocol)),
            Match::Port(protocol, port) => format!("{} dport {port}", protocol_name(*protocol)),
            Match::From(block) => format!("{address} saddr {block}"),
            Match::To(block) => format!("{address} daddr {block}"),
            Match::NotTo(block) => format!("{address} daddr != {block}"),
            Match::InBy(interface) => format!("iifname \"{interface}\""),
            Match::OutBy(interface) => format!("oifname \"{interface}\""),
            Match::User(uid) => format!("meta skuid {uid}"),
            Match::Group(gid) => format!("meta skgid {gid}"),
            Match::Established => "ct state related,established".to_owned(),
        };
        let _ = write!(text, "{part} ");
    }
    let matches = text.clone();
    match rule.action {
        Action::Jump(chain) => text += &format!("jump {chain}"),
        Action::Return => text += "return",
        Action::Accept => text += "accept",
        Action::Redirect(port) => text += &format!("redirect to :{port}"),
        Action::Mark(mark) => text += &format!("meta mark set {mark}"),
        // Where nobody listens the rule ends without a verdict, and the packet must not pass for that.
        Action::Tproxy(port) => {
            let mark = super::TPROXY_MARK;
            text += &format!("tproxy to :{port} meta mark set {mark} accept\n\t\t{matches}drop");
        }
    }
    text
}

fn address(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
