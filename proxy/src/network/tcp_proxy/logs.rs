//! When the access log is written: at the end, and where the configuration says so also at the start, when the upstream is
//! connected, and from time to time.

use super::super::{FactoryContext, log_connection};
use crate::{
    access_log::{AccessLogs, LogType},
    invalid::{At as _, Invalid},
    stream_info::StreamInfo,
    wire::duration,
};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as Wire;
use std::time::Duration;

/// The logs of a filter, and when they are written besides the end.
pub(super) struct Logs {
    logs: AccessLogs,
    pub(super) is_start_logged: bool,
    pub(super) is_connected_logged: bool,
    interval: Option<Duration>,
}

impl Logs {
    /// Checks what `wire` says about logs.
    #[allow(deprecated, reason = "control planes still send the older fields")]
    pub(super) fn new(wire: &Wire, context: &FactoryContext<'_>) -> Result<Self, Invalid> {
        let options = wire.access_log_options.unwrap_or_default();
        let interval = options
            .access_log_flush_interval
            .or(wire.access_log_flush_interval);
        let interval = interval.as_ref().map(duration).transpose();
        let interval = interval.at("access_log_options.access_log_flush_interval")?;
        if interval.is_some_and(|interval| interval < Duration::from_millis(1)) {
            return Err(Invalid::new("it must be at least 1ms")
                .at("access_log_options.access_log_flush_interval"));
        }
        Ok(Self {
            logs: AccessLogs::try_new(&wire.access_log, context.server).at("access_log")?,
            is_start_logged: options.flush_access_log_on_start,
            is_connected_logged: options.flush_access_log_on_connected
                || wire.flush_access_log_on_connected,
            interval,
        })
    }

    /// Writes what is known by now.
    pub(super) fn write(&self, info: &mut StreamInfo, log_type: LogType) {
        let connection = info.connection.clone();
        let seen = connection.seen.lock();
        for (name, fields) in connection.metadata.iter().chain(seen.iter()) {
            info.metadata.merge(name.to_owned(), fields.clone());
        }
        drop(seen);
        info.bytes_received = connection.meter.received();
        info.bytes_sent = connection.meter.sent();
        log_connection(&self.logs, info, log_type);
    }

    /// Writes from time to time while `work` goes on.
    pub(super) async fn meanwhile<T>(
        &self,
        work: impl Future<Output = T>,
        info: &mut StreamInfo,
    ) -> T {
        let Some(interval) = self.interval else {
            return work.await;
        };
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(interval) => self.write(info, LogType::TcpPeriodic),
            }
        }
    }
}
