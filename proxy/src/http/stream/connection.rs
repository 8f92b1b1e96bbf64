//! A downstream connection and a stream as filters see them: routes are selected here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::http::config::ConnectionManager;
use crate::http::filter::RouteConfig;
use crate::http::headers::RequestHeaders;
use crate::http::local_reply::LocalReply;
use crate::listener::ConnectionInfo;
use crate::overload::Action;
use crate::router::{
    ForwardAction, HostDiscovery, RouteKind, RouteTable, SelectedRoute, Selection, WorkerTable,
};
use crate::worker::Worker;

use super::{DownstreamConnection, Stream};

/// Envoy's `overload.premature_reset_total_stream_count`.
const PREMATURE_RESETS: u64 = 500;

impl DownstreamConnection {
    /// A connection that begins now.
    pub(crate) fn new(
        manager: Arc<ConnectionManager>,
        info: Rc<ConnectionInfo>,
        worker: Rc<Worker>,
    ) -> Rc<Self> {
        Rc::new(DownstreamConnection {
            manager,
            info,
            worker,
            active: Cell::new(0),
            total: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            filter_state: RefCell::default(),
            overrun: Notify::new(),
            ended: Cell::new(0),
            broken_off: Cell::new(0),
            table: RefCell::new(None),
        })
    }

    /// A stream of an HTTP/2 connection is over. As in Envoy, a client that has broken off half of the first
    /// [`PREMATURE_RESETS`] streams before it could have had an answer, or half of all after that, is cut off.
    pub(crate) fn stream_ended(&self, is_premature: bool) {
        self.ended.set(self.ended.get() + 1);
        if !is_premature {
            return;
        }
        self.broken_off.set(self.broken_off.get() + 1);
        if self.broken_off.get() >= self.ended.get().max(PREMATURE_RESETS) / 2 {
            self.overrun.notify_one();
        }
    }

    /// Refuses a request where the overload manager says so; the error is the answer.
    pub(super) fn admit(&self) -> Result<(), Box<LocalReply>> {
        let overload = &self.worker.server.overload;
        let is_shed = |action| overload.is_active(action, || self.worker.random());
        if !is_shed(Action::StopAcceptingRequests) && !is_shed(Action::ShedDecodeHeaders) {
            return Ok(());
        }
        self.manager.stats.downstream_rq_overload_close.inc();
        Err(overloaded())
    }

    /// The same when a request is about to go upstream.
    pub(crate) fn admit_upstream(&self) -> Result<(), Box<LocalReply>> {
        let overload = &self.worker.server.overload;
        if !overload.is_active(Action::ShedFilterCheck, || self.worker.random()) {
            return Ok(());
        }
        self.manager.stats.rq_overload_local_reply.inc();
        Err(overloaded())
    }

    /// Whether the connection is to be closed by a load shed point.
    pub(crate) fn sheds(&self, action: Action) -> bool {
        let is_shed = self.worker.sheds(action);
        if is_shed {
            self.info.is_shed.set(true);
        }
        is_shed
    }

    /// Whether the connection is to end because the process's health checks fail.
    pub(crate) fn is_unhealthy(&self) -> bool {
        self.info.drains_when_unhealthy && self.worker.server.fails_health_checks()
    }

    /// Whether an HTTP/1 connection is to end with this response: the process is drained, or the overload manager wants it.
    pub(super) fn refuses_keepalive(&self, protocol: Option<http::Version>) -> bool {
        if protocol != Some(http::Version::HTTP_2) && self.is_unhealthy() {
            self.manager.stats.downstream_cx_drain_close.inc();
            return true;
        }
        let overload = &self.worker.server.overload;
        let is_refused = protocol != Some(http::Version::HTTP_2)
            && overload.is_active(Action::DisableHttpKeepalive, || self.worker.random());
        if is_refused {
            let stats = &self.manager.stats;
            stats.downstream_cx_overload_disable_keepalive.inc();
        }
        is_refused
    }

    /// The route table of now, behind this connection's own counter.
    pub(super) fn route_table(&self) -> Option<WorkerTable> {
        let current = self.manager.route_table()?;
        let mut cached = self.table.borrow_mut();
        match cached
            .as_ref()
            .filter(|cached| Arc::ptr_eq(cached, &current))
        {
            Some(cached) => Some(cached.clone()),
            None => {
                let table = Rc::new(current);
                *cached = Some(table.clone());
                Some(table)
            }
        }
    }
}

impl Stream {
    /// The selected route; selected now if the cache was cleared.
    pub(crate) fn route(&self) -> Option<&SelectedRoute> {
        self.info.route.as_ref()
    }

