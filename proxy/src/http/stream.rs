//! The engine: one HTTP stream from its head to its access log, the same for HTTP/1 and HTTP/2.
//!
//! [`open`] and [`Opened::serve`] run head → filters → route → response head; the rest of the response streams through [`ResponseBody`]. Both,
//! and the request's body, share the [`StreamCell`]; when the last of them lets go of it the stream is over, is counted and
//! logged: a client that goes away drops them all.

mod account;
mod cell;
mod connection;
mod reply;
mod response_body;
mod throttle;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use http::header::HeaderMap;
use http::{HeaderValue, Method, StatusCode, Version};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::access_log::LogType;
use crate::listener::ConnectionInfo;
use crate::router::WorkerTable;
use crate::stream_info::{ByteMeter, StreamInfo};
use crate::worker::Worker;

use super::body::{DownstreamBody, NotBuffered, RequestSource};
use super::config::ConnectionManager;
use super::conn_manager;
use super::filter::router::{self, Forwarded};
use super::filter::{Buffering, FilterStatus, HttpFilter, Resume};
use super::headers::{RequestHeaders, ResponseHeaders, Scheme};
use super::local_reply::LocalReply;
use super::upgrade::{self, OnUpgrade};

use reply::{answer_locally, redirect_to_https, reply_with, respond};

pub(crate) use account::{Account, Accounts, Holder};
use connection::flush_timeout;
pub(crate) use connection::idle_timeout;
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
    /// What filters keep for all streams of the connection.
    pub(crate) filter_state: RefCell<Vec<Rc<dyn std::any::Any>>>,
    /// Told when a client opens streams only to reset them.
    pub(crate) overrun: Notify,
    ended: Cell<u64>,
    broken_off: Cell<u64>,
    table: RefCell<Option<WorkerTable>>,
}

/// A stream as filters see it.
pub(crate) struct Stream {
    /// The record of the stream.
    pub(crate) info: StreamInfo,
    /// Its connection.
    pub(crate) connection: Rc<DownstreamConnection>,
    /// The response's body goes no faster than this, in bytes a second.
    pub(crate) response_rate: Option<u64>,
    /// The response on its way out has no body.
    pub(crate) is_response_bodyless: bool,
    /// A filter wants no more of the request's body: the answer.
    pub(crate) refusal: Option<Box<LocalReply>>,
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
    /// The connection must not carry another request.
    closes: bool,
    is_complete: bool,
    /// What it holds, if the overload manager cares.
    account: Option<Rc<Account>>,
    /// What writes to the access logs from time to time.
    logging: Option<AbortHandle>,
}

/// A request as its codec read it.
pub(crate) struct Request {
    /// Its head.
    pub(crate) headers: RequestHeaders,
    /// The protocol's version.
    pub(crate) version: Version,
    /// What counts its bytes, and those of its response.
    pub(crate) meter: Rc<dyn ByteMeter>,
    /// Its body.
    pub(crate) body: DownstreamBody,
    /// What the stream holds, if the overload manager cares.
    pub(crate) account: Option<Rc<Account>>,
    /// Resolves with the connection's (or stream's) bytes after an upgrade, if one is asked for.
    pub(crate) upgrade: Option<OnUpgrade>,
}

/// A stream that has begun.
pub(crate) struct Opened {
    cell: Rc<StreamCell>,
    source: Rc<RequestSource>,
    upgrade: Option<OnUpgrade>,
}

/// Begins the stream of a connection's request.
pub(crate) fn open(connection: &Rc<DownstreamConnection>, request: Request) -> Opened {
    let Request {
        headers,
        version,
        meter,
        body,
        account,
        upgrade,
    } = request;
    let cell = StreamCell::new(connection, headers, version, meter);
    if let Some(interval) = connection.manager.log_moments.interval {
        cell.log_periodically(interval);
    }
    let source = RequestSource::new(cell.clone(), body);
    if let Some(account) = account {
        let source: Rc<dyn Holder> = source.clone();
        account.add(Rc::downgrade(&source));
        cell.with(|state| state.account = Some(account));
    }
    if source.is_read() {
        cell.with(|state| state.stream.info.request_end = Some(state.stream.info.start));
    }
    Opened {
        cell,
        source,
        upgrade,
    }
}

impl Opened {
    /// Serves the request: the response's body, which knows its head.
    pub(crate) async fn serve(self) -> Box<ResponseBody> {
        let Opened {
            cell,
            source,
            upgrade,
        } = self;
        let reply = tokio::select! {
            biased;
            outcome = run(&cell, &source, upgrade) => outcome,
            reply = cell.expired(&source) => Outcome::Reply(Box::new(reply)),
        };
        match reply {
            Outcome::Reply(reply) => reply_with(&cell, *reply),
            Outcome::Response(body) => body,
        }
    }
}

/// Answers what could not be read as a request.
pub(crate) fn refuse(
    connection: &Rc<DownstreamConnection>,
    reply: LocalReply,
    meter: Rc<dyn ByteMeter>,
) -> Box<ResponseBody> {
    let headers = RequestHeaders {
        method: Method::GET,
        scheme: Scheme::Http,
        authority: HeaderValue::from_static(""),
        path: http::uri::PathAndQuery::from_static("/"),
        upgrade: None,
        map: HeaderMap::new(),
    };
    refuse_request(connection, headers, reply, meter, false)
}

