//! Small conversions of the core messages that every stage meets: durations, addresses, data sources.

use crate::invalid::{At as _, Invalid};
use proto::envoy::config::core::v3::{
    Address, CidrRange, DataSource, SocketAddress, address::Address as AddressKind,
    data_source::Specifier, socket_address::PortSpecifier,
};
use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// The byte that two hexadecimal digits stand for; no sign is one of them, unlike for the standard library.
pub(crate) fn hex_byte(pair: &[u8]) -> Option<u8> {
    let &[high, low] = pair else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// `%XX` decoded; what is not a valid escape stays.
pub(crate) fn percent_decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let pair = after.get(..2).filter(|_| *first == b'%');
        let byte = pair.and_then(hex_byte);
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    Cow::Owned(out)
}

/// An address of a listener or an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AnyAddress {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A name that must be resolved, and a port.
    Name(String, u16),
    /// A Unix socket.
    Pipe(PathBuf),
}

impl TryFrom<&Address> for AnyAddress {
    type Error = Invalid;

    fn try_from(wire: &Address) -> Result<Self, Invalid> {
        match &wire.address {
            Some(AddressKind::SocketAddress(address)) => {
                Self::try_from(address).at("socket_address")
            }
            Some(AddressKind::Pipe(pipe)) if pipe.path.starts_with('@') => {
                Err(Invalid::unsupported("an abstract Unix socket").at("pipe.path"))
            }
            Some(AddressKind::Pipe(pipe)) => Ok(Self::Pipe(PathBuf::from(&pipe.path))),
            Some(AddressKind::EnvoyInternalAddress(_)) => {
                Err(Invalid::unsupported("envoy_internal_address"))
            }
            None => Err(Invalid::new("an address is needed")),
        }
    }
}

impl TryFrom<&SocketAddress> for AnyAddress {
    type Error = Invalid;

    fn try_from(wire: &SocketAddress) -> Result<Self, Invalid> {
        if wire.protocol != 0 {
            return Err(Invalid::unsupported("UDP").at("protocol"));
        }
        if !wire.network_namespace_filepath.is_empty() {
            return Err(Invalid::unsupported("network_namespace_filepath"));
        }
        let port = match &wire.port_specifier {
            Some(PortSpecifier::PortValue(port)) => u16::try_from(*port)
                .map_err(|_| Invalid::new(format!("{port} is not a port")).at("port_value"))?,
            Some(PortSpecifier::NamedPort(_)) => return Err(Invalid::unsupported("named_port")),
            None => 0,
        };
        match wire.address.parse::<IpAddr>() {
            Ok(ip) => Ok(Self::Socket(SocketAddr::new(ip, port))),
            Err(_) if wire.address.is_empty() => {
                Err(Invalid::new("an address is needed").at("address"))
            }
            Err(_) => Ok(Self::Name(wire.address.clone(), port)),
        }
    }
}

impl AnyAddress {
    /// The IP address and port; a name is refused.
    pub(crate) fn socket(self) -> Result<SocketAddr, Invalid> {
        match self {
            Self::Socket(address) => Ok(address),
            Self::Name(name, _) => {
                Err(Invalid::new(format!("malformed IP address: {name}")).at("address"))
            }
            Self::Pipe(_) => Err(Invalid::new("an IP address is needed, not a Unix socket")),
        }
    }
}

impl std::fmt::Display for AnyAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Pipe(path) => path.display().fmt(f),
        }
    }
}

/// A duration that is not negative.
pub(crate) fn duration(wire: &prost_types::Duration) -> Result<Duration, Invalid> {
    Duration::try_from(*wire).map_err(|_| Invalid::new("a duration cannot be negative"))
}

/// An optional duration, with the field's name in the error.
pub(crate) fn duration_or(
    wire: Option<&prost_types::Duration>,
    default: Duration,
    field: &str,
) -> Result<Duration, Invalid> {
    wire.map_or(Ok(default), |wire| duration(wire).at(field))
}

/// A prefix; host bits are cleared as Envoy does.
pub(crate) fn prefix(wire: &CidrRange) -> Result<ipnet::IpNet, Invalid> {
    let ip: IpAddr = wire.address_prefix.parse().map_err(|_| {
        Invalid::new(format!("{:?} is not an IP address", wire.address_prefix)).at("address_prefix")
    })?;
    let len = u8::try_from(wire.prefix_len.unwrap_or(0)).unwrap_or(u8::MAX);
    let net = ipnet::IpNet::new(ip, len)
        .map_err(|_| Invalid::new(format!("{len} is too long for {ip}")).at("prefix_len"))?;
    Ok(net.trunc())
}

/// Reads a data source.
pub(crate) fn data_source(wire: &DataSource) -> Result<Vec<u8>, Invalid> {
    match &wire.specifier {
        Some(Specifier::Filename(file)) => std::fs::read(Path::new(file))
            .map_err(|error| Invalid::new(format!("{file}: {error}")).at("filename")),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(_)) => {
            Err(Invalid::unsupported("environment_variable"))
        }
        None => Ok(Vec::new()),
    }
}
