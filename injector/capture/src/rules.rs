//! From [`Options`] to the rules, as text for `iptables-restore`. Pure: no kernel is asked.

use std::fmt::Write as _;

use ipnet::IpNet;

use crate::options::{Mode, Options, Selection};

/// Mark of packets that TPROXY hands to the proxy.
pub const TPROXY_MARK: u32 = 1337;
/// Routing table that delivers marked packets locally.
pub const TPROXY_ROUTE_TABLE: u32 = 133;

/// IPv4 or IPv6: they differ in what loopback and the passthrough source are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    fn loopback(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.1/32",
            Family::V6 => "::1/128",
        }
    }

    /// Where the inbound passthrough cluster binds, so that its connections are not intercepted again.
    fn passthrough_source(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.6/32",
            Family::V6 => "::6/128",
        }
    }

    fn owns(self, block: &IpNet) -> bool {
        matches!(
            (self, block),
            (Family::V4, IpNet::V4(_)) | (Family::V6, IpNet::V6(_))
        )
    }
}

/// Chains of ours in the nat table.
pub const NAT_CHAINS: &[&str] = &[
    "ISTIO_INBOUND",
    "ISTIO_IN_REDIRECT",
    "ISTIO_OUTPUT",
    "ISTIO_OUTPUT_DNS",
    "ISTIO_REDIRECT",
];
/// Chains of ours in the mangle table.
pub const MANGLE_CHAINS: &[&str] = &["ISTIO_DIVERT", "ISTIO_INBOUND", "ISTIO_TPROXY"];

/// The tables that we use, with our chains in each.
pub const TABLES: &[(&str, &[&str])] = &[("nat", NAT_CHAINS), ("mangle", MANGLE_CHAINS)];

/// One table's worth of rules.
struct Table {
    name: &'static str,
    text: String,
}

impl Table {
    fn new(name: &'static str, chains: &[&str]) -> Self {
        let mut text = String::new();
        for chain in chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        Table { name, text }
    }

    fn add(&mut self, rule: impl AsRef<str>) {
        let _ = writeln!(self.text, "-A {}", rule.as_ref());
    }

    fn finish(self) -> String {
        format!("*{}\n{}COMMIT\n", self.name, self.text)
    }
}

/// The rules that intercept as `options` say, as input for `iptables-restore --noflush`.
#[must_use]
pub fn build(options: &Options, family: Family) -> String {
    let mut nat = Table::new("nat", NAT_CHAINS);
    nat.add(format!(
        "ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {}",
        options.outbound_port
    ));
    nat.add(format!(
        "ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {}",
        options.inbound_port
    ));
    let mut mangle = None;
    match options.mode {
        Mode::Redirect => add_inbound(&mut nat, options, "ISTIO_IN_REDIRECT"),
        Mode::Tproxy => mangle = Some(build_tproxy(options, family)),
    }
    add_outbound(&mut nat, options, family);
    format!("{}{}", mangle.unwrap_or_default(), nat.finish())
}

fn add_inbound(table: &mut Table, options: &Options, target: &str) {
    let ports = match &options.inbound_ports {
        Selection::Only(ports) if ports.is_empty() => return,
        Selection::Only(ports) => Some(ports),
        Selection::All => None,
    };
    table.add("PREROUTING -p tcp -j ISTIO_INBOUND");
    match ports {
        Some(ports) => {
            for port in ports {
                table.add(format!("ISTIO_INBOUND -p tcp --dport {port} -j {target}"));
            }
        }
        None => {
            // A shell on the pod must stay reachable whatever happens to the proxy.
            table.add("ISTIO_INBOUND -p tcp --dport 22 -j RETURN");
            for port in &options.excluded_inbound_ports.0 {
                table.add(format!("ISTIO_INBOUND -p tcp --dport {port} -j RETURN"));
            }
            table.add(format!("ISTIO_INBOUND -p tcp -j {target}"));
        }
    }
}

fn build_tproxy(options: &Options, family: Family) -> String {
    let mut mangle = Table::new("mangle", MANGLE_CHAINS);
    mangle.add(format!("ISTIO_DIVERT -j MARK --set-mark {TPROXY_MARK}"));
    mangle.add("ISTIO_DIVERT -j ACCEPT");
    mangle.add(format!(
        "ISTIO_TPROXY ! -d {} -p tcp -j TPROXY --tproxy-mark {TPROXY_MARK}/0xffffffff --on-port {}",
        family.loopback(),
        options.inbound_port
    ));
    if options.inbound_ports != Selection::Only(Vec::new()) {
        // Nothing comes in by loopback but what outbound rules have sent there: answers of the proxy to the application among
        // it, which still bear the proxy's address here.
        mangle.add("ISTIO_INBOUND -i lo -p tcp -j RETURN");
        // A packet of a connection that somebody already has goes straight to him: what the proxy was given, and answers to
        // what it asked for itself, which TPROXY would drop.
        mangle
            .add("ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT");
    }
    add_inbound(&mut mangle, options, "ISTIO_TPROXY");
    mangle.finish()
}

/// DNS over UDP; the same over TCP is among the outbound rules. The agent's own questions go where they went.
fn add_dns(nat: &mut Table, options: &Options) {
    nat.add("OUTPUT -p udp --dport 53 -j ISTIO_OUTPUT_DNS");
    for owner in owners(options) {
        nat.add(format!("ISTIO_OUTPUT_DNS -m owner {owner} -j RETURN"));
    }
    nat.add(format!(
        "ISTIO_OUTPUT_DNS -p udp -j REDIRECT --to-ports {}",
        options.dns_port
    ));
}

