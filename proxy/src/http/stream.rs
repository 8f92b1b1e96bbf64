//! The engine: one HTTP stream from its head to its access log, the same for HTTP/1 and HTTP/2.
//!
//! [`serve`] runs head → filters → route → response head; the rest of the response streams through [`ResponseBody`]. Both,
//! and the request's body, share the [`StreamCell`]; when the last of them lets go of it the stream is over, is counted and
//! logged: a client that goes away drops them all.

mod response_body;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use crate::access_log::FormatContext;
use crate::listener::ConnectionInfo;
use crate::router::{RouteKind, RouteTable, SelectedRoute, Selection, WorkerTable};
use crate::stream_info::{ResponseFlag, StreamInfo};
use crate::worker::Worker;

use super::body::RequestSource;
use super::config::ConnectionManager;
use super::filter::router::{self, Forwarded};
use super::filter::{FilterStatus, HttpFilter, Resume, RouteConfig, StreamEnd};
use super::headers::{RequestHeaders, ResponseHeaders, Scheme};
use super::local_reply::LocalReply;
use super::{conn_manager, upgrade};

pub(crate) use response_body::{Deadlines, ResponseBody};

/// One downstream HTTP connection.
pub(crate) struct DownstreamConnection {
    /// Its configuration.
    pub(crate) manager: Arc<ConnectionManager>,
    /// What is known about it.
    pub(crate) info: Rc<ConnectionInfo>,
    /// The worker it lives on.
    pub(crate) worker: Rc<Worker>,
    /// Streams that are open.
    pub(crate) active: Cell<usize>,
    /// Streams so far.
    pub(crate) total: Cell<u32>,
    /// When the last stream ended.
    pub(crate) idle_since: Cell<Instant>,
    table: RefCell<Option<WorkerTable>>,
}

/// A stream as filters see it.
pub(crate) struct Stream {
    /// The record of the stream.
    pub(crate) info: StreamInfo,
    /// Its connection.
    pub(crate) connection: Rc<DownstreamConnection>,
    is_route_known: bool,
}

/// The state of a stream, shared by all that work on it.
pub(crate) struct StreamCell {
    state: RefCell<StreamState>,
    last_activity: Cell<Instant>,
}

pub(crate) struct StreamState {
    pub(crate) stream: Stream,
    pub(crate) request: RequestHeaders,
    pub(crate) response: Option<ResponseHeaders>,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) filters: Vec<Box<dyn HttpFilter>>,
    pub(crate) sees_data: bool,
    is_complete: bool,
}

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
            table: RefCell::new(None),
        })
    }

    /// The route table of now, behind this connection's own counter.
    fn route_table(&self) -> Option<WorkerTable> {
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

    /// The most specific configuration of a filter on the selected route.
    pub(crate) fn route_config<T: 'static>(&self, filter: &str) -> Option<&T> {
        match self.route()?.filter_config(filter)? {
            RouteConfig::Value(value) => value.downcast_ref(),
            RouteConfig::Disabled | RouteConfig::Enabled => None,
        }
    }

    /// The worker.
    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.connection.worker
    }

    /// False when the request must go to `https` first.
    fn select_route(&mut self, headers: &RequestHeaders) -> bool {
        if self.is_route_known {
            return true;
        }
        self.is_route_known = true;
        let Some(table) = self.connection.route_table() else {
            return true;
        };
        match RouteTable::select(&table, headers, &self.info) {
            Selection::Route(route) => {
                let cluster = route
                    .cluster()
                    .filter(|name| self.worker().clusters.get(name).is_some());
                self.info.upstream.cluster = cluster.cloned();
                self.info.route = Some(route);
            }
            Selection::None => {}
            Selection::NeedsTls => return false,
        }
        true
    }
}

