//! Questions about names that are not of the mesh: put, as they came, to the resolvers of the pod (`/etc/resolv.conf`), one
//! after the other, each time from a port of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many as the C library asks.
const MAX_RESOLVERS: usize = 3;
const PORT: u16 = 53;
/// The longest answer that is taken by UDP.
const MAX_DATAGRAM: usize = 8192;
/// Fields of a message's head: the second byte of flags holds the result.
const HEAD: usize = 12;
const RESULT: u8 = 0x0f;
const RESPONSE: u8 = 0x80;
/// Results by which a resolver says that another should be asked.
const SERVER_FAILURE: u8 = 2;
const REFUSED: u8 = 5;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream, each message after its length.
    Tcp,
}

/// The pod's resolvers, and the domains that it looks for short names in.
#[derive(Clone, Debug, Default)]
pub struct Resolvers {
    addresses: Arc<[SocketAddr]>,
    search: Arc<[String]>,
}

impl Resolvers {
    /// What `path` (a `resolv.conf`) says; nothing if it is not there.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
            tracing::warn!(target: "dns", path = %path.display(), %error, "there are no resolvers to ask");
            String::new()
        });
        Self::parse(&text)
    }

    /// What a `resolv.conf` with this text says.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (mut addresses, mut search) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone (`fe80::1%eth0`) means nothing here.
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    addresses.extend(address.map(|ip| SocketAddr::new(ip, PORT)));
                }
                // The last line counts.
                Some("search" | "domain") => search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        addresses.truncate(MAX_RESOLVERS);
        Self::new(addresses, search)
    }

    /// These.
    #[must_use]
    pub fn new(addresses: Vec<SocketAddr>, search: Vec<String>) -> Self {
        Self {
            addresses: addresses.into(),
            search: search.into(),
        }
    }

    /// Those that are not ourselves.
    pub(super) fn without(&self, own: SocketAddr) -> Self {
        let others = self.addresses.iter().copied();
        Self {
            addresses: others.filter(|address| *address != own).collect(),
            search: self.search.clone(),
        }
    }

    /// The domain that short names are looked for in first.
    pub(super) fn first_search_domain(&self) -> String {
        self.search.first().cloned().unwrap_or_default()
    }

    /// The first usable answer to a query; none if no resolver has one.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let mut last = None;
        for address in self.addresses.iter() {
            let attempt = async {
                match transport {
                    Transport::Udp => ask_by_datagram(*address, query).await,
                    Transport::Tcp => ask_by_stream(*address, query).await,
                }
            };
            match timeout(PATIENCE, attempt).await {
                Ok(Ok(answer)) => {
                    let result = answer[3] & RESULT;
                    let is_final = ![SERVER_FAILURE, REFUSED].contains(&result);
                    last = Some(answer);
                    if is_final {
                        break;
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(target: "dns", resolver = %address, %error, "no answer");
                }
                Err(_) => tracing::debug!(target: "dns", resolver = %address, "no answer in time"),
            }
        }
        last
    }
}

async fn ask_by_datagram(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From now on only the resolver is heard.
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut answer).await?;
        if is_answer(&answer[..length], query) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_by_stream(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream).await?.unwrap_or_default();
    if is_answer(&answer, query) {
        Ok(answer)
    } else {
        Err(io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// Whether a message is a response with the query's number.
fn is_answer(message: &[u8], query: &[u8]) -> bool {
    message.len() >= HEAD && message.starts_with(&query[..2]) && message[2] & RESPONSE != 0
}

/// The next message of a stream; none at its end.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes a message into a stream.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidData);
    let length = u16::try_from(message.len()).map_err(too_long)?;
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read_as_the_c_library_does() {
        let text = "# a comment\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver fd00::10\n\
            search old.example.com\nsearch default.svc.cluster.local svc.cluster.local\noptions ndots:5\n";
        let resolvers = Resolvers::parse(text);
        let addresses: Vec<String> = resolvers
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["10.96.0.10:53", "[fd00::10]:53"]);
        assert_eq!(resolvers.first_search_domain(), "default.svc.cluster.local");
        let others = resolvers.without("10.96.0.10:53".parse().unwrap());
        assert_eq!(others.addresses.len(), 1);
        assert_eq!(Resolvers::parse("").first_search_domain(), "");
    }
}
