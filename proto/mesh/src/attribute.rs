//! Mixer's attributes: typed values by name, as the proxy's client and the Mixer server exchange them.
//!
//! [`dictionary`] (words both sides know) → [`codec`] (compressed wire form) ↔ [`bag`] (attributes in memory).
//! The server reads a message in place ([`wire`]; [`ValueRef`] borrows from it); the client collects a [`record`] of each request,
//! out of [`word`]s, and writes its reports as they travel ([`report`]). [`Attributes`] are for those who have few of them, or time.

pub mod bag;
mod buffer;
pub mod codec;
pub mod dictionary;
mod name;
pub mod record;
pub mod report;
pub mod wire;
pub mod word;

use std::fmt;

pub use bag::{Attributes, MapRef, TextMap, Value, ValueRef};
pub use name::{Known, Name};

/// The declared type of an attribute (`istio.policy.v1beta1.ValueType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ValueType {
    /// Text.
    String,
    /// A signed integer.
    Int64,
    /// A floating-point number.
    Double,
    /// True or false.
    Bool,
    /// A point in time.
    Timestamp,
    /// An IPv4 or IPv6 address, 4 or 16 raw bytes on the wire.
    IpAddress,
    /// An RFC 5322 address.
    EmailAddress,
    /// A URI.
    Uri,
    /// A DNS name.
    DnsName,
    /// A span of time.
    Duration,
    /// Text by text.
    StringMap,
}

impl ValueType {
    /// Every type, in wire order from 1.
    pub const ALL: [ValueType; 11] = [
        ValueType::String,
        ValueType::Int64,
        ValueType::Double,
        ValueType::Bool,
        ValueType::Timestamp,
        ValueType::IpAddress,
        ValueType::EmailAddress,
        ValueType::Uri,
        ValueType::DnsName,
        ValueType::Duration,
        ValueType::StringMap,
    ];

    /// From the wire enumeration; 0 and unknown numbers are no type.
    #[must_use]
    pub fn from_wire(number: i32) -> Option<Self> {
        let position = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(position).copied()
    }

    /// From the name in configuration (`IP_ADDRESS`).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name in configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ValueType::String => "STRING",
            ValueType::Int64 => "INT64",
            ValueType::Double => "DOUBLE",
            ValueType::Bool => "BOOL",
            ValueType::Timestamp => "TIMESTAMP",
            ValueType::IpAddress => "IP_ADDRESS",
            ValueType::EmailAddress => "EMAIL_ADDRESS",
            ValueType::Uri => "URI",
            ValueType::DnsName => "DNS_NAME",
            ValueType::Duration => "DURATION",
            ValueType::StringMap => "STRING_MAP",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