impl StreamCell {
    fn new(
        connection: &Rc<DownstreamConnection>,
        request: RequestHeaders,
        version: Version,
    ) -> Rc<Self> {
        let stats = &connection.manager.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.inc();
        if version == Version::HTTP_2 {
            stats.downstream_rq_http2_total.inc();
        } else {
            stats.downstream_rq_http1_total.inc();
        }
        connection.active.set(connection.active.get() + 1);
        connection.total.set(connection.total.get() + 1);
        let mut info = StreamInfo::new(connection.info.clone(), Some(version));
        info.metadata = connection.info.metadata.clone();
        let start = info.start;
        Rc::new(StreamCell {
            state: RefCell::new(StreamState {
                stream: Stream {
                    info,
                    connection: connection.clone(),
                    is_route_known: false,
                },
                request,
                response: None,
                trailers: None,
                filters: Vec::new(),
                sees_data: false,
                is_complete: false,
            }),
            last_activity: Cell::new(start),
        })
    }

    /// Works on the state; never across an `await`.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut StreamState) -> T) -> T {
        work(&mut self.state.borrow_mut())
    }

    /// A byte went one way or the other.
    pub(crate) fn touch(&self) {
        self.last_activity.set(Instant::now());
    }

    /// When the last byte went one way or the other.
    pub(crate) fn last_activity(&self) -> Instant {
        self.last_activity.get()
    }

    /// A piece of the request's body came: counted, shown to the filters.
    pub(crate) fn received(&self, mut data: Bytes, sees_data: bool) -> Bytes {
        self.touch();
        let mut state = self.state.borrow_mut();
        let StreamState {
            stream, filters, ..
        } = &mut *state;
        stream.info.bytes_received += data.len() as u64;
        if sees_data {
            for filter in filters.iter_mut().filter(|filter| filter.sees_data()) {
                data = filter.decode_data(data, stream);
            }
        }
        data
    }

    /// The request's last byte came.
    pub(crate) fn request_ended(&self) {
        self.touch();
        let now = self.last_activity.get();
        self.state.borrow_mut().stream.info.request_end = Some(now);
    }

    /// Everything was sent, or ended in a way that is known.
    pub(crate) fn complete(&self) {
        self.state.borrow_mut().is_complete = true;
    }

    /// Resolves with the reply to give when one of the connection manager's limits is reached before the response.
    async fn expired(&self, source: &RequestSource) -> LocalReply {
        let (timeouts, start) = self.with(|state| {
            (
                state.stream.connection.manager.timeouts,
                state.stream.info.start,
            )
        });
        loop {
            // The route may change while filters run.
            let idle_limit = self.with(|state| idle_timeout(&state.stream));
            let request = timeouts
                .request
                .filter(|_| !source.is_read())
                .map(|limit| start + limit);
            let whole = timeouts.max_stream.map(|limit| start + limit);
            let idle = idle_limit.map(|limit| self.last_activity() + limit);
            let Some(next) = [request, whole, idle].into_iter().flatten().min() else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(next).await;
            let now = Instant::now();
            let stats = self.with(|state| state.stream.connection.manager.stats.clone());
            if whole.is_some_and(|at| at <= now) {
                stats.downstream_rq_max_duration_reached.inc();
                return LocalReply::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "downstream duration timeout",
                    "max_duration_timeout",
                )
                .flag(ResponseFlag::DurationTimeout);
            }
            if request.is_some_and(|at| at <= now) && !source.is_read() {
                stats.downstream_rq_timeout.inc();
                return LocalReply::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "request timeout",
                    "request_overall_timeout",
                )
                .closing();
            }
            if idle_limit.is_some_and(|limit| self.last_activity() + limit <= now) {
                stats.downstream_rq_idle_timeout.inc();
                let reply = LocalReply::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "stream timeout",
                    "stream_idle_timeout",
                );
                return reply.flag(ResponseFlag::StreamIdleTimeout).closing();
            }
        }
    }
}

/// The idle limit of a stream: its route's, else the connection manager's.
pub(crate) fn idle_timeout(stream: &Stream) -> Option<Duration> {
    let of_route = stream.route().and_then(|route| match &route.route().kind {
        RouteKind::Forward(action) => action.idle_timeout(),
        RouteKind::Redirect(_) | RouteKind::Direct(_) => None,
    });
    match of_route {
        Some(limit) => (!limit.is_zero()).then_some(limit),
        None => stream.connection.manager.timeouts.stream_idle,
    }
}

