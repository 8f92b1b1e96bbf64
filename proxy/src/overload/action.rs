//! Overload actions: what is done about it, and from which pressure on.

use crate::{stat_group, stats::Scope};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

stat_group! {
    /// `overload.<action>.…`
    pub(crate) struct ActionStats { active: Gauge, scale_percent: Gauge }
}

stat_group! {
    /// `overload.<load shed point>.…`
    pub(crate) struct ShedStats { scale_percent: Gauge, shed_load_count: Counter }
}

/// What an action or a load shed point tells of itself.
enum Stats {
    Action(Arc<ActionStats>),
    Shed(Arc<ShedStats>),
}

/// What can be done about overload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Requests are answered with 503.
    StopAcceptingRequests,
    /// HTTP connections end after their response.
    DisableHttpKeepalive,
    /// Listeners leave connections in the queue.
    StopAcceptingConnections,
    /// Listeners close new connections at once.
    RejectIncomingConnections,
    /// Free memory goes back to the system. The allocator does that by itself; the action is only shown.
    ShrinkHeap,
    /// Time limits are shorter.
    ReduceTimeouts,
    /// Streams that hold much are reset.
    ResetStreams,
    /// Load shed point: a connection that was just accepted is closed.
    ShedAccept,
    /// Load shed point: a request whose headers have come is answered with 503.
    ShedDecodeHeaders,
    /// Load shed point: a request that is about to go upstream is answered with 503.
    ShedFilterCheck,
    /// Load shed point: a connection whose client says its first word is closed.
    ShedCodec,
    /// Load shed point: a request that comes by HTTP/1 is answered with 500 and ends its connection.
    ShedHttp1,
    /// Load shed point: a client that sends something by HTTP/2 is told to go.
    ShedHttp2,
    /// Load shed point: the same, and its connection is closed.
    ShedHttp2Close,
    /// Load shed point: no upstream connection is made.
    ShedPool,
    /// Load shed point: a TCP connection is closed before it has an upstream.
    ShedTcpConnect,
    /// Load shed point: a TCP connection whose client sends something is closed.
    ShedTcpData,
}

const NAMES: &[(Action, &str)] = &[
    (
        Action::StopAcceptingRequests,
        "envoy.overload_actions.stop_accepting_requests",
    ),
    (
        Action::DisableHttpKeepalive,
        "envoy.overload_actions.disable_http_keepalive",
    ),
    (
        Action::StopAcceptingConnections,
        "envoy.overload_actions.stop_accepting_connections",
    ),
    (
        Action::RejectIncomingConnections,
        "envoy.overload_actions.reject_incoming_connections",
    ),
    (Action::ShrinkHeap, "envoy.overload_actions.shrink_heap"),
    (
        Action::ReduceTimeouts,
        "envoy.overload_actions.reduce_timeouts",
    ),
    (
        Action::ResetStreams,
        "envoy.overload_actions.reset_high_memory_stream",
    ),
    (
        Action::ShedAccept,
        "envoy.load_shed_points.tcp_listener_accept",
    ),
    (
        Action::ShedDecodeHeaders,
        "envoy.load_shed_points.http_connection_manager_decode_headers",
    ),
    (
        Action::ShedFilterCheck,
        "envoy.load_shed_points.http_downstream_filter_check",
    ),
    (
        Action::ShedCodec,
        "envoy.load_shed_points.hcm_ondata_creating_codec",
    ),
    (
        Action::ShedHttp1,
        "envoy.load_shed_points.http1_server_abort_dispatch",
    ),
    (
        Action::ShedHttp2,
        "envoy.load_shed_points.http2_server_go_away_on_dispatch",
    ),
    (
        Action::ShedHttp2Close,
        "envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch",
    ),
    (
        Action::ShedPool,
        "envoy.load_shed_points.connection_pool_new_connection",
    ),
    (
        Action::ShedTcpConnect,
        "envoy.load_shed_points.tcp_proxy_upstream_connect",
    ),
    (
        Action::ShedTcpData,
        "envoy.load_shed_points.tcp_proxy_on_data",
    ),
];

/// From which pressure of a resource on an action is in force, and how far.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trigger {
    /// Fully from this pressure on.
    Threshold(f64),
    /// More and more from the first to the second.
    Scaled(f64, f64),
}

/// An action with its triggers by resource.
pub(super) struct ActionState {
    pub(super) action: Action,
    triggers: HashMap<String, Trigger>,
    /// What each resource asks for; the highest counts.
    wanted: Mutex<HashMap<String, f64>>,
    /// In millionths.
    value: AtomicU32,
    stats: Stats,
}

const MILLION: f64 = 1e6;

impl Action {
    /// The action of that name.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(action, _)| *action)
    }

    /// Envoy's name.
    pub(crate) fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(action, _)| *action == self)
            .map_or("", |(_, name)| name)
    }

    /// Whether it is one of Envoy's load shed points.
    pub(super) fn is_load_shed_point(self) -> bool {
        self.name().starts_with("envoy.load_shed_points.")
    }
}

impl Trigger {
    fn value(&self, pressure: f64) -> f64 {
        match self {
            Self::Threshold(threshold) => f64::from(u8::from(pressure >= *threshold)),
            Self::Scaled(begin, full) if *full > *begin => {
                ((pressure - begin) / (full - begin)).clamp(0.0, 1.0)
            }
            Self::Scaled(begin, _) => f64::from(u8::from(pressure > *begin)),
        }
    }
}

impl ActionState {
    pub(super) fn new(action: Action, triggers: HashMap<String, Trigger>, scope: &Scope) -> Self {
        Self {
            action,
            triggers,
            wanted: Mutex::default(),
            value: AtomicU32::new(0),
            stats: if action.is_load_shed_point() {
                Stats::Shed(scope.scope(action.name()).group())
            } else {
                Stats::Action(scope.scope(action.name()).group())
            },
        }
    }

    /// A resource has a new pressure; says whether that changes anything.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between nought and a million"
    )]
    pub(super) fn update(&self, resource: &str, pressure: f64) -> bool {
        let Some(trigger) = self.triggers.get(resource) else {
            return false;
        };
        let mut wanted = self.wanted.lock();
        wanted.insert(resource.to_owned(), trigger.value(pressure));
        let value = wanted.values().copied().fold(0.0, f64::max);
        let millionths = (value * MILLION) as u32;
        match &self.stats {
            Stats::Action(stats) => {
                stats.active.set(u64::from(value >= 1.0));
                stats.scale_percent.set(super::percent(value));
            }
            Stats::Shed(stats) => stats.scale_percent.set(super::percent(value)),
        }
        self.value.swap(millionths, Relaxed) != millionths
    }

    /// How far it is in force, 0 to 1.
    pub(super) fn value(&self) -> f64 {
        f64::from(self.value.load(Relaxed)) / MILLION
    }

    /// Whether it concerns this piece of work.
    pub(super) fn is_active(&self, random: impl FnOnce() -> u64) -> bool {
        let is_active = match self.value.load(Relaxed) {
            0 => false,
            1_000_000.. => true,
            some => random() % 1_000_000 < u64::from(some),
        };
        if let Stats::Shed(stats) = &self.stats
            && is_active
        {
            stats.shed_load_count.inc();
        }
        is_active
    }
}
