//! A name server with a table.

use super::Server;
use crate::{case::Says, connection::Connection};
use anyhow::Context as _;
use simple_dns::{
    CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::net::UdpSocket;

/// Seconds that an answer holds.
const TTL: u32 = 300;

/// The socket beside the one for streams.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    socket.set_nonblocking(true)?;
    Ok(UdpSocket::from_std(socket)?)
}

pub(super) async fn by_datagram(server: Arc<Server>, socket: UdpSocket) {
    let mut query = vec![0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut query).await {
        if let Ok(Some(answer)) = server.name_answer(&query[..length], true) {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

pub(super) async fn by_stream(server: &Server, mut connection: Connection) -> anyhow::Result<()> {
    loop {
        let buffer = &connection.buffer;
        let length = match buffer.first_chunk() {
            Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            None => usize::MAX,
        };
        if buffer.len() < length {
            if !connection.fill().await? {
                return Ok(());
            }
            continue;
        }
        let query: Vec<u8> = connection.buffer.drain(..length).collect();
        if let Some(answer) = server.name_answer(&query[2..], false)? {
            let length = u16::try_from(answer.len())?;
            connection
                .send(&[&length.to_be_bytes()[..], &answer].concat())
                .await;
        }
    }
}

impl Server {
    /// The answer to a query, if there is to be one.
    fn name_answer(&self, query: &[u8], is_datagram: bool) -> anyhow::Result<Option<Vec<u8>>> {
        let mut answer = Packet::parse(query)?.into_reply();
        answer.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
        let question = answer.questions.first().context("a question")?;
        let (name, kind) = (question.qname.clone(), question.qtype);
        let known = self
            .script
            .names
            .get(&name.to_string().to_ascii_lowercase());
        match (self.script.says, known) {
            (Some(Says::Nothing), _) => return Ok(None),
            (Some(Says::Failed), _) => *answer.rcode_mut() = RCODE::ServerFailure,
            (Some(Says::Cut), _) if is_datagram => answer.set_flags(PacketFlag::TRUNCATION),
            (_, None) => *answer.rcode_mut() = RCODE::NameError,
            (_, Some(known)) => {
                let records = known.iter().filter_map(|ip| match (*ip, kind) {
                    (IpAddr::V4(ip), QTYPE::TYPE(TYPE::A)) => Some(RData::A(A::from(ip))),
                    (IpAddr::V6(ip), QTYPE::TYPE(TYPE::AAAA)) => Some(RData::AAAA(AAAA::from(ip))),
                    _ => None,
                });
                answer.answers = records
                    .map(|record| ResourceRecord::new(name.clone(), CLASS::IN, TTL, record))
                    .collect();
            }
        }
        Ok(Some(answer.build_bytes_vec()?))
    }
}