/// Serves one request of a connection.
pub(crate) async fn serve(
    connection: Rc<DownstreamConnection>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let downstream_upgrade = upgrade::wanted(&mut request);
    let version = request.version();
    let (parts, incoming) = request.into_parts();
    let headers = request_headers(parts, connection.info.tls.is_some());
    let (headers, refused) = match headers {
        Ok(headers) => (headers, None),
        Err((headers, reply)) => (headers, Some(reply)),
    };
    let cell = StreamCell::new(&connection, headers, version);
    let source = RequestSource::new(cell.clone(), incoming);
    if source.is_read() {
        cell.with(|state| state.stream.info.request_end = Some(state.stream.info.start));
    }
    if let Some(reply) = refused {
        return Ok(reply_with(&cell, *reply));
    }
    let reply = tokio::select! {
        biased;
        outcome = run(&cell, &source, downstream_upgrade) => outcome,
        reply = cell.expired(&source) => Outcome::Reply(Box::new(reply)),
    };
    match reply {
        Outcome::Reply(reply) => Ok(reply_with(&cell, *reply)),
        Outcome::Response(response) => Ok(*response),
    }
}

enum Outcome {
    Reply(Box<LocalReply>),
    Response(Box<Response<ResponseBody>>),
}

async fn run(
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    downstream_upgrade: Option<OnUpgrade>,
) -> Outcome {
    if let Err(reply) = cell.with(begin) {
        return Outcome::Reply(reply);
    }
    if let Some(reply) = run_filters(cell).await {
        return Outcome::Reply(reply);
    }
    cell.with(|state| source.set_sees_data(state.update_sees_data()));
    let reply = cell.with(|state| answer_locally(state));
    if let Some(reply) = reply {
        return Outcome::Reply(reply);
    }
    match router::forward(cell, source, downstream_upgrade).await {
        Forwarded::Reply(reply) => Outcome::Reply(reply),
        Forwarded::Response(head, body) => Outcome::Response(Box::new(respond(cell, head, body))),
    }
}

/// Head: validation, normalisation, headers, route, filters.
fn begin(state: &mut StreamState) -> Result<(), Box<LocalReply>> {
    let StreamState {
        stream, request, ..
    } = state;
    let connection = stream.connection.clone();
    let manager = &connection.manager;
    let version = stream.info.protocol.unwrap_or(Version::HTTP_11);
    conn_manager::validate(manager, request, version)?;
    conn_manager::normalize(manager, request, &stream.info)?;
    let table = connection.route_table();
    let internal_only = super::config::internal_only(table.as_deref());
    conn_manager::mutate_request(manager, request, &mut stream.info, internal_only);
    if !stream.select_route(request) {
        return Err(Box::new(redirect_to_https(request)));
    }
    upgrade::check(manager, stream, request)?;
    state.filters = manager.filters.create(&state.stream);
    Ok(())
}

async fn run_filters(cell: &Rc<StreamCell>) -> Option<Box<LocalReply>> {
    let mut index = 0;
    let mut resumed = None;
    loop {
        let status = match resumed.take() {
            Some(status) => status,
            None => cell.with(|state| next_status(state, &mut index)),
        };
        match status {
            FilterStatus::Continue if cell.with(|state| index >= state.filters.len()) => {
                return None;
            }
            FilterStatus::Continue => {}
            FilterStatus::LocalReply(reply) => return Some(reply),
            FilterStatus::Wait(future) => match future.await {
                Resume::Continue => {}
                Resume::LocalReply(reply) => return Some(reply),
                Resume::Then(work) => {
                    let status = cell.with(|state| work(&mut state.request, &mut state.stream));
                    // Going on leads through `next_status`, which selects a route that was cleared.
                    resumed =
                        Some(status).filter(|status| !matches!(status, FilterStatus::Continue));
                }
            },
        }
    }
}

