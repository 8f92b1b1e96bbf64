//! Why streams and connections end.

/// An error code (RFC 9113, 7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reason(pub(super) u32);

macro_rules! reasons {
    ($($name:ident = $code:literal,)*) => {
        #[allow(dead_code, reason = "the whole list is kept, for what peers say")]
        impl Reason {
            $(pub(crate) const $name: Self = Self($code);)*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    NO_ERROR = 0,
    PROTOCOL_ERROR = 1,
    INTERNAL_ERROR = 2,
    FLOW_CONTROL_ERROR = 3,
    SETTINGS_TIMEOUT = 4,
    STREAM_CLOSED = 5,
    FRAME_SIZE_ERROR = 6,
    REFUSED_STREAM = 7,
    CANCEL = 8,
    COMPRESSION_ERROR = 9,
    CONNECT_ERROR = 10,
    ENHANCE_YOUR_CALM = 11,
    INADEQUATE_SECURITY = 12,
    HTTP_1_1_REQUIRED = 13,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "error code {}", self.0),
        }
    }
}

impl std::fmt::Debug for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// Why a stream or a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The peer reset the stream.
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
    /// We reset the stream.
    #[error("the stream was given up: {0}")]
    GivenUp(Reason),
    /// The peer broke the protocol, in the stream or in the whole connection.
    #[error("the peer broke the protocol: {0}")]
    Protocol(Reason),
    /// The peer ends the connection and has not looked at the stream.
    #[error("the peer is going away: {0}")]
    GoAway(Reason),
    /// The connection ended.
    #[error("the connection ended")]
    Closed,
}
