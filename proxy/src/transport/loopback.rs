//! TCP that does not leave the machine.

use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
use std::{ffi::OsString, fs, net::IpAddr, os::fd::AsFd, sync::LazyLock};

/// Whether the system's TCP spaces what it sends by timers, as BBR does.
static IS_PACED: LazyLock<bool> = LazyLock::new(|| {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
        .is_ok_and(|name| name.starts_with("bbr"))
});

/// Lets a socket that will be connected to `address`, or accept there, send at once where that is the machine itself: no link on the
/// way wants to be spared, and the timers of pacing cost a third of a large transfer. Failure is harmless.
pub(crate) fn unpace(socket: &impl AsFd, address: IpAddr) {
    if address.is_loopback() && *IS_PACED {
        let _ = setsockopt(socket, TcpCongestion, &OsString::from("reno"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use socket2::{Domain, Socket, Type};
    use std::net::Ipv4Addr;

    #[test]
    fn only_what_stays_on_the_machine_is_not_paced() {
        let control = |address: Ipv4Addr| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let before = getsockopt(&socket, TcpCongestion).unwrap();
            unpace(&socket, address.into());
            (before, getsockopt(&socket, TcpCongestion).unwrap())
        };
        let (before, after) = control(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(before, after);
        let (before, after) = control(Ipv4Addr::LOCALHOST);
        let is_paced = before.to_string_lossy().starts_with("bbr");
        let reno = after.to_string_lossy().starts_with("reno");
        assert!(if is_paced { reno } else { before == after });
    }
}
