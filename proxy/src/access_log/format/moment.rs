//! Durations between two moments in a stream's life.

use std::time::Duration;

use tokio::time::Instant;

use crate::stream_info::StreamInfo;

/// A moment in a stream's life.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    RequestStart,
    RequestEnd,
    ConnectStart,
    ConnectEnd,
    HandshakeEnd,
    RequestSendStart,
    RequestSent,
    ResponseStart,
    ResponseBodyStart,
    ResponseEnd,
    ResponseSendStart,
    End,
    HeadersEnd,
    DownstreamStart,
    DownstreamHandshakeStart,
    DownstreamHandshakeEnd,
    /// Of TCP connections only.
    DownstreamEnd,
}

/// What durations are counted in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Precision {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Moment {
    /// The one of that name; filters note no others.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "DS_RX_BEG" => Moment::RequestStart,
            "DS_RX_END" => Moment::RequestEnd,
            "US_CX_BEG" => Moment::ConnectStart,
            "US_CX_END" => Moment::ConnectEnd,
            "US_HS_END" => Moment::HandshakeEnd,
            "US_TX_BEG" => Moment::RequestSendStart,
            "US_TX_END" => Moment::RequestSent,
            "US_RX_BEG" => Moment::ResponseStart,
            "US_RX_BODY_BEG" => Moment::ResponseBodyStart,
            "US_RX_END" => Moment::ResponseEnd,
            "DS_TX_BEG" => Moment::ResponseSendStart,
            "DS_TX_END" => Moment::End,
            "DS_RX_HDR_END" => Moment::HeadersEnd,
            "DS_HS_BEG" => Moment::DownstreamHandshakeStart,
            "DS_HS_END" => Moment::DownstreamHandshakeEnd,
            "DS_CX_BEG" => Moment::DownstreamStart,
            "DS_CX_END" => Moment::DownstreamEnd,
            _ => return None,
        })
    }

    /// When it was, if it was.
    pub(super) fn of(self, info: &StreamInfo) -> Option<Instant> {
        let is_http = info.protocol.is_some();
        let upstream = &info.upstream;
        let connection = upstream.connection.as_ref();
        match self {
            Moment::RequestStart => Some(info.start),
            Moment::RequestEnd => info.request_end,
            Moment::ConnectStart => connection.map(|connection| connection.began),
            Moment::ConnectEnd => connection.map(|connection| connection.connected),
            Moment::HandshakeEnd => connection?.secured,
            Moment::RequestSendStart => upstream.ready.filter(|_| is_http),
            Moment::RequestSent => {
                // What had all come before there was a connection went out with it.
                let ready = upstream.ready.filter(|_| is_http)?;
                info.request_end.map(|end| end.max(ready))
            }
            Moment::ResponseStart => info.response_start,
            Moment::ResponseBodyStart => upstream.body_start,
            Moment::ResponseEnd => upstream.response_end,
            Moment::ResponseSendStart => info.response_sent,
            Moment::End => info.end.filter(|_| is_http),
            // A request is one when its head is there.
            Moment::HeadersEnd => is_http.then_some(info.start),
            Moment::DownstreamHandshakeStart => info.connection.handshake.began,
            Moment::DownstreamHandshakeEnd => info.connection.handshake.ended,
            Moment::DownstreamStart => Some(info.connection.began),
            Moment::DownstreamEnd => info.end.filter(|_| !is_http),
        }
    }
}

impl Precision {
    /// So many of them, begun ones not.
    pub(super) fn count(self, duration: Duration) -> u64 {
        let count = match self {
            Precision::Milliseconds => duration.as_millis(),
            Precision::Microseconds => duration.as_micros(),
            Precision::Nanoseconds => duration.as_nanos(),
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}
