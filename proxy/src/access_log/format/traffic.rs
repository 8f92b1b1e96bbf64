//! Bytes on the wire: `DOWNSTREAM_WIRE_BYTES_SENT` and its like.

use super::tls_field::Side;
use crate::stream_info::StreamInfo;

/// As our end of the connection sees it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Received,
    Sent,
}

/// What is counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Measure {
    Wire,
    Headers,
    /// Headers before their compression.
    Decompressed,
}

impl Measure {
    /// What `name` asks for, behind `DOWNSTREAM_` or `UPSTREAM_`.
    pub(super) fn named(name: &str) -> Option<(Self, Way)> {
        let (measure, way) = name.split_once("BYTES_")?;
        Some((
            match measure {
                "WIRE_" => Measure::Wire,
                "HEADER_" => Measure::Headers,
                "DECOMPRESSED_HEADER_" => Measure::Decompressed,
                _ => return None,
            },
            match way {
                "RECEIVED" => Way::Received,
                "SENT" => Way::Sent,
                _ => return None,
            },
        ))
    }

    pub(super) fn of(self, side: Side, way: Way, info: &StreamInfo) -> u64 {
        let counts = match side {
            Side::Downstream => info.downstream_bytes(),
            Side::Upstream => info.upstream_bytes(),
        };
        let traffic = match way {
            Way::Received => counts.received,
            Way::Sent => counts.sent,
        };
        match self {
            Measure::Wire => traffic.wire,
            Measure::Headers => traffic.heads,
            Measure::Decompressed => traffic.plain,
        }
    }
}
