//! A service's port.

use crate::protocol::Protocol;

/// A port with its name and protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The name, unique in the service.
    pub name: String,
    /// The number, 1 to 65535; 0 for a Unix socket.
    pub number: u32,
    /// What is spoken on it.
    pub protocol: Protocol,
}

impl Port {
    /// A port.
    #[must_use]
    pub fn new(number: u32, name: impl Into<String>, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            number,
            protocol,
        }
    }
}

/// Checks a port number.
///
/// # Errors
/// What is wrong with it.
pub fn check_number(number: u32) -> Result<(), String> {
    if (1..=65535).contains(&number) {
        return Ok(());
    }
    Err(format!("port number {number} is not in 1..=65535"))
}

/// Checks a port name: a DNS label.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    if crate::labels::is_dns_label(name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no port name: give at most 63 letters, digits and `-`, framed by letters or digits"
    ))
}
