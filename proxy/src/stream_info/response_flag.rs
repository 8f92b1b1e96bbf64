//! Response flags: Envoy's short words for what happened to a stream besides its status.

/// One flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ResponseFlag {
    /// LH
    FailedLocalHealthCheck,
    /// UH
    NoHealthyUpstream,
    /// UT
    UpstreamRequestTimeout,
    /// LR
    LocalReset,
    /// UR
    UpstreamRemoteReset,
    /// UF
    UpstreamConnectionFailure,
    /// UC
    UpstreamConnectionTermination,
    /// UO
    UpstreamOverflow,
    /// NR
    NoRouteFound,
    /// DI
    DelayInjected,
    /// FI
    FaultInjected,
    /// RL
    RateLimited,
    /// UAEX
    UnauthorizedExternalService,
    /// RLSE
    RateLimitServiceError,
    /// DC
    DownstreamConnectionTermination,
    /// URX
    UpstreamRetryLimitExceeded,
    /// SI
    StreamIdleTimeout,
    /// IH
    InvalidEnvoyRequestHeaders,
    /// DPE
    DownstreamProtocolError,
    /// UMSDR
    UpstreamMaxStreamDurationReached,
    /// NFCF
    NoFilterConfigFound,
    /// DT
    DurationTimeout,
    /// UPE
    UpstreamProtocolError,
    /// NC
    NoClusterFound,
    /// OM
    OverloadManager,
    /// DF
    DnsResolutionFailed,
    /// DR
    DownstreamRemoteReset,
    /// The cluster does not want all requests.
    DropOverload,
    /// The cluster wants no request.
    UnconditionalDropOverload,
}

use ResponseFlag as F;

/// Flag, short name, long name; the index is the flag's number.
const FLAGS: &[(ResponseFlag, &str, &str)] = &[
    (F::FailedLocalHealthCheck, "LH", "FailedLocalHealthCheck"),
    (F::NoHealthyUpstream, "UH", "NoHealthyUpstream"),
    (F::UpstreamRequestTimeout, "UT", "UpstreamRequestTimeout"),
    (F::LocalReset, "LR", "LocalReset"),
    (F::UpstreamRemoteReset, "UR", "UpstreamRemoteReset"),
    (
        F::UpstreamConnectionFailure,
        "UF",
        "UpstreamConnectionFailure",
    ),
    (
        F::UpstreamConnectionTermination,
        "UC",
        "UpstreamConnectionTermination",
    ),
    (F::UpstreamOverflow, "UO", "UpstreamOverflow"),
    (F::NoRouteFound, "NR", "NoRouteFound"),
    (F::DelayInjected, "DI", "DelayInjected"),
    (F::FaultInjected, "FI", "FaultInjected"),
    (F::RateLimited, "RL", "RateLimited"),
    (
        F::UnauthorizedExternalService,
        "UAEX",
        "UnauthorizedExternalService",
    ),
    (F::RateLimitServiceError, "RLSE", "RateLimitServiceError"),
    (
        F::DownstreamConnectionTermination,
        "DC",
        "DownstreamConnectionTermination",
    ),
    (
        F::UpstreamRetryLimitExceeded,
        "URX",
        "UpstreamRetryLimitExceeded",
    ),
    (F::StreamIdleTimeout, "SI", "StreamIdleTimeout"),
    (
        F::InvalidEnvoyRequestHeaders,
        "IH",
        "InvalidEnvoyRequestHeaders",
    ),
    (F::DownstreamProtocolError, "DPE", "DownstreamProtocolError"),
    (
        F::UpstreamMaxStreamDurationReached,
        "UMSDR",
        "UpstreamMaxStreamDurationReached",
    ),
    (F::NoFilterConfigFound, "NFCF", "NoFilterConfigFound"),
    (F::DurationTimeout, "DT", "DurationTimeout"),
    (F::UpstreamProtocolError, "UPE", "UpstreamProtocolError"),
    (F::NoClusterFound, "NC", "NoClusterFound"),
    (F::OverloadManager, "OM", "OverloadManagerTerminated"),
    (F::DnsResolutionFailed, "DF", "DnsResolutionFailed"),
    (F::DownstreamRemoteReset, "DR", "DownstreamRemoteReset"),
    (F::DropOverload, "DO", "DropOverload"),
    (
        F::UnconditionalDropOverload,
        "UDO",
        "UnconditionalDropOverload",
    ),
];

/// How many flags are remembered in their order; a stream has one or two.
const REMEMBERED: usize = 6;

/// A set of flags, in the order in which they were set, which is the order of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ResponseFlags {
    bits: u32,
    order: [u8; REMEMBERED],
    count: u8,
}

impl ResponseFlag {
    /// The flag of a short name.
    pub(crate) fn parse(short: &str) -> Option<Self> {
        FLAGS
            .iter()
            .find(|(_, name, _)| *name == short)
            .map(|(flag, ..)| *flag)
    }
}

impl ResponseFlags {
    /// Adds a flag.
    pub(crate) fn set(&mut self, flag: ResponseFlag) {
        if self.contains(flag) {
            return;
        }
        self.bits |= 1 << flag as u8;
        if let Some(place) = self.order.get_mut(usize::from(self.count)) {
            *place = flag as u8;
            self.count += 1;
        }
    }

    /// True when the flag is set.
    pub(crate) fn contains(self, flag: ResponseFlag) -> bool {
        self.bits & (1 << flag as u8) != 0
    }

    /// True without any flag.
    pub(crate) fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// Appends the names, joined by commas.
    pub(crate) fn write(self, long: bool, out: &mut String) {
        let mut separator = "";
        for index in &self.order[..usize::from(self.count)] {
            let Some((_, short_name, long_name)) = FLAGS.get(usize::from(*index)) else {
                continue;
            };
            out.push_str(separator);
            out.push_str(if long { long_name } else { short_name });
            separator = ",";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_in_order() {
        let mut flags = ResponseFlags::default();
        flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
        flags.set(ResponseFlag::UpstreamConnectionFailure);
        let mut out = String::new();
        flags.write(false, &mut out);
        assert_eq!(out, "URX,UF");
        assert_eq!(
            ResponseFlag::parse("UAEX"),
            Some(ResponseFlag::UnauthorizedExternalService)
        );
        assert!(
            FLAGS
                .iter()
                .enumerate()
                .all(|(index, (flag, ..))| *flag as usize == index)
        );
    }
}
