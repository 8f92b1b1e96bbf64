//! From [`Options`] to the rules. Pure: no kernel is asked. [`iptables`] and [`nft`] put them into words.

use ipnet::IpNet;

use crate::options::{Mode, Options, Selection};

pub mod iptables;
pub mod nft;

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
    fn loopback(self) -> IpNet {
        parse(match self {
            Family::V4 => "127.0.0.1/32",
            Family::V6 => "::1/128",
        })
    }

    /// Where the inbound passthrough cluster binds, so that its connections are not intercepted again.
    fn passthrough_source(self) -> IpNet {
        parse(match self {
            Family::V4 => "127.0.0.6/32",
            Family::V6 => "::6/128",
        })
    }

    fn owns(self, block: &IpNet) -> bool {
        matches!(
            (self, block),
            (Family::V4, IpNet::V4(_)) | (Family::V6, IpNet::V6(_))
        )
    }
}

fn parse(block: &str) -> IpNet {
    block.parse().expect("a block")
}

/// Chains of ours in the nat table.
pub const NAT_CHAINS: &[&str] = &[
    "ISTIO_INBOUND",
    "ISTIO_IN_REDIRECT",
    "ISTIO_KUBEVIRT",
    "ISTIO_OUTPUT",
    "ISTIO_OUTPUT_DNS",
    "ISTIO_REDIRECT",
];
/// Chains of ours in the mangle table.
pub const MANGLE_CHAINS: &[&str] = &["ISTIO_DIVERT", "ISTIO_INBOUND", "ISTIO_TPROXY"];

/// The tables that we use, with our chains in each.
pub const TABLES: &[(&str, &[&str])] = &[("nat", NAT_CHAINS), ("mangle", MANGLE_CHAINS)];

/// What is carried by IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams: questions for names.
    Udp,
}

/// What a packet must be for a rule to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Of this protocol.
    Protocol(Protocol),
    /// For this port.
    Port(Protocol, u16),
    /// From these addresses.
    From(IpNet),
    /// To these addresses.
    To(IpNet),
    /// To others than these.
    NotTo(IpNet),
    /// Coming in by this interface.
    InBy(String),
    /// Leaving by this one.
    OutBy(String),
    /// Sent by this user.
    User(u32),
    /// Sent by this group.
    Group(u32),
    /// Of a connection that somebody has.
    Established,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes on in this chain of ours.
    Jump(&'static str),
    /// Ends this chain.
    Return,
    /// Lets the packet through.
    Accept,
    /// Sends the packet to this local port.
    Redirect(u16),
    /// Marks the packet and goes on.
    Mark(u32),
    /// Marks the packet and hands it to who listens on this port; drops it if nobody does.
    Tproxy(u16),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Ours, or the kernel's (`PREROUTING`, `OUTPUT`).
    pub chain: &'static str,
    /// All of them must hold.
    pub matches: Vec<Match>,
    /// What is done then.
    pub action: Action,
}

/// One table's worth of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `nat` or `mangle`.
    pub name: &'static str,
    /// Our chains in it.
    pub chains: &'static [&'static str],
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
}

