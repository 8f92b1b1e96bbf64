//! PROXY protocol, versions 1 and 2: the client's real address, told by a load balancer in front.

use super::{Accepted, Look};
use crate::{invalid::Invalid, listener::ConnectionInfo, stat_group, stats::Scope};
use bytes::Buf as _;
use proto::envoy::config::core::v3::proxy_protocol_config::Version;
use proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol as Wire;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

stat_group! {
    /// `proxy_proto.…`
    pub(crate) struct ProxyProtocolStats { not_found_allowed: Counter, not_found_disallowed: Counter }
}

stat_group! {
    /// `proxy_proto.versions.v1.…` and `v2`
    pub(crate) struct VersionStats { disallowed: Counter, error: Counter, found: Counter }
}

/// A checked configuration.
pub(super) struct Options {
    is_optional: bool,
    /// Whether versions 1 and 2 are refused.
    disallowed: [bool; 2],
    stats: Arc<ProxyProtocolStats>,
    versions: [Arc<VersionStats>; 2],
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// Not a header at all.
    Absent,
    /// A header that is broken.
    Broken,
    /// Nothing about the client (`LOCAL`, `UNKNOWN`); this many bytes.
    Local(usize),
    /// Source and destination; this many bytes.
    Proxied(usize, SocketAddr, SocketAddr),
}

impl Options {
    /// Checks `wire`; statistics are below `root`.
    pub(super) fn new(wire: &Wire, root: &Scope) -> Result<Self, Invalid> {
        if !wire.rules.is_empty() {
            return Err(Invalid::new("not supported").at("rules"));
        }
        let mut scope = root.scope("proxy_proto");
        if !wire.stat_prefix.is_empty() {
            scope = root.scope("proxy_proto").tagged(
                "",
                "envoy.proxy_protocol_prefix",
                &wire.stat_prefix,
            );
        }
        let is_refused = |version: Version| wire.disallowed_versions().any(|one| one == version);
        let disallowed = [is_refused(Version::V1), is_refused(Version::V2)];
        if disallowed == [true, true] {
            return Err(Invalid::new("all versions are disallowed").at("disallowed_versions"));
        }
        let of = |version: &str| scope.scope("versions").scope(version).group();
        Ok(Self {
            is_optional: wire.allow_requests_without_proxy_protocol,
            disallowed,
            versions: [of("v1"), of("v2")],
            stats: scope.group(),
        })
    }
}

/// Reads the header and takes it off the connection.
pub(super) async fn inspect(
    options: &Options,
    accepted: &mut Accepted,
    info: &mut ConnectionInfo,
) -> io::Result<()> {
    let header = accepted.look(parse).await?.unwrap_or(Header::Absent);
    if matches!(header, Header::Absent) {
        if options.is_optional {
            &options.stats.not_found_allowed
        } else {
            &options.stats.not_found_disallowed
        }
        .inc();
    } else {
        let version = usize::from(!accepted.ahead.starts_with(b"PROXY "));
        let stats = &options.versions[version];
        if options.disallowed[version] && options.is_optional {
            // It may be the first bytes of something else.
            options.stats.not_found_allowed.inc();
            return Ok(());
        }
        if options.disallowed[version] {
            stats.disallowed.inc();
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a PROXY protocol version that is not allowed",
            ));
        }
        if matches!(header, Header::Broken) {
            &stats.error
        } else {
            &stats.found
        }
        .inc();
    }
    match header {
        Header::Absent if options.is_optional => {}
        Header::Absent | Header::Broken => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no valid PROXY protocol header",
            ));
        }
        Header::Local(length) => accepted.ahead.advance(length),
        Header::Proxied(length, source, destination) => {
            accepted.ahead.advance(length);
            info.remote_address = source;
            if destination != info.local_address {
                info.local_address = destination;
                info.is_local_restored = true;
            }
        }
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Look<Header> {
    if SIGNATURE.starts_with(&bytes[..bytes.len().min(SIGNATURE.len())]) {
        return parse_v2(bytes);
    }
    let start = bytes.len().min(6);
    if bytes[..start] != b"PROXY "[..start] {
        return Look::Done(Header::Absent);
    }
    match bytes.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) if end <= 105 => Look::Done(parse_v1(&bytes[..end]).unwrap_or(Header::Broken)),
        None if bytes.len() < 107 => Look::More,
        _ => Look::Done(Header::Broken),
    }
}