    /// A filter changed what routes match on: the route is selected again before the next filter.
    pub(crate) fn clear_route(&mut self) {
        self.info.route = None;
        self.is_route_known = false;
    }

    /// The route of another request, which is not selected by that.
    pub(crate) fn look_up(&self, headers: &RequestHeaders) -> Option<SelectedRoute> {
        let table = self.connection.route_table()?;
        match RouteTable::select(&table, headers, &self.info) {
            Selection::Route(route) => Some(route),
            Selection::None | Selection::NeedsTls => None,
        }
    }

    /// Where the virtual host of this request may be asked for.
    pub(crate) fn host_discovery(&self) -> Option<HostDiscovery> {
        self.connection.route_table()?.discovery.clone()
    }

    /// Whether the table of now has anything to say of a request.
    pub(crate) fn is_routed(&self, headers: &RequestHeaders) -> bool {
        let table = self.connection.route_table();
        table.is_some_and(|table| {
            !matches!(
                RouteTable::select(&table, headers, &self.info),
                Selection::None
            )
        })
    }

    /// The most specific configuration of a filter on the selected route.
    pub(crate) fn route_config<T: 'static>(&self, filter: &str) -> Option<&T> {
        match self.route()?.filter_config(filter)? {
            RouteConfig::Value(value) => value.downcast_ref(),
            RouteConfig::Disabled | RouteConfig::Enabled => None,
        }
    }

    /// The same, by the name in the configuration or the filter's canonical name.
    pub(crate) fn config_of<T: 'static>(&self, name: &str, canonical: &str) -> Option<&T> {
        self.route_config(name)
            .or_else(|| self.route_config(canonical))
    }

    /// The configurations of a filter at all levels of the route, the most specific first.
    pub(crate) fn configs_of<'a, T: 'static>(
        &'a self,
        name: &'a str,
        canonical: &'a str,
    ) -> impl Iterator<Item = &'a T> {
        let of = |filter: &'a str| {
            let configs = self.route().map(|route| route.filter_configs(filter));
            configs.into_iter().flatten()
        };
        let canonical = (canonical != name).then(|| of(canonical));
        of(name)
            .chain(canonical.into_iter().flatten())
            .filter_map(|config| match config {
                RouteConfig::Value(value) => value.downcast_ref(),
                RouteConfig::Disabled | RouteConfig::Enabled => None,
            })
    }

    /// The worker.
    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.connection.worker
    }

    /// False when the request must go to `https` first.
    pub(super) fn select_route(&mut self, headers: &RequestHeaders) -> bool {
        if self.is_route_known {
            return true;
        }
        self.is_route_known = true;
        let Some(table) = self.connection.route_table() else {
            return true;
        };
        match RouteTable::select(&table, headers, &self.info) {
            Selection::Route(route) => {
                let cluster = route.cluster();
                self.info.upstream.cluster =
                    cluster.and_then(|name| self.worker().clusters.get(name));
                self.info.route = Some(route);
            }
            Selection::None => {}
            Selection::NeedsTls => return false,
        }
        true
    }
}

/// The idle limit of a stream: its route's, else the connection manager's.
pub(crate) fn idle_timeout(stream: &Stream) -> Option<Duration> {
    let otherwise = stream.connection.manager.timeouts.stream_idle;
    limit_of_route(stream, ForwardAction::idle_timeout, otherwise)
}

/// How long a client may take for the rest of a response whose end has come: its route's limit, else the connection manager's.
pub(super) fn flush_timeout(stream: &Stream) -> Option<Duration> {
    // QUIRK: the route's idle timeout does not count, whatever Envoy's documentation says.
    let otherwise = stream.connection.manager.timeouts.stream_flush;
    limit_of_route(stream, ForwardAction::flush_timeout, otherwise)
}

/// What a route says of a limit, of which zero means none.
fn limit_of_route(
    stream: &Stream,
    of_action: fn(&ForwardAction) -> Option<Duration>,
    otherwise: Option<Duration>,
) -> Option<Duration> {
    let of_route = stream.route().and_then(|route| match &route.route().kind {
        RouteKind::Forward(action) => of_action(action),
        RouteKind::Redirect(_) | RouteKind::Direct(_) => None,
    });
    of_route.map_or(otherwise, |limit| (!limit.is_zero()).then_some(limit))
}

fn overloaded() -> Box<LocalReply> {
    let status = http::StatusCode::SERVICE_UNAVAILABLE;
    Box::new(LocalReply::new(status, "envoy overloaded", "overload"))
}
