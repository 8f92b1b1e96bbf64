//! Cluster addresses, the way kube-proxy does them: a chain for each port of a service that draws one of the ready
//! endpoints at random, and a refusal where there is none. The rules are built whole and restored in one transaction.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
};

use sha2::{Digest as _, Sha256};

use super::node::ADDRESS;

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

/// The input of `iptables-restore` for all tables that the node uses. Pure, and the same for the same input.
pub(crate) fn build_rules(ports: &[ServicePort]) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    let mut refusals = String::new();
    let mut pods: BTreeSet<Ipv4Addr> = BTreeSet::new();
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
            pods.insert(*endpoint.ip());
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
    // A pod that is its own endpoint would answer itself directly and never see its connection translated back.
    for pod in pods {
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
}
