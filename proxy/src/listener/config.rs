//! A listener as configured: the checked form of `envoy.config.listener.v3.Listener`.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use super::{
    Direction,
    options::{RawOption, SocketOptions},
};
use crate::{
    access_log::AccessLogs,
    config::{ExtensionSlots, RouteSlots, UsedSlots},
    filter_chain::{FilterChain, matcher::FilterChains},
    invalid::{At as _, Invalid, try_all},
    listener_filter::{self, ListenerFilter},
    network::FactoryContext,
    server::ServerContext,
    stats::Scope,
    transport::{SecretSlot, SecretSlots},
    wire::{AnyAddress, duration_or},
};
use proto::envoy::config::{
    core::v3::{
        Address, Metadata, SocketOption, TrafficDirection, address::Address as AddressKind,
    },
    listener::v3::{
        AdditionalAddress, FilterChain as WireChain, Listener as Wire,
        listener::{DrainType, connection_balance_config::BalanceType},
    },
};
use std::{sync::Arc, time::Duration};

/// What Envoy buffers for a connection unless it is told otherwise.
const BUFFER_LIMIT: u32 = 1 << 20;

/// A checked listener.
pub(crate) struct ListenerConfig {
    /// The message it came from.
    pub(crate) wire: Wire,
    /// Its name.
    pub(crate) name: Arc<str>,
    /// Where it listens.
    pub(crate) address: AnyAddress,
    /// Where else it listens, with the settings of those sockets.
    pub(crate) more: Vec<(AnyAddress, SocketOptions)>,
    /// Whether it has sockets of its own; if not, connections come from a listener with `use_original_dst`.
    pub(crate) is_bound: bool,
    /// Whether connections go on to the listener of their original destination.
    pub(crate) hands_over: bool,
    /// Which way its traffic goes.
    pub(crate) direction: Direction,
    /// What filters and logs may read of it.
    pub(crate) metadata: Option<Arc<Metadata>>,
    /// What looks at the first bytes.
    pub(crate) filters: Vec<ListenerFilter>,
    /// Patience for that; zero for ever.
    pub(crate) filters_timeout: Duration,
    /// Whether a connection goes on when that patience ends.
    pub(crate) continues_on_timeout: bool,
    /// Its chains.
    pub(crate) chains: FilterChains,
    /// Log of connections.
    pub(crate) access_logs: AccessLogs,
    /// Where its statistics are.
    pub(crate) scope: Scope,
    /// Socket settings.
    pub(crate) socket: SocketOptions,
    /// Whether connections are spread evenly over the workers.
    pub(crate) is_balanced: bool,
    /// The most that is buffered for a connection, each way.
    pub(crate) buffer_limit: u32,
    /// So many connections are accepted before others have their turn.
    pub(crate) accepts_in_a_row: u32,
    /// Whether connections find their end when health checks are made to fail.
    pub(crate) drains_when_unhealthy: bool,
    /// Whether the process's cap on connections does not count here.
    pub(crate) ignores_global_limit: bool,
    /// Whether the overload manager has no say here.
    pub(crate) bypasses_overload: bool,
}

/// What is needed to build listeners.
pub(crate) struct ListenerContext<'a> {
    pub(crate) server: &'a Arc<ServerContext>,
    pub(crate) routes: &'a Arc<RouteSlots>,
    pub(crate) extensions: &'a Arc<ExtensionSlots>,
    /// Filled with the slots that the listener's filters use.
    pub(crate) used: &'a UsedSlots,
    pub(crate) secrets: &'a SecretSlots,
}

