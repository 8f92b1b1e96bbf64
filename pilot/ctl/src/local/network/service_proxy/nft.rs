//! The same rules as `nft -f` reads them, in a table of our own.

use super::{ADDRESS, ServicePort, chain_name, line, pods};

/// Where the kernel enters: a chain, what makes it so, and where it leads.
const HOOKS: &[(&str, &str, &str)] = &[
    (
        "PREROUTING",
        "type nat hook prerouting priority -100",
        "BIREME-SERVICES",
    ),
    (
        "OUTPUT",
        "type nat hook output priority -100",
        "BIREME-SERVICES",
    ),
    (
        "FORWARD",
        "type filter hook forward priority 0",
        "BIREME-REFUSALS",
    ),
    (
        "REFUSE-OUTPUT",
        "type filter hook output priority 0",
        "BIREME-REFUSALS",
    ),
];

/// The input of `nft -f`. Pure, and the same for the same input.
pub(super) fn build_rules(ports: &[ServicePort]) -> String {
    let mut chains = String::new();
    let mut services = String::new();
    let mut refusals = String::new();
    let mut sources = String::new();
    for port in ports {
        let (ip, number, protocol) = (port.address.ip(), port.address.port(), port.protocol);
        let matcher = format!("ip daddr {ip} {protocol} dport {number}");
        if port.endpoints.is_empty() {
            line(&mut refusals, format_args!("{matcher} reject"));
            continue;
        }
        let chain = chain_name(&port.name, protocol);
        line(&mut services, format_args!("{matcher} jump {chain}"));
        line(&mut chains, format_args!("chain {chain} {{"));
        for (index, endpoint) in port.endpoints.iter().enumerate() {
            let left = port.endpoints.len() - index;
            let draw = if left > 1 {
                format!("numgen random mod {left} 0 ")
            } else {
                String::new()
            };
            line(
                &mut chains,
                format_args!("{draw}meta l4proto {protocol} dnat to {endpoint}"),
            );
        }
        line(&mut chains, format_args!("}}"));
    }
    for pod in pods(ports) {
        line(
            &mut sources,
            format_args!("ip saddr {pod} ip daddr {pod} snat to {ADDRESS}"),
        );
    }
    let mut hooks = String::new();
    for (chain, hook, target) in HOOKS {
        line(
            &mut hooks,
            format_args!("chain {chain} {{\n{hook};\njump {target}\n}}"),
        );
    }
    format!(
        "add table ip bireme\ndelete table ip bireme\ntable ip bireme {{\n{chains}\
         chain BIREME-SERVICES {{\n{services}}}\nchain BIREME-REFUSALS {{\n{refusals}}}\n{hooks}\
         chain POSTROUTING {{\ntype nat hook postrouting priority 100;\n{sources}}}\n}}\n"
    )
}