impl Table {
    fn new(name: &'static str, chains: &'static [&'static str]) -> Self {
        Table {
            name,
            chains,
            rules: Vec::new(),
        }
    }

    fn add(&mut self, chain: &'static str, matches: &[Match], action: Action) {
        let matches = matches.to_vec();
        self.rules.push(Rule {
            chain,
            matches,
            action,
        });
    }
}

const TCP: Match = Match::Protocol(Protocol::Tcp);
const UDP: Match = Match::Protocol(Protocol::Udp);

const LOOPBACK: &str = "lo";

fn tcp(port: u16) -> Match {
    Match::Port(Protocol::Tcp, port)
}

/// The rules that intercept as `options` say: the nat table, and before it the mangle table if it is needed.
#[must_use]
pub fn build(options: &Options, family: Family) -> Vec<Table> {
    let mut nat = Table::new("nat", NAT_CHAINS);
    nat.add(
        "ISTIO_REDIRECT",
        &[TCP],
        Action::Redirect(options.outbound_port),
    );
    nat.add(
        "ISTIO_IN_REDIRECT",
        &[TCP],
        Action::Redirect(options.inbound_port),
    );
    let mut tables = Vec::new();
    match options.mode {
        Mode::Redirect => {
            add_kubevirt(&mut nat, options, family);
            add_inbound(&mut nat, options, "ISTIO_IN_REDIRECT");
        }
        Mode::Tproxy => {
            tables.push(build_tproxy(options, family));
            add_kubevirt(&mut nat, options, family);
        }
    }
    add_outbound(&mut nat, options, family);
    tables.push(nat);
    tables
}

fn add_inbound(table: &mut Table, options: &Options, target: &'static str) {
    let ports = match &options.inbound_ports {
        Selection::Only(ports) if ports.is_empty() => return,
        Selection::Only(ports) => Some(ports),
        Selection::All => None,
    };
    table.add("PREROUTING", &[TCP], Action::Jump("ISTIO_INBOUND"));
    match ports {
        Some(ports) => {
            for port in ports {
                table.add("ISTIO_INBOUND", &[tcp(*port)], Action::Jump(target));
            }
        }
        None => {
            // A shell on the pod must stay reachable whatever happens to the proxy.
            table.add("ISTIO_INBOUND", &[tcp(22)], Action::Return);
            for port in &options.excluded_inbound_ports.0 {
                table.add("ISTIO_INBOUND", &[tcp(*port)], Action::Return);
            }
            table.add("ISTIO_INBOUND", &[TCP], Action::Jump(target));
        }
    }
}

fn build_tproxy(options: &Options, family: Family) -> Table {
    let mut mangle = Table::new("mangle", MANGLE_CHAINS);
    mangle.add("ISTIO_DIVERT", &[], Action::Mark(TPROXY_MARK));
    mangle.add("ISTIO_DIVERT", &[], Action::Accept);
    mangle.add(
        "ISTIO_TPROXY",
        &[Match::NotTo(family.loopback()), TCP],
        Action::Tproxy(options.inbound_port),
    );
    if options.inbound_ports != Selection::Only(Vec::new()) {
        // What virtual machines send goes out, and the nat table sees to that.
        for interface in &options.kubevirt_interfaces.0 {
            let machine = Match::InBy(interface.clone());
            mangle.add("ISTIO_INBOUND", &[machine], Action::Return);
        }
        // Nothing comes in by loopback but what outbound rules have sent there: answers of the proxy to the application among
        // it, which still bear the proxy's address here.
        mangle.add(
            "ISTIO_INBOUND",
            &[Match::InBy(LOOPBACK.into()), TCP],
            Action::Return,
        );
        // A packet of a connection that somebody already has goes straight to him: what the proxy was given, and answers to
        // what it asked for itself, which TPROXY would drop.
        mangle.add(
            "ISTIO_INBOUND",
            &[TCP, Match::Established],
            Action::Jump("ISTIO_DIVERT"),
        );
    }
    add_inbound(&mut mangle, options, "ISTIO_TPROXY");
    mangle
}

/// DNS over UDP; the same over TCP is among the outbound rules. The agent's own questions go where they went.
fn add_dns(nat: &mut Table, options: &Options) {
    let questions = Match::Port(Protocol::Udp, 53);
    nat.add("OUTPUT", &[questions], Action::Jump("ISTIO_OUTPUT_DNS"));
    for owner in owners(options) {
        nat.add("ISTIO_OUTPUT_DNS", &[owner], Action::Return);
    }
    nat.add(
        "ISTIO_OUTPUT_DNS",
        &[UDP],
        Action::Redirect(options.dns_port),
    );
}

/// How the proxy's own traffic is told.
fn owners(options: &Options) -> Vec<Match> {
    let gids = if options.proxy_gids.is_empty() {
        &options.proxy_uids
    } else {
        &options.proxy_gids
    };
    let uids = options.proxy_uids.iter().copied().map(Match::User);
    uids.chain(gids.iter().copied().map(Match::Group)).collect()
}

fn add_outbound(nat: &mut Table, options: &Options, family: Family) {
    const OUTPUT: &str = "ISTIO_OUTPUT";
    let loopback = family.loopback();
    if options.redirect_dns {
        add_dns(nat, options);
    }
    nat.add("OUTPUT", &[TCP], Action::Jump(OUTPUT));
    for port in &options.excluded_outbound_ports.0 {
        nat.add(OUTPUT, &[tcp(*port)], Action::Return);
    }
    let passthrough = Match::From(family.passthrough_source());
    let inside = Match::OutBy(LOOPBACK.into());
    nat.add(OUTPUT, &[passthrough, inside.clone()], Action::Return);
    // An application that calls itself through its pod or service address still passes its inbound policies.
    nat.add(
        OUTPUT,
        &[Match::NotTo(loopback), inside],
        Action::Jump("ISTIO_IN_REDIRECT"),
    );
    for owner in owners(options) {
        nat.add(OUTPUT, &[owner], Action::Return);
    }
    if options.redirect_dns {
        nat.add(OUTPUT, &[tcp(53)], Action::Redirect(options.dns_port));
    }
    nat.add(OUTPUT, &[Match::To(loopback)], Action::Return);
    add_destinations(nat, OUTPUT, Action::Return, options, family);
}

/// What comes in by the interface of a virtual machine inside the pod is what the pod sends out.
fn add_kubevirt(nat: &mut Table, options: &Options, family: Family) {
    const KUBEVIRT: &str = "ISTIO_KUBEVIRT";
    for interface in &options.kubevirt_interfaces.0 {
        let machine = Match::InBy(interface.clone());
        nat.add("PREROUTING", &[machine, TCP], Action::Jump(KUBEVIRT));
    }
    if !options.kubevirt_interfaces.0.is_empty() {
        add_destinations(nat, KUBEVIRT, Action::Accept, options, family);
        // It is none of what comes in.
        nat.add(KUBEVIRT, &[], Action::Accept);
    }
}

/// Destinations that are intercepted, behind those that are not, for which `leave` is done.
fn add_destinations(
    nat: &mut Table,
    chain: &'static str,
    leave: Action,
    options: &Options,
    family: Family,
) {
    let own = |block: &&IpNet| family.owns(block);
    for block in options.excluded_outbound_blocks.0.iter().filter(own) {
        nat.add(chain, &[Match::To(*block)], leave);
    }
    let redirect = Action::Jump("ISTIO_REDIRECT");
    match &options.outbound_blocks {
        Selection::All => nat.add(chain, &[], redirect),
        Selection::Only(blocks) => {
            for block in blocks.iter().filter(own) {
                nat.add(chain, &[Match::To(*block)], redirect);
            }
        }
    }
}

#[cfg(test)]
mod tests;
