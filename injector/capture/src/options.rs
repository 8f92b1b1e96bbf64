//! What to intercept: the flags of `istio-iptables`, and their values checked.

use clap::{Parser, ValueEnum};
use ipnet::IpNet;

/// Programs the kernel so that a pod's traffic passes through its proxy.
#[derive(Clone, Debug, Parser)]
#[command(name = "istio-iptables", version)]
pub struct Options {
    /// Port of the proxy that takes outbound traffic.
    #[arg(
        short = 'p',
        long = "envoy-port",
        env = "ENVOY_PORT",
        default_value_t = 15001
    )]
    pub outbound_port: u16,
    /// Port of the proxy that takes inbound traffic.
    #[arg(
        short = 'z',
        long = "inbound-capture-port",
        env = "INBOUND_CAPTURE_PORT",
        default_value_t = 15006
    )]
    pub inbound_port: u16,
    /// Users whose traffic is not intercepted: the proxy's.
    #[arg(
        short = 'u',
        long = "proxy-uid",
        value_delimiter = ',',
        default_value = "1337"
    )]
    pub proxy_uids: Vec<u32>,
    /// Groups whose traffic is not intercepted; the same numbers as the users if not given.
    #[arg(short = 'g', long = "proxy-gid", value_delimiter = ',')]
    pub proxy_gids: Vec<u32>,
    /// How inbound traffic reaches the proxy.
    #[arg(
        short = 'm',
        long = "istio-inbound-interception-mode",
        env = "ISTIO_INBOUND_INTERCEPTION_MODE",
        value_enum,
        ignore_case = true,
        default_value = "REDIRECT"
    )]
    pub mode: Mode,
    /// Inbound ports to intercept: a list, `*` for all, empty for none.
    #[arg(short = 'b', long = "istio-inbound-ports", env = "ISTIO_INBOUND_PORTS", default_value = "", value_parser = parse_ports)]
    pub inbound_ports: Selection<u16>,
    /// Inbound ports to leave alone when all are intercepted.
    #[arg(short = 'd', long = "istio-local-exclude-ports", env = "ISTIO_LOCAL_EXCLUDE_PORTS", default_value = "", value_parser = parse_port_list)]
    pub excluded_inbound_ports: List<u16>,
    /// Outbound destinations to intercept: CIDR blocks, `*` for all, empty for none.
    #[arg(short = 'i', long = "istio-service-cidr", env = "ISTIO_SERVICE_CIDR", default_value = "", value_parser = parse_blocks)]
    pub outbound_blocks: Selection<IpNet>,
    /// Outbound destinations to leave alone.
    #[arg(short = 'x', long = "istio-service-exclude-cidr", env = "ISTIO_SERVICE_EXCLUDE_CIDR", default_value = "", value_parser = parse_block_list)]
    pub excluded_outbound_blocks: List<IpNet>,
    /// Outbound ports to leave alone.
    #[arg(short = 'o', long = "istio-local-outbound-ports-exclude", env = "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", default_value = "", value_parser = parse_port_list)]
    pub excluded_outbound_ports: List<u16>,
    /// Interfaces of virtual machines in the pod: what comes in by them counts as outbound.
    #[arg(short = 'k', long = "kube-virt-interfaces", default_value = "", value_parser = parse_interface_list)]
    pub kubevirt_interfaces: List<String>,
    /// Send DNS questions to the agent, which knows the mesh's names.
    #[arg(long = "redirect-dns", env = "ISTIO_META_DNS_CAPTURE", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub redirect_dns: bool,
    /// Port of the agent's name server.
    #[arg(long = "dns-port", default_value_t = 15053)]
    pub dns_port: u16,
    /// Print the rules instead of programming them.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Remove the rules instead of adding them.
    #[arg(long)]
    pub clean: bool,
    /// Leave the rules alone: somebody else programs them.
    #[arg(long)]
    pub skip_rule_apply: bool,
    /// Try whether traffic is intercepted; the exit code is 126 if it is not.
    #[arg(long)]
    pub run_validation: bool,
    /// Port that is tried.
    #[arg(long = "iptables-probe-port", default_value_t = 15002)]
    pub probe_port: u16,
    /// Seconds to try for.
    #[arg(long, default_value_t = 5)]
    pub probe_timeout: u64,
}

/// How inbound traffic reaches the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Mode {
    /// Destination NAT; the proxy asks the kernel for the original destination.
    Redirect,
    /// Transparent proxying; both addresses are kept.
    Tproxy,
}

/// Which of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection<T> {
    /// Every one.
    All,
    /// These; none if empty.
    Only(Vec<T>),
}

/// A comma-separated list as one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

fn parse_ports(text: &str) -> Result<Selection<u16>, String> {
    parse_selection(text, parse_port)
}

fn parse_port_list(text: &str) -> Result<List<u16>, String> {
    parse_items(text, parse_port).map(List)
}

fn parse_blocks(text: &str) -> Result<Selection<IpNet>, String> {
    parse_selection(text, parse_block)
}

fn parse_block_list(text: &str) -> Result<List<IpNet>, String> {
    parse_items(text, parse_block).map(List)
}

fn parse_interface_list(text: &str) -> Result<List<String>, String> {
    parse_items(text, parse_interface).map(List)
}

fn parse_selection<T>(
    text: &str,
    item: fn(&str) -> Result<T, String>,
) -> Result<Selection<T>, String> {
    if text.trim() == "*" {
        Ok(Selection::All)
    } else {
        parse_items(text, item).map(Selection::Only)
    }
}

fn parse_items<T>(text: &str, item: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(item)
        .collect()
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!(
            "{text:?} is not a port; wanted 1 to 65535, separated by commas"
        )),
        Ok(port) => Ok(port),
    }
}

fn parse_interface(text: &str) -> Result<String, String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "-_.@".contains(letter);
    if (1..16).contains(&text.len()) && text.chars().all(is_part) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not an interface; wanted names such as net1, separated by commas"
        ))
    }
}

fn parse_block(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{text:?} is not an address block; wanted one such as 10.0.0.0/8"))
}
