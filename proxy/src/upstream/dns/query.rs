//! One question to one name server: by UDP from a port of its own, and by TCP where the answer does not fit or that is wanted.

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

/// What a server knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// These addresses, for so long.
    Addresses(Vec<IpAddr>, Duration),
    /// There is no such name, or it has no addresses of the kind.
    Nothing,
}

/// Asks for the addresses of one kind.
pub(super) async fn ask(
    server: SocketAddr,
    name: &str,
    kind: TYPE,
    payload: u16,
    by_tcp: bool,
) -> io::Result<Reply> {
    let id = rand::random();
    let query = query(id, name, kind, payload)?;
    if !by_tcp {
        let answer = by_datagram(server, &query, id, payload).await?;
        if let Some(reply) = read(&answer, id, name)? {
            return Ok(reply);
        }
    }
    let answer = by_stream(server, &query).await?;
    read(&answer, id, name)?.ok_or_else(|| bad("the answer is cut off"))
}

fn bad(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn query(id: u16, name: &str, kind: TYPE, payload: u16) -> io::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).map_err(bad)?;
    let class = QCLASS::CLASS(CLASS::IN);
    packet
        .questions
        .push(Question::new(name, QTYPE::TYPE(kind), class, false));
    *packet.opt_mut() = Some(rdata::OPT {
        opt_codes: Vec::new(),
        udp_packet_size: payload,
        version: 0,
    });
    packet.build_bytes_vec().map_err(bad)
}

/// An answer's meaning; `None` if it was cut off.
fn read(answer: &[u8], id: u16, name: &str) -> io::Result<Option<Reply>> {
    let packet = Packet::parse(answer).map_err(bad)?;
    let is_ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && packet
            .questions
            .iter()
            .all(|question| question.qname.to_string().eq_ignore_ascii_case(name));
    if !is_ours {
        return Err(bad("the answer is to another question"));
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(None);
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Ok(Some(Reply::Nothing)),
        other => return Err(io::Error::other(format!("the name server says {other:?}"))),
    }
    let mut addresses = Vec::new();
    let mut holds = u32::MAX;
    for record in &packet.answers {
        let ip = match &record.rdata {
            rdata::RData::A(a) => Ipv4Addr::from(a.address).into(),
            rdata::RData::AAAA(aaaa) => Ipv6Addr::from(aaaa.address).into(),
            // Another name for it, whose addresses follow.
            rdata::RData::CNAME(_) => {
                holds = holds.min(record.ttl);
                continue;
            }
            _ => continue,
        };
        addresses.push(ip);
        holds = holds.min(record.ttl);
    }
    Ok(Some(if addresses.is_empty() {
        Reply::Nothing
    } else {
        Reply::Addresses(addresses, Duration::from_secs(u64::from(holds)))
    }))
}

async fn by_datagram(
    server: SocketAddr,
    query: &[u8],
    id: u16,
    payload: u16,
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From now on only the server is heard.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; usize::from(payload)];
    loop {
        let length = socket.recv(&mut answer).await?;
        // What has another number is an answer that came too late for somebody else.
        if answer.get(..2) == Some(&id.to_be_bytes()) && length >= 2 {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn by_stream(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(bad)?;
    let message = [&length.to_be_bytes()[..], query].concat();
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
