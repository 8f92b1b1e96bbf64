//! When access logs are written besides the end of a stream.

use std::time::Duration;

use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use crate::invalid::{At as _, Invalid};
use crate::wire::duration;

/// When access logs are written besides the end of a stream (`access_log_options`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogMoments {
    /// When a request has come and has its route.
    pub(crate) at_start: bool,
    /// So often while it is served.
    pub(crate) interval: Option<Duration>,
    /// When it has become a tunnel.
    pub(crate) at_tunnel: bool,
}

impl TryFrom<&HttpConnectionManager> for LogMoments {
    type Error = Invalid;

    #[allow(deprecated, reason = "control planes still send the older fields")]
    fn try_from(wire: &HttpConnectionManager) -> Result<Self, Invalid> {
        let options = wire.access_log_options.unwrap_or_default();
        let interval = options
            .access_log_flush_interval
            .or(wire.access_log_flush_interval);
        let field = "access_log_options.access_log_flush_interval";
        let interval = interval.as_ref().map(duration).transpose().at(field)?;
        if interval.is_some_and(|interval| interval < Duration::from_millis(1)) {
            return Err(Invalid::new("it must be at least 1ms").at(field));
        }
        Ok(LogMoments {
            at_start: options.flush_access_log_on_new_request
                || wire.flush_access_log_on_new_request,
            interval,
            at_tunnel: options.flush_log_on_tunnel_successfully_established,
        })
    }
}