/// Answers a request that could be read and is no stream's all the same.
pub(crate) fn refuse_request(
    connection: &Rc<DownstreamConnection>,
    headers: RequestHeaders,
    reply: LocalReply,
    meter: Rc<dyn ByteMeter>,
    is_whole: bool,
) -> Box<ResponseBody> {
    let cell = StreamCell::new(connection, headers, Version::HTTP_11, meter);
    if is_whole {
        cell.request_ended();
    }
    reply_with(&cell, reply)
}

enum Outcome {
    Reply(Box<LocalReply>),
    Response(Box<ResponseBody>),
}

async fn run(
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    mut downstream_upgrade: Option<OnUpgrade>,
) -> Outcome {
    if let Err(reply) = cell.with(begin) {
        return Outcome::Reply(reply);
    }
    loop {
        match run_filters(cell, source).await {
            Filtered::Through => {}
            Filtered::Reply(reply) => return Outcome::Reply(reply),
            Filtered::Anew => {
                if let Err(reply) = cell.with(choose_filters) {
                    return Outcome::Reply(reply);
                }
                continue;
            }
        }
        cell.with(|state| source.set_sees_data(state.update_sees_data()));
        let reply = cell.with(answer_locally);
        if let Some(reply) = reply {
            return Outcome::Reply(reply);
        }
        match router::forward(cell, source, &mut downstream_upgrade).await {
            Forwarded::Reply(reply) => return Outcome::Reply(reply),
            Forwarded::Response(head, body) => {
                return Outcome::Response(respond(cell, head, body));
            }
            // The request goes through the filters once more, to where the upstream sent it.
            Forwarded::Redirect => {
                if let Err(reply) = cell.with(choose_filters) {
                    return Outcome::Reply(reply);
                }
            }
        }
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
    connection.admit()?;
    conn_manager::validate(&connection, request, version)?;
    conn_manager::normalize(manager, request, &stream.info)?;
    let table = connection.route_table();
    let internal_only = super::config::internal_only(table.as_deref());
    conn_manager::mutate_request(manager, request, &mut stream.info, internal_only);
    choose_filters(state)?;
    crate::tracing::start(state);
    if manager.log_moments.at_start {
        state.log(LogType::DownstreamStart);
    }
    Ok(())
}

/// The route, and the filters that are on for it.
fn choose_filters(state: &mut StreamState) -> Result<(), Box<LocalReply>> {
    let StreamState {
        stream, request, ..
    } = state;
    if !stream.select_route(request) {
        return Err(Box::new(redirect_to_https(request)));
    }
    let connection = stream.connection.clone();
    upgrade::check(&connection.manager, stream, request)?;
    state.filters = connection.manager.filters.create(&state.stream);
    Ok(())
}

/// What came of a request's way through the filters.
enum Filtered {
    /// It is through.
    Through,
    /// It is answered.
    Reply(Box<LocalReply>),
    /// Its route may be another now, and with it the filters.
    Anew,
}

async fn run_filters(cell: &Rc<StreamCell>, source: &Rc<RequestSource>) -> Filtered {
    let mut index = 0;
    let mut resumed = None;
    loop {
        let status = match resumed.take() {
            Some(status) => status,
            None => cell.with(|state| next_status(state, &mut index)),
        };
        match status {
            FilterStatus::Continue if cell.with(|state| index >= state.filters.len()) => {
                return Filtered::Through;
            }
            FilterStatus::Continue => {}
            FilterStatus::LocalReply(reply) => return Filtered::Reply(reply),
            FilterStatus::Restart => {
                cell.with(|state| state.stream.clear_route());
                // Filters that have seen a part of the body must see the rest of it.
                if source.is_untouched() {
                    return Filtered::Anew;
                }
            }
            FilterStatus::Buffer(buffering) => {
                resumed = Some(buffer(cell, source, *buffering, index).await)
                    .filter(|status| !matches!(status, FilterStatus::Continue));
            }
            FilterStatus::Wait(future) => match future.await {
                Resume::Continue => {}
                Resume::LocalReply(reply) => return Filtered::Reply(reply),
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

/// Reads the request's body for the filter before `next` and lets it work on it.
async fn buffer(
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    buffering: Buffering,
    next: usize,
) -> FilterStatus {
    cell.with(|state| source.set_sees_data(state.update_sees_data()));
    let Buffering {
        limit,
        allows_partial,
        then,
    } = buffering;
    match source.buffer(limit, allows_partial, next).await {
        Ok(body) => cell.with(|state| then(body, &mut state.request, &mut state.stream)),
        Err(NotBuffered::TooLong) => {
            cell.with(|state| {
                let stats = &state.stream.connection.manager.stats;
                stats.downstream_rq_too_large.inc();
            });
            let (status, body) = (StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large");
            let reply = LocalReply::new(status, body, "request_payload_too_large");
            FilterStatus::reply(reply.closing())
        }
        Err(NotBuffered::Broken) => {
            let refusal = cell.with(|state| state.stream.refusal.take());
            FilterStatus::reply(refusal.map_or_else(
                || LocalReply::new(StatusCode::BAD_REQUEST, "", "http1.codec_error").closing(),
                |refusal| *refusal,
            ))
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
