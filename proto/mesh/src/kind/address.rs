//! Addresses in configuration: IP addresses, address ranges, Unix sockets.

use std::net::IpAddr;

use ipnet::IpNet;

/// How a Unix socket's address begins.
pub(super) const UNIX: &str = "unix://";

/// Checks an IP address.
pub(super) fn check_ip(address: &str) -> Result<(), String> {
    if is_ip(address) {
        return Ok(());
    }
    Err(format!("{address:?} is no IP address"))
}

/// True for an IP address.
pub(super) fn is_ip(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok()
}

/// Checks an IP address or a range such as `10.0.0.0/8`.
pub(crate) fn check_range(range: &str) -> Result<(), String> {
    if range.contains('/') {
        return match range.parse::<IpNet>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "{range:?} is no address range: give an address and its prefix length, as in 10.0.0.0/8"
            )),
        };
    }
    check_ip(range)
}

/// Checks the path of a Unix socket: absolute, or an abstract name after `@`.
pub(super) fn check_unix_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("the path of the Unix socket is empty".into());
    }
    if path.starts_with('@') || (path.starts_with('/') && !path.ends_with('/')) {
        return Ok(());
    }
    Err(format!(
        "{path:?} is no path of a Unix socket: give an absolute path to a file"
    ))
}
