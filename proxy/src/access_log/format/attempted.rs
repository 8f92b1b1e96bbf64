//! The hosts that a request was sent to, one after another.

use std::borrow::Cow;

use crate::stream_info::{UpstreamInfo, name_of};

use super::operator::put;

/// How a host that was tried is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempted {
    Address,
    AddressWithoutPort,
    Name,
    NameWithoutPort,
    Connection,
}

/// The hosts of all attempts that had a connection, or the connections, each once.
pub(super) fn write_attempted(upstream: &UpstreamInfo, form: Attempted, out: &mut String) -> bool {
    let mut written: Vec<Cow<'_, str>> = Vec::new();
    for (host, connection) in upstream.attempted() {
        let text: Cow<'_, str> = match form {
            Attempted::Address => Cow::Borrowed(&host.address_text),
            Attempted::AddressWithoutPort => without_port(&host.address_text).into(),
            Attempted::Name => name_of(host).into(),
            Attempted::NameWithoutPort => without_port(name_of(host)).into(),
            Attempted::Connection => connection.id.to_string().into(),
        };
        if !written.contains(&text) {
            written.push(text);
        }
    }
    !written.is_empty() && put(Some(&written.join(",")), out)
}

/// `10.0.0.1:80` as `10.0.0.1`.
pub(super) fn without_port(text: &str) -> &str {
    match text.rsplit_once(':') {
        Some((ip, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => {
            ip.trim_matches(['[', ']'])
        }
        _ => text,
    }
}