impl ListenerConfig {
    /// Checks `wire`; chains that `before` has in the same form are taken over, so that their connections stay.
    pub(crate) fn new(
        wire: Wire,
        before: Option<&ListenerConfig>,
        context: &ListenerContext<'_>,
    ) -> Result<Self, Invalid> {
        refuse(&wire)?;
        let (address, socket) = address_and_socket(&wire)?;
        let more = try_all(
            "additional_addresses",
            &wire.additional_addresses,
            |another| additional(another, &socket),
        )?;
        let direction = direction(&wire);
        let name = if wire.name.is_empty() {
            address.to_string()
        } else {
            wire.name.clone()
        };
        let v1 = wire.deprecated_v1.as_ref();
        let hands_over = wire.use_original_dst.unwrap_or(false);
        let mut filters = try_all("listener_filters", &wire.listener_filters, |filter| {
            listener_filter::build(filter, context)
        })?;
        if hands_over && !filters.iter().any(ListenerFilter::is_original_dst) {
            filters.insert(0, ListenerFilter::original_dst());
        }
        let scope = stat_scope(&wire, &address, &context.server.stats);
        let chains = chains(&wire, before, context, &scope)?;
        Ok(Self {
            name: name.into(),
            scope,
            is_balanced: is_balanced(&wire)?,
            buffer_limit: wire
                .per_connection_buffer_limit_bytes
                .unwrap_or(BUFFER_LIMIT),
            accepts_in_a_row: match wire.max_connections_to_accept_per_socket_event {
                Some(0) => {
                    return Err(Invalid::new("it must be greater than 0")
                        .at("max_connections_to_accept_per_socket_event"));
                }
                limit => limit.unwrap_or(u32::MAX),
            },
            drains_when_unhealthy: wire.drain_type() == DrainType::Default,
            ignores_global_limit: wire.ignore_global_conn_limit,
            bypasses_overload: wire.bypass_overload_manager,
            is_bound: wire.bind_to_port.unwrap_or(true)
                && v1.and_then(|v1| v1.bind_to_port).unwrap_or(true),
            filters,
            filters_timeout: duration_or(
                wire.listener_filters_timeout.as_ref(),
                Duration::from_secs(15),
                "listener_filters_timeout",
            )?,
            continues_on_timeout: wire.continue_on_listener_filters_timeout,
            chains,
            access_logs: AccessLogs::try_new(&wire.access_log, context.server).at("access_log")?,
            address,
            more,
            hands_over,
            direction,
            metadata: wire.metadata.clone().map(Arc::new),
            socket,
            wire,
        })
    }

    /// Every address, with the settings of its sockets.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&AnyAddress, &SocketOptions)> {
        let more = self.more.iter().map(|(address, socket)| (address, socket));
        std::iter::once((&self.address, &self.socket)).chain(more)
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        self.chains.iter().flat_map(|chain| chain.slots()).collect()
    }
}

fn direction(wire: &Wire) -> Direction {
    match wire.traffic_direction() {
        TrafficDirection::Unspecified => Direction::Unspecified,
        TrafficDirection::Inbound => Direction::Inbound,
        TrafficDirection::Outbound => Direction::Outbound,
    }
}

fn address_and_socket(wire: &Wire) -> Result<(AnyAddress, SocketOptions), Invalid> {
    let socket = SocketOptions {
        backlog: wire
            .tcp_backlog_size
            .map_or(1024, |size| i32::try_from(size).unwrap_or(i32::MAX)),
        is_transparent: wire.transparent.unwrap_or(false),
        is_freebind: wire.freebind.unwrap_or(false),
        is_port_shared: wire.enable_reuse_port.unwrap_or(true),
        keepalive: wire.tcp_keepalive,
        raw: raw_options(&wire.socket_options)?,
        ..SocketOptions::default()
    };
    bind_address(wire.address.as_ref(), socket)
}

/// Another address, with the settings of the first one's sockets where it does not say otherwise.
fn additional(
    wire: &AdditionalAddress,
    first: &SocketOptions,
) -> Result<(AnyAddress, SocketOptions), Invalid> {
    let mut socket = first.clone();
    if let Some(options) = &wire.socket_options {
        socket.raw = raw_options(&options.socket_options).at("socket_options")?;
    }
    if wire.tcp_keepalive.is_some() {
        socket.keepalive = wire.tcp_keepalive;
    }
    bind_address(wire.address.as_ref(), socket)
}