/// How the proxy's own traffic is told.
fn owners(options: &Options) -> Vec<String> {
    let gids = if options.proxy_gids.is_empty() {
        &options.proxy_uids
    } else {
        &options.proxy_gids
    };
    let uids = options.proxy_uids.iter();
    let uids = uids.map(|uid| format!("--uid-owner {uid}"));
    uids.chain(gids.iter().map(|gid| format!("--gid-owner {gid}")))
        .collect()
}

fn add_outbound(nat: &mut Table, options: &Options, family: Family) {
    if options.redirect_dns {
        add_dns(nat, options);
    }
    nat.add("OUTPUT -p tcp -j ISTIO_OUTPUT");
    for port in &options.excluded_outbound_ports.0 {
        nat.add(format!("ISTIO_OUTPUT -p tcp --dport {port} -j RETURN"));
    }
    nat.add(format!(
        "ISTIO_OUTPUT -s {} -o lo -j RETURN",
        family.passthrough_source()
    ));
    // An application that calls itself through its pod or service address still passes its inbound policies.
    nat.add(format!(
        "ISTIO_OUTPUT ! -d {} -o lo -j ISTIO_IN_REDIRECT",
        family.loopback()
    ));
    for owner in owners(options) {
        nat.add(format!("ISTIO_OUTPUT -m owner {owner} -j RETURN"));
    }
    if options.redirect_dns {
        nat.add(format!(
            "ISTIO_OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports {}",
            options.dns_port
        ));
    }
    nat.add(format!("ISTIO_OUTPUT -d {} -j RETURN", family.loopback()));
    for block in options
        .excluded_outbound_blocks
        .0
        .iter()
        .filter(|block| family.owns(block))
    {
        nat.add(format!("ISTIO_OUTPUT -d {block} -j RETURN"));
    }
    match &options.outbound_blocks {
        Selection::All => nat.add("ISTIO_OUTPUT -j ISTIO_REDIRECT"),
        Selection::Only(blocks) => {
            for block in blocks.iter().filter(|block| family.owns(block)) {
                nat.add(format!("ISTIO_OUTPUT -d {block} -j ISTIO_REDIRECT"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn rules(arguments: &[&str]) -> String {
        build(
            &Options::parse_from([&["istio-iptables"], arguments].concat()),
            Family::V4,
        )
    }

    #[test]
    fn everything_is_redirected_but_the_proxy_and_loopback() {
        let want = "*nat\n\
            :ISTIO_INBOUND - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
            :ISTIO_OUTPUT_DNS - [0:0]\n:ISTIO_REDIRECT - [0:0]\n\
            -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
            -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
            -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
            -A ISTIO_INBOUND -p tcp --dport 22 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n\
            -A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
            -A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN\n\
            -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ISTIO_IN_REDIRECT\n\
            -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n\
            -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN\n\
            -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n\
            -A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n";
        assert_eq!(rules(&["-b", "*", "-i", "*", "-d", "15020"]), want);
    }

    #[test]
    fn lists_select_ports_and_blocks() {
        let rules = rules(&[
            "-b",
            "80,443",
            "-i",
            "10.0.0.0/8",
            "-x",
            "10.9.0.1",
            "-o",
            "3306",
            "-d",
            "99",
        ]);
        for rule in [
            "-A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT\n",
            "-A ISTIO_INBOUND -p tcp --dport 443 -j ISTIO_IN_REDIRECT\n",
            "-A ISTIO_OUTPUT -p tcp --dport 3306 -j RETURN\n",
            "-A ISTIO_OUTPUT -d 10.9.0.1/32 -j RETURN\n",
            "-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT\n",
        ] {
            assert!(rules.contains(rule), "{rule} is missing in\n{rules}");
        }
        assert!(
            !rules.contains("--dport 99") && !rules.contains("-A ISTIO_OUTPUT -j ISTIO_REDIRECT")
        );
    }

    #[test]
    fn nothing_selected_intercepts_nothing() {
        let rules = rules(&[]);
        assert!(!rules.contains("PREROUTING") && !rules.contains("ISTIO_OUTPUT -j ISTIO_REDIRECT"));
    }

    #[test]
    fn tproxy_marks_in_the_mangle_table() {
        let rules = rules(&["-m", "TPROXY", "-b", "*"]);
        let (mangle, nat) = rules.split_once("COMMIT\n").unwrap();
        assert!(mangle.starts_with("*mangle\n") && mangle.contains("--on-port 15006\n"));
        assert!(mangle.contains("-A PREROUTING -p tcp -j ISTIO_INBOUND\n"));
        assert!(nat.starts_with("*nat\n") && !nat.contains("PREROUTING"));
    }

    #[test]
    fn names_are_asked_of_the_agent_by_everybody_but_the_agent() {
        let rules = rules(&["--redirect-dns"]);
        for rule in [
            "-A OUTPUT -p udp --dport 53 -j ISTIO_OUTPUT_DNS\n\
             -A ISTIO_OUTPUT_DNS -m owner --uid-owner 1337 -j RETURN\n\
             -A ISTIO_OUTPUT_DNS -m owner --gid-owner 1337 -j RETURN\n\
             -A ISTIO_OUTPUT_DNS -p udp -j REDIRECT --to-ports 15053\n",
            "-A ISTIO_OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports 15053\n-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n",
        ] {
            assert!(rules.contains(rule), "{rule} is missing in\n{rules}");
        }
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        for (flag, value, hint) in [
            ("-b", "80,x", "1 to 65535"),
            ("-x", "10.0.0.0/99", "10.0.0.0/8"),
            ("-m", "magic", "REDIRECT"),
        ] {
            let error = Options::try_parse_from(["istio-iptables", flag, value])
                .unwrap_err()
                .to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
