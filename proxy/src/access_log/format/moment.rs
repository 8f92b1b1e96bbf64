//! Durations between two moments in a stream's life.

use std::time::Duration;

use tokio::time::Instant;

use crate::stream_info::StreamInfo;

/// A moment in a stream's life.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    RequestStart,
    RequestEnd,
    RequestSent,
    ResponseStart,
    End,
}

/// What durations are counted in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Precision {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Moment {
    /// When it was, if it was.
    pub(super) fn of(self, info: &StreamInfo) -> Option<Instant> {
        match self {
            Moment::RequestStart => Some(info.start),
            Moment::RequestEnd => info.request_end,
            Moment::RequestSent => info.request_sent,
            Moment::ResponseStart => info.response_start,
            Moment::End => info.end,
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