fn raw_options(wire: &[SocketOption]) -> Result<Vec<RawOption>, Invalid> {
    try_all("socket_options", wire, RawOption::try_from)
}

fn bind_address(
    address: Option<&Address>,
    mut socket: SocketOptions,
) -> Result<(AnyAddress, SocketOptions), Invalid> {
    let address = address.ok_or_else(|| Invalid::new("an address is needed").at("address"))?;
    match &address.address {
        Some(AddressKind::SocketAddress(address)) => socket.is_v4_compatible = address.ipv4_compat,
        Some(AddressKind::Pipe(pipe)) => socket.mode = pipe.mode,
        _ => {}
    }
    match AnyAddress::try_from(address).at("address")? {
        AnyAddress::Name(name, _) => Err(Invalid::new(format!("malformed IP address: {name}"))
            .at("address.socket_address.address")),
        address => Ok((address, socket)),
    }
}

fn chains(
    wire: &Wire,
    before: Option<&ListenerConfig>,
    context: &ListenerContext<'_>,
    scope: &Scope,
) -> Result<FilterChains, Invalid> {
    let factory = FactoryContext {
        server: context.server,
        routes: context.routes,
        extensions: context.extensions,
        used: context.used,
        stats: &context.server.stats,
        listener: scope,
        direction: direction(wire),
    };
    let kept = |wire: &WireChain| {
        let same = |chain: &&Arc<FilterChain>| chain.wire == *wire;
        before.and_then(|before| before.chains.iter().find(same).cloned())
    };
    let chain = |wire: &WireChain| match kept(wire) {
        Some(chain) => Ok(chain),
        None => FilterChain::new(wire, context.secrets, &factory).map(Arc::new),
    };
    let chains = try_all("filter_chains", &wire.filter_chains, chain)?;
    let default = wire.default_filter_chain.as_ref().map(chain).transpose();
    let default = default.at("default_filter_chain")?;
    if chains.is_empty() && default.is_none() {
        return Err(Invalid::new("no filter chains specified").at("filter_chains"));
    }
    FilterChains::new(chains, default)
}

fn refuse(wire: &Wire) -> Result<(), Invalid> {
    for (is_set, field) in [
        (wire.udp_listener_config.is_some(), "udp_listener_config"),
        (wire.api_listener.is_some(), "api_listener"),
        (wire.listener_specifier.is_some(), "internal_listener"),
        (wire.filter_chain_matcher.is_some(), "filter_chain_matcher"),
        (wire.fcds_config.is_some(), "fcds_config"),
        (wire.enable_mptcp, "enable_mptcp"),
        (
            wire.per_connection_buffer_high_watermark_timeout.is_some(),
            "per_connection_buffer_high_watermark_timeout",
        ),
        (wire.stats_matcher.is_some(), "stats_matcher"),
        (
            wire.tcp_fast_open_queue_length.is_some(),
            "tcp_fast_open_queue_length",
        ),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    Ok(())
}

fn is_balanced(wire: &Wire) -> Result<bool, Invalid> {
    match wire
        .connection_balance_config
        .as_ref()
        .map(|config| &config.balance_type)
    {
        None => Ok(false),
        Some(Some(BalanceType::ExactBalance(_))) => Ok(true),
        Some(_) => {
            Err(Invalid::unsupported("anything but exact_balance").at("connection_balance_config"))
        }
    }
}

fn stat_scope(wire: &Wire, address: &AnyAddress, root: &Scope) -> Scope {
    let name = if wire.stat_prefix.is_empty() {
        address.to_string()
    } else {
        wire.stat_prefix.clone()
    };
    root.tagged("listener", "envoy.listener_address", &name)
}