fn parse_v1(line: &[u8]) -> Option<Header> {
    let length = line.len() + 2;
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Some(Header::Local(length)),
        [
            "PROXY",
            family @ ("TCP4" | "TCP6"),
            source,
            destination,
            source_port,
            destination_port,
        ] => {
            let source = SocketAddr::new(source.parse().ok()?, source_port.parse().ok()?);
            let destination =
                SocketAddr::new(destination.parse().ok()?, destination_port.parse().ok()?);
            let is_v4 = *family == "TCP4";
            (source.is_ipv4() == is_v4 && destination.is_ipv4() == is_v4)
                .then_some(Header::Proxied(length, source, destination))
        }
        _ => None,
    }
}

fn parse_v2(bytes: &[u8]) -> Look<Header> {
    let Some(head) = bytes.get(12..16) else {
        return Look::More;
    };
    let length = 16 + usize::from(u16::from_be_bytes([head[2], head[3]]));
    if bytes.len() < length {
        return Look::More;
    }
    let body = &bytes[16..length];
    Look::Done(match (head[0], head[1]) {
        (0x20, _) => Header::Local(length),
        (0x21, 0x11) => v2_addresses::<4>(body, length, |ip| Ipv4Addr::from(ip).into()),
        (0x21, 0x21) => v2_addresses::<16>(body, length, |ip| Ipv6Addr::from(ip).into()),
        (0x21, 0x00) => Header::Local(length),
        _ => Header::Broken,
    })
}

fn v2_addresses<const N: usize>(
    body: &[u8],
    length: usize,
    ip: impl Fn([u8; N]) -> IpAddr,
) -> Header {
    let address = |at: usize| {
        body.get(at..at + N)
            .and_then(|bytes| <[u8; N]>::try_from(bytes).ok())
            .map(&ip)
    };
    let port = |at: usize| {
        body.get(at..at + 2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    match (address(0), address(N), port(2 * N), port(2 * N + 2)) {
        (Some(source), Some(destination), Some(source_port), Some(destination_port)) => {
            Header::Proxied(
                length,
                SocketAddr::new(source, source_port),
                SocketAddr::new(destination, destination_port),
            )
        }
        _ => Header::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_versions_are_read() {
        let Look::Done(found) = parse(b"PROXY TCP4 1.2.3.4 5.6.7.8 90 80\r\nGET /") else {
            panic!("not found")
        };
        assert_eq!(
            found,
            Header::Proxied(
                34,
                "1.2.3.4:90".parse().unwrap(),
                "5.6.7.8:80".parse().unwrap()
            )
        );
        let mut v2 = SIGNATURE.to_vec();
        v2.extend([
            0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 0, 90, 0, 80, b'x',
        ]);
        assert!(matches!(parse(&v2[..20]), Look::More));
        let Look::Done(found) = parse(&v2) else {
            panic!("not found")
        };
        assert_eq!(
            found,
            Header::Proxied(
                28,
                "1.2.3.4:90".parse().unwrap(),
                "5.6.7.8:80".parse().unwrap()
            )
        );
        assert!(matches!(
            parse(b"GET / HTTP/1.1\r\n"),
            Look::Done(Header::Absent)
        ));
        assert!(matches!(
            parse(b"PROXY TCP4 x y\r\n"),
            Look::Done(Header::Broken)
        ));
    }

    proptest! {
        #[test]
        fn parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..100), which in 0_u8..3) {
            let mut input = match which { 0 => SIGNATURE.to_vec(), 1 => b"PROXY ".to_vec(), _ => Vec::new() };
            input.extend(bytes);
            parse(&input);
        }
    }

    #[test]
    fn fuzz_proxy_headers() {
        crate::listener_filter::fuzz_looks("proxy_headers", 0, parse);
    }
}
