//! What a client is told whose request is not looked at, counted.

use http::StatusCode;

use crate::http::codec::NOT_UNDERSTOOD;
use crate::http::h1::{InvalidHead, RequestHead};
use crate::http::local_reply::LocalReply;
use crate::http::stream::DownstreamConnection;
use crate::stream_info::ResponseFlag;

/// A head that is none.
pub(super) fn invalid(connection: &DownstreamConnection, error: InvalidHead) -> LocalReply {
    let stats = &connection.manager.stats;
    stats.downstream_cx_protocol_error.inc();
    connection.info.end_because(NOT_UNDERSTOOD);
    if matches!(error, InvalidHead::TooLarge | InvalidHead::TooMany) {
        stats.downstream_rq_too_large.inc();
    }
    let status = error.status();
    let body = match error {
        InvalidHead::Path => "",
        _ => status.canonical_reason().unwrap_or_default(),
    };
    let reply = LocalReply::new(status, body, error.to_string()).closing();
    match error {
        InvalidHead::Path => reply,
        _ => reply.flag(ResponseFlag::DownstreamProtocolError),
    }
}

/// The answer of the load shed point; it is Envoy's, flag and all.
pub(super) fn shed(connection: &DownstreamConnection) -> LocalReply {
    let stats = &connection.manager.stats;
    stats.downstream_rq_overload_close.inc();
    stats.downstream_rq_rx_reset.inc();
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    LocalReply::new(status, "Internal Server Error", "overload")
        .closing()
        .flag(ResponseFlag::DownstreamProtocolError)
}

/// Whether the target is a whole URL where that is not to be understood: as in Envoy it is a path then, and no good
/// one.
pub(super) fn is_unroutable(connection: &DownstreamConnection, head: &RequestHead) -> bool {
    head.passed_over.is_some() && connection.manager.http1.allow_absolute_url == Some(false)
}

/// The answer to that.
pub(super) fn unroutable(connection: &DownstreamConnection) -> LocalReply {
    let stats = &connection.manager.stats;
    stats.downstream_rq_non_relative_path.inc();
    LocalReply::new(StatusCode::NOT_FOUND, "", "absolute_path_rejected")
}
