//! What formats tell of a downstream connection itself: its way here.

use crate::stream_info::StreamInfo;

use super::operator::{milliseconds, number, put};

/// What is told of a downstream connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum ConnectionField {
    HandshakeDuration,
    TransportFailure,
    Ja3,
    Ja4,
}

impl ConnectionField {
    /// Appends the value; false when there is none.
    pub(super) fn write(self, info: &StreamInfo, out: &mut String) -> bool {
        let connection = &info.connection;
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
                let failure = connection.handshake.failure.as_ref();
                let failure = failure.filter(|_| info.protocol.is_none());
                // Spaces would break the log's fields.
                failure
                    .is_some_and(|failure| put(Some(&failure.to_string().replace(' ', "_")), out))
            }
            Self::Ja3 => put(fingerprints.and_then(|prints| prints.ja3.as_deref()), out),
            Self::Ja4 => put(fingerprints.and_then(|prints| prints.ja4.as_deref()), out),
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
