//! Options of listening sockets; accepted sockets inherit them.

use crate::invalid::Invalid;
use proto::envoy::config::core::v3::{
    SocketOption, TcpKeepalive,
    socket_option::{SocketState, Value},
};
use socket2::Socket;
use std::{io, time::Duration};

/// Settings of the listening sockets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SocketOptions {
    pub(super) backlog: i32,
    pub(super) is_transparent: bool,
    pub(super) is_freebind: bool,
    pub(super) is_v4_compatible: bool,
    /// Whether every worker has a socket of its own.
    pub(super) is_port_shared: bool,
    pub(super) keepalive: Option<TcpKeepalive>,
    pub(super) mode: u32,
    pub(super) raw: Vec<RawOption>,
}

/// A socket option by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawOption {
    option: Known,
    value: u32,
    state: SocketState,
}

/// The options that are known by their numbers on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    ReuseAddress,
    SendBuffer,
    ReceiveBuffer,
    Keepalive,
    ReusePort,
    Mark,
    TypeOfService,
    TrafficClass,
    Transparent,
    Freebind,
    NoDelay,
    KeepaliveIdle,
    KeepaliveInterval,
    KeepaliveProbes,
    UserTimeout,
}

/// Level, name, option.
const KNOWN: &[(i64, i64, Known)] = &[
    (1, 2, Known::ReuseAddress),
    (1, 7, Known::SendBuffer),
    (1, 8, Known::ReceiveBuffer),
    (1, 9, Known::Keepalive),
    (1, 15, Known::ReusePort),
    (1, 36, Known::Mark),
    (0, 1, Known::TypeOfService),
    (41, 67, Known::TrafficClass),
    (0, 19, Known::Transparent),
    (0, 15, Known::Freebind),
    (6, 1, Known::NoDelay),
    (6, 4, Known::KeepaliveIdle),
    (6, 5, Known::KeepaliveInterval),
    (6, 6, Known::KeepaliveProbes),
    (6, 18, Known::UserTimeout),
];

impl TryFrom<&SocketOption> for RawOption {
    type Error = Invalid;

    fn try_from(wire: &SocketOption) -> Result<Self, Invalid> {
        let known = KNOWN
            .iter()
            .find(|(level, name, _)| (*level, *name) == (wire.level, wire.name));
        let Some((_, _, option)) = known else {
            return Err(Invalid::unsupported(&format!(
                "the socket option {} of level {}",
                wire.name, wire.level
            )));
        };
        if wire.r#type.is_some() {
            return Err(Invalid::new("not supported").at("type"));
        }
        let Some(Value::IntValue(value)) = wire.value else {
            return Err(Invalid::new("an int_value is needed").at("int_value"));
        };
        Ok(Self {
            option: *option,
            value: u32::try_from(value)
                .map_err(|_| Invalid::new("out of range").at("int_value"))?,
            state: wire.state(),
        })
    }
}

impl RawOption {
    fn apply(&self, socket: &Socket) -> io::Result<()> {
        let is_on = self.value != 0;
        let size = usize::try_from(self.value).unwrap_or(usize::MAX);
        let seconds = Duration::from_secs(self.value.into());
        let keepalive = socket2::TcpKeepalive::new();
        match self.option {
            Known::ReuseAddress => socket.set_reuse_address(is_on),
            Known::SendBuffer => socket.set_send_buffer_size(size),
            Known::ReceiveBuffer => socket.set_recv_buffer_size(size),
            Known::Keepalive => socket.set_keepalive(is_on),
            Known::ReusePort => socket.set_reuse_port(is_on),
            Known::Mark => socket.set_mark(self.value),
            Known::TypeOfService => socket.set_tos_v4(self.value),
            Known::TrafficClass => socket.set_tclass_v6(self.value),
            Known::Transparent => socket.set_ip_transparent_v4(is_on),
            Known::Freebind => socket.set_freebind_v4(is_on),
            Known::NoDelay => socket.set_tcp_nodelay(is_on),
            // These do not switch keepalive on by themselves.
            Known::KeepaliveIdle => keep(socket, &keepalive.with_time(seconds)),
            Known::KeepaliveInterval => keep(socket, &keepalive.with_interval(seconds)),
            Known::KeepaliveProbes => keep(socket, &keepalive.with_retries(self.value)),
            Known::UserTimeout => {
                socket.set_tcp_user_timeout(Some(Duration::from_millis(self.value.into())))
            }
        }
    }
}

/// Sets keepalive times and leaves it on or off as it was.
fn keep(socket: &Socket, keepalive: &socket2::TcpKeepalive) -> io::Result<()> {
    let is_on = socket.keepalive()?;
    socket.set_tcp_keepalive(keepalive)?;
    socket.set_keepalive(is_on)
}

impl SocketOptions {
    /// Sets what is due in `state`.
    pub(super) fn apply(&self, socket: &Socket, state: SocketState) -> io::Result<()> {
        if state == SocketState::StatePrebind
            && let Some(wire) = &self.keepalive
        {
            set_keepalive(socket, wire)?;
        }
        self.raw
            .iter()
            .filter(|option| option.state == state)
            .try_for_each(|option| option.apply(socket))
    }
}

fn set_keepalive(socket: &Socket, wire: &TcpKeepalive) -> io::Result<()> {
    let seconds = |value: Option<u32>| value.map(|seconds| Duration::from_secs(seconds.into()));
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = seconds(wire.keepalive_time) {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = seconds(wire.keepalive_interval) {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = wire.keepalive_probes {
        keepalive = keepalive.with_retries(probes);
    }
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};

    fn option(level: i64, name: i64, value: i64) -> SocketOption {
        SocketOption {
            level,
            name,
            value: Some(Value::IntValue(value)),
            ..SocketOption::default()
        }
    }

    #[test]
    fn keepalive_by_number_reaches_the_socket() {
        let raw = [
            option(1, 9, 1),
            option(6, 4, 300),
            option(6, 5, 7),
            option(6, 6, 3),
        ];
        let options = SocketOptions {
            raw: raw
                .iter()
                .map(|one| RawOption::try_from(one).unwrap())
                .collect(),
            ..SocketOptions::default()
        };
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        options.apply(&socket, SocketState::StatePrebind).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(300)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(7)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }

    #[test]
    fn unknown_options_are_refused() {
        assert!(RawOption::try_from(&option(6, 99, 1)).is_err());
        assert!(RawOption::try_from(&option(1, 9, -1)).is_err());
    }
}
