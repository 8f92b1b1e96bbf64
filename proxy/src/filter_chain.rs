//! Filter chains: a transport and the network filters on it. Which chain serves a connection is [`matcher`]'s matter.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

pub(crate) mod matcher;

use crate::{
    invalid::{At as _, Invalid, try_all},
    network::{self, FactoryContext, Filter, NetworkFilter, TerminalFilter},
    transport::{DownstreamTransport, SecretSlot, SecretSlots},
    wire::duration_or,
};
use proto::envoy::config::listener::v3::{FilterChain as Wire, filter::ConfigType};
use proto_component::drain::{self, Drain, Trigger};
use std::{ptr, sync::Arc, time::Duration};

/// How long a transport may take to come up, unless the chain says otherwise.
const TRANSPORT_TIMEOUT: Duration = Duration::from_secs(15);

/// A checked filter chain, shared by its connections.
pub(crate) struct FilterChain {
    /// The message it came from: an update that leaves it as it is leaves its connections alone.
    pub(crate) wire: Wire,
    /// How connections are secured.
    pub(crate) transport: DownstreamTransport,
    /// Patience for the transport.
    pub(crate) transport_timeout: Duration,
    /// Filters that let connections pass.
    pub(crate) passing: Vec<Arc<dyn NetworkFilter>>,
    /// The filter that serves them.
    pub(crate) terminal: Arc<dyn TerminalFilter>,
    /// Signalled when the chain goes.
    pub(crate) drain: Drain,
    trigger: Trigger,
}

impl std::fmt::Debug for FilterChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilterChain")
            .field("name", &self.wire.name)
            .finish_non_exhaustive()
    }
}

impl FilterChain {
    /// Checks `wire` and builds its filters.
    pub(crate) fn new(
        wire: &Wire,
        secrets: &SecretSlots,
        context: &FactoryContext<'_>,
    ) -> Result<Self, Invalid> {
        if wire.use_proxy_proto == Some(true) {
            return Err(
                Invalid::new("use the listener filter proxy_protocol").at("use_proxy_proto")
            );
        }
        let last = wire.filters.last();
        let filters = try_all("filters", &wire.filters, |filter| {
            match &filter.config_type {
                Some(ConfigType::ConfigDiscovery(discovery)) => {
                    let is_last = last.is_some_and(|last| ptr::eq(last, filter));
                    network::discovered::subscribe(&filter.name, discovery, is_last, context)
                        .at("config_discovery")
                }
                Some(ConfigType::TypedConfig(any)) => {
                    network::build(&filter.name, Some(any), context).at("typed_config")
                }
                None => network::build(&filter.name, None, context),
            }
        })?;
        let mut passing = Vec::new();
        let mut terminal = None;
        for (index, filter) in filters.into_iter().enumerate() {
            if terminal.is_some() {
                return Err(Invalid::new("a terminal filter must be the last")
                    .at(format_args!("filters[{}]", index - 1)));
            }
            match filter {
                Filter::Passing(filter) => passing.push(filter),
                Filter::Terminal(filter) => terminal = Some(filter),
            }
        }
        let terminal = terminal
            .ok_or_else(|| Invalid::new("the last filter must be a terminal one").at("filters"))?;
        let (trigger, drain) = drain::channel();
        Ok(Self {
            transport: DownstreamTransport::build(wire.transport_socket.as_ref(), secrets)
                .at("transport_socket")?,
            transport_timeout: duration_or(
                wire.transport_socket_connect_timeout.as_ref(),
                TRANSPORT_TIMEOUT,
                "transport_socket_connect_timeout",
            )?,
            wire: wire.clone(),
            passing,
            terminal,
            drain,
            trigger,
        })
    }

    /// Its name; may be empty.
    pub(crate) fn name(&self) -> &str {
        &self.wire.name
    }

    /// Whether every filter has a configuration.
    pub(crate) fn is_configured(&self) -> bool {
        self.terminal.is_configured() && self.passing.iter().all(|filter| filter.is_configured())
    }

    /// The secrets it waits for.
    pub(crate) fn slots(&self) -> Vec<Arc<SecretSlot>> {
        match &self.transport {
            DownstreamTransport::Raw => Vec::new(),
            DownstreamTransport::Tls(context) => context.slots(),
        }
    }

    /// Tells its connections to find their end within `patience`.
    pub(crate) fn start_drain(&self, patience: Duration) {
        self.trigger.drain(patience);
    }
}
