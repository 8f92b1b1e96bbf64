//! What formats tell of connections themselves: how they came here, and how they ended.

use crate::listener::CloseType;
use crate::stream_info::{StreamInfo, UpstreamInfo};
use crate::transport::Failure;

use super::operator::{milliseconds, number, put};

/// What is told of a downstream connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum ConnectionField {
    HandshakeDuration,
    TransportFailure,
    Ja3,
    Ja4,
    CloseReason,
    CloseType,
}

/// What is told of how an upstream connection ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum UpstreamEnd {
    Reason,
    Type,
}

impl ConnectionField {
    /// Appends the value; false when there is none.
    pub(super) fn write(self, info: &StreamInfo, out: &mut String) -> bool {
        let connection = &info.connection;
        let is_request = info.protocol.is_some();
        let fingerprints = connection.fingerprints.as_deref();
        match self {
            Self::HandshakeDuration => connection.handshake.ended.is_some_and(|ended| {
                // QUIRK: it counts from the stream's start, and the connection of a request has long been secured by then.
                let early = info.start.saturating_duration_since(ended);
                if milliseconds(early) > 0 {
                    out.push('-');
                    return number(milliseconds(early), out);
                }
                let duration = ended.saturating_duration_since(info.start);
                number(milliseconds(duration), out)
            }),
            Self::TransportFailure => {
                // As documented: for connections, not for their requests.
                if is_request {
                    return false;
                }
                // TLS fails with the connection below it.
                let is_reset = connection.tls.is_some() && connection.meter.is_reset();
                let reset = is_reset.then_some(&Failure::RESET);
                let failure = connection.handshake.failure.as_ref().or(reset);
                // Spaces would break the log's fields.
                failure
                    .is_some_and(|failure| put(Some(&failure.to_string().replace(' ', "_")), out))
            }
            Self::Ja3 => put(fingerprints.and_then(|prints| prints.ja3.as_deref()), out),
            Self::Ja4 => put(fingerprints.and_then(|prints| prints.ja4.as_deref()), out),
            // The line of a request is written before its connection ends.
            Self::CloseReason => put(connection.meter.reason().filter(|_| !is_request), out),
            Self::CloseType => {
                let close = connection.close_type();
                let close = if is_request { CloseType::Normal } else { close };
                put(Some(close.name()), out)
            }
        }
    }
}

impl UpstreamEnd {
    /// Appends the value; false when there is none.
    pub(super) fn write(self, upstream: &UpstreamInfo, out: &mut String) -> bool {
        match self {
            Self::Reason => put(upstream.close_reason, out),
            Self::Type => {
                // A request does not hear how the connection that it shared came to its end.
                let of_request = upstream.host.as_ref().map(|_| CloseType::Normal);
                put(upstream.close.or(of_request).map(CloseType::name), out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream_info::testing::connection;
    use std::{rc::Rc, time::Duration};

    fn written(field: ConnectionField, info: &StreamInfo) -> Option<String> {
        let mut out = String::new();
        field.write(info, &mut out).then_some(out)
    }

    #[test]
    fn end_is_told_of_connections_and_not_of_their_requests() {
        let connection = Rc::new(connection());
        let whole = StreamInfo::new(connection.clone(), None);
        let request = StreamInfo::new(connection.clone(), Some(http::Version::HTTP_11));
        let both = |info| {
            let reason = written(ConnectionField::CloseReason, info);
            (reason, written(ConnectionField::CloseType, info))
        };
        assert_eq!(both(&whole), (None, Some("Normal".to_owned())));
        connection.end_because("first");
        connection.end_because("second");
        connection.meter.set_reset();
        assert_eq!(
            both(&whole),
            (Some("first".to_owned()), Some("RemoteReset".to_owned()))
        );
        connection.meter.because("last");
        connection.meter.set_reset_by_us();
        assert_eq!(
            both(&whole),
            (Some("last".to_owned()), Some("LocalReset".to_owned()))
        );
        assert_eq!(both(&request), (None, Some("Normal".to_owned())));
    }

    #[test]
    fn handshake_is_timed_from_the_start_of_connection_or_request() {
        let mut connection = connection();
        assert_eq!(
            written(
                ConnectionField::HandshakeDuration,
                &StreamInfo::new(Rc::new(connection.clone()), None)
            ),
            None
        );
        let ended = connection.began + Duration::from_millis(7);
        connection.handshake.ended = Some(ended);
        let connection = Rc::new(connection);
        let whole = StreamInfo::new(connection.clone(), None);
        let of_whole = written(ConnectionField::HandshakeDuration, &whole);
        assert_eq!(of_whole.as_deref(), Some("7"));
        let mut request = StreamInfo::new(connection, Some(http::Version::HTTP_11));
        request.start = ended + Duration::from_micros(3900);
        let of_request = written(ConnectionField::HandshakeDuration, &request);
        assert_eq!(of_request.as_deref(), Some("-3"));
    }
}
