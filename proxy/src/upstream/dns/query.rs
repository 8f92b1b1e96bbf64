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

/// A message's header, and flags in its third byte.
const HEADER: usize = 12;
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;

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
        // What is longer than asked for has been cut off here.
        if answer.len() <= usize::from(payload)
            && let Some(reply) = read(&answer, id, name, kind)?
        {
            return Ok(reply);
        }
    }
    let answer = by_stream(server, &query).await?;
    read(&answer, id, name, kind)?.ok_or_else(|| bad("the answer is cut off"))
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
fn read(answer: &[u8], id: u16, name: &str, kind: TYPE) -> io::Result<Option<Reply>> {
    let other = || bad("the answer is to another question");
    let header = answer.first_chunk::<HEADER>();
    let header = header.ok_or_else(|| bad("the answer is too short"))?;
    if header[..2] != id.to_be_bytes() || header[2] & RESPONSE == 0 {
        return Err(other());
    }
    // Before the rest is read: it may end within a record.
    if header[2] & TRUNCATED != 0 {
        return Ok(None);
    }
    let packet = Packet::parse(answer).map_err(bad)?;
    let is_ours = match &packet.questions[..] {
        [question] => {
            question.qname.to_string().eq_ignore_ascii_case(name)
                && question.qtype == QTYPE::TYPE(kind)
                && question.qclass == QCLASS::CLASS(CLASS::IN)
        }
        _ => false,
    };
    if !is_ours {
        return Err(other());
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Ok(Some(Reply::Nothing)),
        other => return Err(io::Error::other(format!("the name server says {other:?}"))),
    }
    let mut addresses = Vec::new();
    let mut holds = u32::MAX;
    for record in &packet.answers {
        if record.class != CLASS::IN {
            continue;
        }
        match &record.rdata {
            rdata::RData::A(a) if kind == TYPE::A => {
                addresses.push(Ipv4Addr::from(a.address).into());
            }
            rdata::RData::AAAA(aaaa) if kind == TYPE::AAAA => {
                addresses.push(Ipv6Addr::from(aaaa.address).into());
            }
            // Another name for it, whose addresses follow.
            rdata::RData::CNAME(_) => {}
            _ => continue,
        }
        // RFC 2181: what has the highest bit set counts as zero.
        let ttl = i32::try_from(record.ttl).map_or(0, |_| record.ttl);
        holds = holds.min(ttl);
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
    let mut answer = vec![0; usize::from(payload) + 1];
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

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::ResourceRecord;

    const ID: u16 = 7;

    fn question(name: &'static str, kind: TYPE, class: CLASS) -> Question<'static> {
        let name = Name::new_unchecked(name);
        Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(class), false)
    }

    fn v4(class: CLASS, ttl: u32) -> ResourceRecord<'static> {
        let data = rdata::RData::A(rdata::A { address: 1 });
        ResourceRecord::new(Name::new_unchecked("x.test"), class, ttl, data)
    }

    fn answer(questions: Vec<Question<'_>>, records: Vec<ResourceRecord<'_>>) -> Vec<u8> {
        let mut packet = Packet::new_reply(ID);
        packet.questions = questions;
        packet.answers = records;
        packet.build_bytes_vec().unwrap()
    }

    fn ours(records: Vec<ResourceRecord<'_>>) -> Vec<u8> {
        answer(vec![question("x.test", TYPE::A, CLASS::IN)], records)
    }

    #[test]
    fn an_answer_has_the_question_and_nothing_else() {
        let right = || question("X.test", TYPE::A, CLASS::IN);
        for (questions, is_ours) in [
            (vec![right()], true),
            (vec![], false),
            (vec![right(), right()], false),
            (vec![question("y.test", TYPE::A, CLASS::IN)], false),
            (vec![question("x.test", TYPE::AAAA, CLASS::IN)], false),
            (vec![question("x.test", TYPE::A, CLASS::CH)], false),
        ] {
            let text = format!("{questions:?}");
            let answer = answer(questions, vec![v4(CLASS::IN, 1)]);
            let read = read(&answer, ID, "x.test", TYPE::A);
            assert_eq!(read.is_ok(), is_ours, "{text}");
        }
        let good = ours(vec![v4(CLASS::IN, 1)]);
        assert!(read(&good, ID + 1, "x.test", TYPE::A).is_err());
        assert!(read(&good[..HEADER - 1], ID, "x.test", TYPE::A).is_err());
        let mut query = good;
        query[2] &= !RESPONSE;
        assert!(read(&query, ID, "x.test", TYPE::A).is_err());
    }

    #[test]
    fn an_answer_may_be_cut_off_within_a_record() {
        let mut answer = ours(vec![v4(CLASS::IN, 1)]);
        answer.truncate(answer.len() - 2);
        assert!(read(&answer, ID, "x.test", TYPE::A).is_err());
        answer[2] |= TRUNCATED;
        assert_eq!(read(&answer, ID, "x.test", TYPE::A).unwrap(), None);
    }

    #[test]
    fn only_records_of_the_kind_count() {
        let v6 = ResourceRecord::new(
            Name::new_unchecked("x.test"),
            CLASS::IN,
            1,
            rdata::RData::AAAA(rdata::AAAA { address: 1 }),
        );
        let read = |records| {
            read(&ours(records), ID, "x.test", TYPE::A)
                .unwrap()
                .unwrap()
        };
        assert_eq!(read(vec![v4(CLASS::CH, 9), v6.clone()]), Reply::Nothing);
        let found =
            |ttl| Reply::Addresses(vec![Ipv4Addr::from(1).into()], Duration::from_secs(ttl));
        assert_eq!(read(vec![v6, v4(CLASS::IN, 9)]), found(9));
        assert_eq!(read(vec![v4(CLASS::IN, 1 << 31)]), found(0));
    }

    #[tokio::test]
    async fn a_datagram_longer_than_asked_for_is_asked_for_by_tcp() {
        let stream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = stream.local_addr().unwrap();
        let datagrams = UdpSocket::bind(address).await.unwrap();
        let serve = async {
            let mut query = [0; 512];
            let (_, client) = datagrams.recv_from(&mut query).await.unwrap();
            let mut long = ours(vec![v4(CLASS::IN, 1); 40]);
            long[..2].copy_from_slice(&query[..2]);
            datagrams.send_to(&long, client).await.unwrap();
            let (mut client, _) = stream.accept().await.unwrap();
            let length = client.read_u16().await.unwrap();
            client
                .read_exact(&mut query[..usize::from(length)])
                .await
                .unwrap();
            client
                .write_u16(long.len().try_into().unwrap())
                .await
                .unwrap();
            client.write_all(&long).await.unwrap();
        };
        let (reply, ()) = tokio::join!(ask(address, "x.test", TYPE::A, 512, false), serve);
        let Reply::Addresses(found, _) = reply.unwrap() else {
            panic!("no addresses");
        };
        assert_eq!(found.len(), 40);
    }
}
