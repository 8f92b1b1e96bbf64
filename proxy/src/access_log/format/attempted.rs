//! The hosts that a request was sent to, one after another.

use crate::stream_info::UpstreamInfo;

/// How a host that was tried is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempted {
    Address,
    AddressWithoutPort,
    Name,
}

/// The hosts of all attempts, each once, the last one too.
pub(super) fn write_attempted(upstream: &UpstreamInfo, form: Attempted, out: &mut String) -> bool {
    let last = upstream.host.clone().zip(Some(upstream.host_name.clone()));
    let mut written = Vec::new();
    for (address, name) in upstream.earlier.iter().cloned().chain(last) {
        if written.contains(&address) {
            continue;
        }
        if !written.is_empty() {
            out.push(',');
        }
        let ip = || address.rsplit_once(':').map_or(&*address, |(ip, _)| ip);
        out.push_str(match form {
            Attempted::Address => &address,
            Attempted::AddressWithoutPort => ip().trim_matches(['[', ']']),
            Attempted::Name => name.as_deref().unwrap_or(&address),
        });
        written.push(address);
    }
    !written.is_empty()
}
