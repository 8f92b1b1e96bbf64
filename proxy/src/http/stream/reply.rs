//! Responses' heads: local replies and upstream responses on their way out, through the filters and the connection manager.

use std::rc::Rc;

use http::header::{self, HeaderValue};
use http::{StatusCode, Version};
use tokio::time::Instant;

use crate::access_log::FormatContext;
use crate::http::conn_manager;
use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::http::local_reply::LocalReply;
use crate::router::RouteKind;
use crate::stream_info::ResponseFlag;

use super::{ResponseBody, StreamCell, StreamState};

/// The replies that need no upstream: no route, redirect, direct response.
pub(super) fn answer_locally(state: &mut StreamState) -> Option<Box<LocalReply>> {
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
            let (body, content_type) =
                direct.body(&FormatContext::of_request(&stream.info, request));
            let reply = LocalReply::new(direct.status, body, "direct_response");
            match content_type {
                Some(content_type) => reply.header(&header::CONTENT_TYPE, content_type),
                None => reply,
            }
        }
    };
    Some(Box::new(reply.of_route()))
}

pub(super) fn redirect_to_https(request: &RequestHeaders) -> LocalReply {
    let location = format!("https://{}{}", request.host(), request.path.as_str());
    let location = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/"));
    LocalReply::new(StatusCode::MOVED_PERMANENTLY, "", "direct_response")
        .header(&header::LOCATION, location)
}

/// Turns a local reply into the response.
pub(super) fn reply_with(cell: &Rc<StreamCell>, reply: LocalReply) -> Box<ResponseBody> {
    let body = cell.with(|state| {
        let StreamState {
            stream, request, ..
        } = state;
        stream.info.set_details(reply.details.clone());
        if let Some(flag) = reply.flag {
            stream.info.flags.set(flag);
        }
        let is_http2 = stream.info.protocol == Some(Version::HTTP_2);
        // A bad request may be one that was not understood: what follows it may be a part of it.
        let closes = !is_http2 && (reply.closes || reply.status == StatusCode::BAD_REQUEST);
        // QUIRK: the route's formats do not know the status yet.
        let route = stream.info.route.clone().filter(|_| reply.is_of_route);
        let mut head = reply.head();
        if let Some(route) = route {
            route.finalize_response(&mut head, Some(request), &stream.info);
        }
        let connection = stream.connection.clone();
        let (head, body) = reply.build(
            head,
            &mut stream.info,
            Some(request),
            &connection.manager.local_reply,
        );
        state.stream.is_response_bodyless = body.is_empty();
        let is_early = is_early(state);
        finish_head(state, head, closes || is_early);
        body
    });
    ResponseBody::full(cell.clone(), body)
}

/// Whether the response comes before all of its request, which then keeps an HTTP/1 connection from another one: what is
/// left of the request would be taken for it.
fn is_early(state: &StreamState) -> bool {
    let info = &state.stream.info;
    if info.request_end.is_some() {
        return false;
    }
    let stats = &state.stream.connection.manager.stats;
    stats.downstream_rq_response_before_rq_complete.inc();
    info.protocol != Some(Version::HTTP_2)
}

/// Turns an upstream response into the downstream one.
pub(super) fn respond(
    cell: &Rc<StreamCell>,
    head: ResponseHeaders,
    body: Box<ResponseBody>,
) -> Box<ResponseBody> {
    let is_bodyless = body.has_no_data();
    cell.with(|state| {
        state.stream.is_response_bodyless = is_bodyless;
        let is_early = is_early(state);
        finish_head(state, head, is_early);
    });
    body.for_filters()
}

/// The response's head through the filters and the connection manager; it stays in the state for the codec and the log.
pub(super) fn finish_head(state: &mut StreamState, mut head: ResponseHeaders, closes: bool) {
    let StreamState {
        stream,
        request,
        filters,
        ..
    } = state;
    // What comes from upstream goes on at once.
    let now = stream.info.response_start.unwrap_or_else(Instant::now);
    stream.info.response_sent = Some(now);
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
    if let Some(tracing) = &connection.manager.tracing
        && let Some(span) = &mut stream.info.span
    {
        span.see_response(tracing.is_egress(), &mut head);
    }
    state.closes = closes || connection.refuses_keepalive(stream.info.protocol);
    state.response = Some(head);
    // A filter may have made up its mind to look at the body only now.
    state.update_sees_data();
}