/// Runs filters until one does not simply continue.
fn next_status(state: &mut StreamState, index: &mut usize) -> FilterStatus {
    let StreamState {
        stream,
        request,
        filters,
        ..
    } = state;
    while let Some(filter) = filters.get_mut(*index) {
        if !stream.select_route(request) {
            return FilterStatus::reply(redirect_to_https(request));
        }
        *index += 1;
        match filter.decode_headers(request, stream) {
            FilterStatus::Continue => {}
            other => return other,
        }
    }
    if stream.select_route(request) {
        FilterStatus::Continue
    } else {
        FilterStatus::reply(redirect_to_https(request))
    }
}

/// The replies that need no upstream: no route, redirect, direct response.
fn answer_locally(state: &mut StreamState) -> Option<Box<LocalReply>> {
    let StreamState {
        stream, request, ..
    } = state;
    let stats = &stream.connection.manager.stats;
    stats.rq_total.inc();
    let Some(route) = stream.info.route.clone() else {
        stats.no_route.inc();
        return Some(Box::new(
            LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found")
                .flag(ResponseFlag::NoRouteFound),
        ));
    };
    let reply = match &route.route().kind {
        RouteKind::Forward(_) => return None,
        RouteKind::Redirect(redirect) => {
            stats.rq_direct_response.inc();
            let location = redirect.location(route.route_match(), request);
            let location = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/"));
            LocalReply::new(redirect.status, "", "direct_response")
                .header(&header::LOCATION, location)
        }
        RouteKind::Direct(direct) => {
            stats.rq_direct_response.inc();
            let (body, content_type) = direct.body(&FormatContext {
                info: &stream.info,
                request: Some(request),
                response: None,
                trailers: None,
                local_reply_body: "",
            });
            let reply = LocalReply::new(direct.status, body, "direct_response");
            match content_type {
                Some(content_type) => reply.header(&header::CONTENT_TYPE, content_type),
                None => reply,
            }
        }
    };
    Some(Box::new(reply.of_route()))
}

fn redirect_to_https(request: &RequestHeaders) -> LocalReply {
    let location = format!("https://{}{}", request.host(), request.path.as_str());
    let location = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/"));
    LocalReply::new(StatusCode::MOVED_PERMANENTLY, "", "direct_response")
        .header(&header::LOCATION, location)
}

/// Turns a local reply into the response.
fn reply_with(cell: &Rc<StreamCell>, reply: LocalReply) -> Response<ResponseBody> {
    let (head, body) = cell.with(|state| {
        let StreamState {
            stream, request, ..
        } = state;
        stream.info.set_details(reply.details.clone());
        if let Some(flag) = reply.flag {
            stream.info.flags.set(flag);
        }
        let is_http2 = stream.info.protocol == Some(Version::HTTP_2);
        // What is left of the request would be taken for the next one.
        if stream.info.request_end.is_none() {
            stream
                .connection
                .manager
                .stats
                .downstream_rq_response_before_rq_complete
                .inc();
        }
        let closes = !is_http2 && (reply.closes || stream.info.request_end.is_none());
        // QUIRK: the route's formats do not know the status yet.
        let route = stream.info.route.clone().filter(|_| reply.is_of_route);
        let mut head = reply.head();
        if let Some(route) = route {
            route.finalize_response(&mut head, Some(request), &stream.info);
        }
        stream.info.response_code = Some(reply.status.as_u16());
        let connection = stream.connection.clone();
        let context = FormatContext {
            info: &stream.info,
            request: Some(request),
            response: None,
            trailers: None,
            local_reply_body: "",
        };
        let (head, body) = reply.build(
            head,
            &context,
            Some(request),
            &connection.manager.local_reply,
        );
        (finish_head(state, head, closes), body)
    });
    let body = ResponseBody::full(cell.clone(), body);
    into_response(head, body)
}

/// Turns an upstream response into the downstream one.
fn respond(
    cell: &Rc<StreamCell>,
    head: ResponseHeaders,
    body: ResponseBody,
) -> Response<ResponseBody> {
    let head = cell.with(|state| finish_head(state, head, false));
    into_response(head, body)
}

