//! The rules as `iptables-restore` reads them.

use std::fmt::Write as _;

use super::{Action, Match, Protocol, Table};

/// The tables as input for `iptables-restore --noflush`.
#[must_use]
pub fn print(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables {
        let _ = writeln!(text, "*{}", table.name);
        for chain in table.chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for rule in &table.rules {
            let matches: String = rule.matches.iter().map(matching).collect();
            let action = action(rule.action);
            let _ = writeln!(text, "-A {} {matches}-j {action}", rule.chain);
        }
        text.push_str("COMMIT\n");
    }
    text
}

fn matching(part: &Match) -> String {
    match part {
        Match::Protocol(protocol) => format!("-p {} ", name(*protocol)),
        Match::Port(protocol, port) => format!("-p {} --dport {port} ", name(*protocol)),
        Match::From(block) => format!("-s {block} "),
        Match::To(block) => format!("-d {block} "),
        Match::NotTo(block) => format!("! -d {block} "),
        Match::InBy(interface) => format!("-i {interface} "),
        Match::OutBy(interface) => format!("-o {interface} "),
        Match::User(uid) => format!("-m owner --uid-owner {uid} "),
        Match::Group(gid) => format!("-m owner --gid-owner {gid} "),
        Match::Established => "-m conntrack --ctstate RELATED,ESTABLISHED ".to_owned(),
    }
}

fn action(action: Action) -> String {
    match action {
        Action::Jump(chain) => chain.to_owned(),
        Action::Return => "RETURN".to_owned(),
        Action::Accept => "ACCEPT".to_owned(),
        Action::Redirect(port) => format!("REDIRECT --to-ports {port}"),
        Action::Mark(mark) => format!("MARK --set-mark {mark}"),
        Action::Tproxy(port) => {
            let mark = super::TPROXY_MARK;
            format!("TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}")
        }
    }
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
