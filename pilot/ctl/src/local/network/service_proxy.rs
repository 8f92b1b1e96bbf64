//! Cluster addresses, the way kube-proxy does them: a chain for each port of a service that draws one of the ready
//! endpoints at random, and a refusal where there is none. The rules are built whole and restored in one transaction.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    process::{Command, Stdio},
};

use sha2::{Digest as _, Sha256};

use super::node::ADDRESS;

mod nft;

/// What translates addresses: iptables, or nft where that is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firewall {
    Iptables,
    Nft,
}

impl Firewall {
    /// The one that there is. Where there is neither, the attempt to run iptables says so.
    pub(crate) fn find() -> Self {
        let is_installed = |program: &str| {
            let mut command = Command::new(program);
            command.arg("--version").stdin(Stdio::null());
            command.output().is_ok()
        };
        if !is_installed("iptables-restore") && is_installed("nft") {
            Firewall::Nft
        } else {
            Firewall::Iptables
        }
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Firewall::Iptables => "iptables",
            Firewall::Nft => "nft",
        }
    }

    /// The program that reads rules, and its arguments.
    pub(crate) fn restore(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Firewall::Iptables => ("iptables-restore", &[]),
            Firewall::Nft => ("nft", &["-f", "-"]),
        }
    }

    /// Its input for everything that the node needs. Pure, and the same for the same input.
    pub(crate) fn build_rules(self, ports: &[ServicePort]) -> String {
        match self {
            Firewall::Iptables => build_rules(ports),
            Firewall::Nft => nft::build_rules(ports),
        }
    }
}

/// One port of a service with a cluster address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    /// `namespace/name:port`, for the rule's comment.
    pub name: String,
    /// Cluster address and port.
    pub address: SocketAddrV4,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Ready endpoints.
    pub endpoints: Vec<SocketAddrV4>,
}

/// The input of `iptables-restore` for all tables that the node uses.
fn build_rules(ports: &[ServicePort]) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    let mut refusals = String::new();
    for port in ports {
        let (ip, number, protocol) = (port.address.ip(), port.address.port(), port.protocol);
        let matcher = format!("-d {ip}/32 -p {protocol} -m {protocol} --dport {number}");
        if port.endpoints.is_empty() {
            for chain in ["FORWARD", "OUTPUT"] {
                line(
                    &mut refusals,
                    format_args!("-A {chain} {matcher} -j REJECT"),
                );
            }
            continue;
        }
        let chain = chain_name(&port.name, protocol);
        line(&mut chains, format_args!(":{chain} - [0:0]"));
        line(
            &mut rules,
            format_args!("-A BIREME-SERVICES {matcher} -j {chain}"),
        );
        let count = port.endpoints.len();
        for (index, endpoint) in port.endpoints.iter().enumerate() {
            let left = count - index;
            let draw = if left > 1 {
                #[allow(clippy::cast_precision_loss, reason = "a handful of endpoints")]
                let probability = 1.0 / left as f64;
                format!("-m statistic --mode random --probability {probability:.10} ")
            } else {
                String::new()
            };
            line(
                &mut rules,
                format_args!("-A {chain} -p {protocol} {draw}-j DNAT --to-destination {endpoint}"),
            );
        }
    }
    for pod in pods(ports) {
        line(
            &mut rules,
            format_args!("-A POSTROUTING -s {pod}/32 -d {pod}/32 -j SNAT --to-source {ADDRESS}"),
        );
    }
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :BIREME-SERVICES - [0:0]\n{chains}\
         -A PREROUTING -j BIREME-SERVICES\n-A OUTPUT -j BIREME-SERVICES\n{rules}COMMIT\n\
         *filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{refusals}COMMIT\n"
    )
}

/// The pods behind the services. One that is its own endpoint would answer itself directly and never see its connection
/// translated back, so what it sends to itself gets the node's address.
fn pods(ports: &[ServicePort]) -> BTreeSet<Ipv4Addr> {
    let endpoints = ports.iter().flat_map(|port| &port.endpoints);
    endpoints.map(|endpoint| *endpoint.ip()).collect()
}

fn line(text: &mut String, rule: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{rule}");
}

/// Chain names are at most 28 characters long, so they carry a digest of the port's name.
fn chain_name(name: &str, protocol: &str) -> String {
    let digest = Sha256::digest(format!("{name}/{protocol}"));
    let hex: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02X}"))
        .collect();
    format!("BIREME-SVC-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(endpoints: &[&str]) -> ServicePort {
        ServicePort {
            name: "default/reviews:http".into(),
            address: "10.96.0.20:9080".parse().unwrap(),
            protocol: "tcp",
            endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn endpoints_are_drawn_with_equal_chances() {
        let rules = build_rules(&[port(&["10.244.0.5:9080", "10.244.0.6:9080"])]);
        assert!(
            rules.contains("--probability 0.5000000000 -j DNAT --to-destination 10.244.0.5:9080")
        );
        assert!(rules.contains("-p tcp -j DNAT --to-destination 10.244.0.6:9080"));
        assert!(rules.contains(
            "-A POSTROUTING -s 10.244.0.6/32 -d 10.244.0.6/32 -j SNAT --to-source 10.244.0.1"
        ));
        assert!(!rules.contains("REJECT"));
    }

    #[test]
    fn a_service_without_endpoints_refuses() {
        let rules = build_rules(&[port(&[])]);
        assert!(rules.contains("-A FORWARD -d 10.96.0.20/32 -p tcp -m tcp --dport 9080 -j REJECT"));
        assert!(!rules.contains("DNAT"));
    }

    #[test]
    fn nft_draws_and_refuses_alike() {
        let refused = ServicePort {
            name: "default/ratings:http".into(),
            address: "10.96.0.21:9080".parse().unwrap(),
            endpoints: vec![],
            ..port(&[])
        };
        let rules = Firewall::Nft.build_rules(&[
            port(&["10.244.0.5:9080", "10.244.0.6:9080", "10.244.0.7:9080"]),
            refused,
        ]);
        for part in [
            "numgen random mod 3 0 meta l4proto tcp dnat to 10.244.0.5:9080\n\
             numgen random mod 2 0 meta l4proto tcp dnat to 10.244.0.6:9080\n\
             meta l4proto tcp dnat to 10.244.0.7:9080\n}\n",
            "chain BIREME-REFUSALS {\nip daddr 10.96.0.21 tcp dport 9080 reject\n}\n",
            "ip saddr 10.244.0.6 ip daddr 10.244.0.6 snat to 10.244.0.1\n",
        ] {
            assert!(rules.contains(part), "{part} is missing in\n{rules}");
        }
    }
}