/// The response's head through the filters and the connection manager; a copy stays for the log.
fn finish_head(
    state: &mut StreamState,
    mut head: ResponseHeaders,
    closes: bool,
) -> ResponseHeaders {
    state.update_sees_data();
    let StreamState {
        stream,
        request,
        filters,
        ..
    } = state;
    for filter in filters.iter_mut().rev() {
        filter.encode_headers(&mut head, stream);
    }
    let connection = stream.connection.clone();
    conn_manager::mutate_response(
        &connection.manager,
        &mut head,
        Some(request),
        &mut stream.info,
    );
    let is_old = stream.info.protocol == Some(Version::HTTP_10);
    if closes || is_old {
        head.map
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    state.response = Some(head.clone());
    head
}

fn into_response(head: ResponseHeaders, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.map;
    response
}

type Refused = (RequestHeaders, Box<LocalReply>);

/// The head of a request as the codec parsed it.
fn request_headers(parts: http::request::Parts, is_tls: bool) -> Result<RequestHeaders, Refused> {
    let mut map = parts.headers;
    let uri = parts.uri.into_parts();
    let host_count = map.get_all(header::HOST).iter().count();
    let host = map.remove(header::HOST);
    let authority = match uri.authority {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => host,
    };
    let is_upgrade = map
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let upgrade = match parts.extensions.get::<hyper::ext::Protocol>() {
        Some(protocol) => HeaderValue::from_str(protocol.as_str()).ok(),
        None if is_upgrade => map.get(header::UPGRADE).cloned(),
        None => None,
    };
    let headers = RequestHeaders {
        method: parts.method,
        scheme: if is_tls { Scheme::Https } else { Scheme::Http },
        authority: authority.unwrap_or_else(|| HeaderValue::from_static("")),
        path: uri
            .path_and_query
            .unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")),
        upgrade,
        map,
    };
    if host_count > 1 {
        let reply = LocalReply::new(StatusCode::BAD_REQUEST, "", "http1.codec_error").closing();
        return Err((headers, Box::new(reply)));
    }
    Ok(headers)
}

impl Drop for StreamCell {
    fn drop(&mut self) {
        self.state.get_mut().finish();
    }
}

impl StreamState {
    /// Whether any filter looks at bodies, now that the request's head went through them.
    fn update_sees_data(&mut self) -> bool {
        self.sees_data = self.filters.iter().any(|filter| filter.sees_data());
        self.sees_data
    }

    /// The end: counts, filters, access log.
    fn finish(&mut self) {
        let info = &mut self.stream.info;
        let connection = self.stream.connection.clone();
        let stats = &connection.manager.stats;
        info.end = Some(Instant::now());
        if !self.is_complete {
            stats.downstream_rq_rx_reset.inc();
            info.flags
                .set(ResponseFlag::DownstreamConnectionTermination);
            info.set_details("downstream_remote_disconnect");
            if self.response.is_none() {
                info.response_code = None;
            }
        }
        stats.downstream_rq_active.dec();
        if !info.is_health_check {
            if let Some(code) = info.response_code {
                stats.count_status(code);
            }
            stats
                .downstream_rq_time
                .record(u64::try_from(info.duration().as_millis()).unwrap_or(u64::MAX));
        }
        connection
            .active
            .set(connection.active.get().saturating_sub(1));
        connection.idle_since.set(Instant::now());
        let mut filters = std::mem::take(&mut self.filters);
        let end = StreamEnd {
            stream: &self.stream,
            request: &self.request,
            response: self.response.as_ref(),
            trailers: self.trailers.as_ref(),
        };
        for filter in &mut filters {
            filter.on_log(&end);
        }
        if !connection.manager.access_logs.is_empty() {
            connection.manager.access_logs.log(&FormatContext {
                info: &self.stream.info,
                request: Some(&self.request),
                response: self.response.as_ref(),
                trailers: self.trailers.as_ref(),
                local_reply_body: "",
            });
        }
    }
}
