//! Answers name queries, by UDP and TCP: addresses of the mesh's names at once, everything else as the pod's resolvers say.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::{IntCounter, Registry};
use proto_component::drain::Drain;
use proto_component::task;
use simple_dns::rdata::{CNAME, OPT, RData};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Names;
use super::forward::{Resolvers, Transport, read_message, write_message};
use super::table::Addresses;

/// Seconds that an answer may be kept, as in Istio.
const TTL: u32 = 30;
/// Queries that wait for other resolvers at a time; who comes then asks again.
const MAX_WAITING: usize = 256;
/// Streams at a time, and how long one may say nothing.
const MAX_STREAMS: usize = 64;
const IDLE: Duration = Duration::from_secs(10);
/// A message's head, and what a client takes that says nothing else.
const HEAD: usize = 12;
const SMALL: usize = 512;
/// Where the head has its flags, and the one of answers.
const FLAGS: usize = 2;
const RESPONSE: u8 = 0x80;
/// What we take, and say that we do.
const MAX_DATAGRAM: u16 = 4096;
/// The pause after the socket could not be read.
const RETRY: Duration = Duration::from_millis(50);

/// Counts, named as Istio's.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounter,
    upstream_requests: IntCounter,
    upstream_failures: IntCounter,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        Ok(Self {
            requests: counter("dns_requests_total", "Total number of DNS requests.")?,
            upstream_requests: counter(
                "dns_upstream_requests_total",
                "Total number of DNS requests forwarded to upstream.",
            )?,
            upstream_failures: counter(
                "dns_upstream_failures_total",
                "Total number of DNS failures requests forwarded to upstream.",
            )?,
        })
    }
}

/// An address that is taken, for both transports.
#[derive(Debug)]
pub struct Bound {
    datagrams: UdpSocket,
    streams: TcpListener,
}

impl Bound {
    /// Takes the address.
    pub(super) async fn new(address: SocketAddr) -> std::io::Result<Self> {
        let streams = TcpListener::bind(address).await?;
        // With port 0, the same for both.
        let datagrams = UdpSocket::bind(streams.local_addr()?).await?;
        Ok(Self { datagrams, streams })
    }

    /// The address.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.streams.local_addr().unwrap()
    }
}

/// The name server; cheap to clone.
#[derive(Clone, Debug)]
pub struct NameServer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    names: Names,
    resolvers: Resolvers,
    metrics: Metrics,
    waiting: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Which address comes first in the next answer.
    turn: AtomicUsize,
}

/// What is done with a message.
enum Decision {
    /// It is answered from the table.
    Answer(Vec<u8>),
    /// The pod's resolvers are asked.
    Ask,
    /// It is no query.
    Ignore,
}

impl NameServer {
    /// Answers from `names`, and asks `resolvers` about the rest.
    #[must_use]
    pub fn new(names: Names, resolvers: Resolvers, metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            names,
            resolvers,
            metrics,
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            turn: AtomicUsize::new(0),
        }))
    }

    /// The domain that the pod looks for short names in first.
    pub(super) fn first_search_domain(&self) -> String {
        self.0.resolvers.first_search_domain()
    }

    /// Serves an address until the drain's end.
    pub(super) fn serve(&self, bound: Bound, drain: &Drain) {
        let Bound { datagrams, streams } = bound;
        let (server, end) = (self.clone(), drain.clone());
        task::spawn("dns-udp", async move {
            tokio::select! {
                () = server.serve_datagrams(Arc::new(datagrams)) => {}
                () = end.expired() => {}
            }
        });
        let (server, end) = (self.clone(), drain.clone());
        task::spawn("dns-tcp", async move {
            tokio::select! {
                () = server.serve_streams(streams) => {}
                () = end.expired() => {}
            }
        });
    }

    async fn serve_datagrams(&self, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; usize::from(MAX_DATAGRAM)];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let query = &buffer[..length];
            match self.decide(query, Transport::Udp) {
                Decision::Ignore => {}
                // A client that has gone away does not care.
                Decision::Answer(answer) => drop(socket.send_to(&answer, client).await),
                Decision::Ask => {
                    let Ok(permit) = self.0.waiting.clone().try_acquire_owned() else {
                        tracing::debug!(target: "dns", "too many queries wait for resolvers");
                        continue;
                    };
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    task::spawn("dns-query", async move {
                        if let Some(answer) = server.ask(&query, Transport::Udp).await {
                            let _ = socket.send_to(&answer, client).await;
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn serve_streams(&self, listener: TcpListener) {
        loop {
            // Others wait in the listener's queue.
            let Ok(permit) = self.0.streams.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let server = self.clone();
            task::spawn("dns-stream", async move {
                if let Err(error) = server.serve_stream(stream).await {
                    tracing::debug!(target: "dns", %error, "a stream has ended");
                }
                drop(permit);
            });
        }
    }

    async fn serve_stream(&self, mut stream: TcpStream) -> std::io::Result<()> {
        while let Some(query) = timeout(IDLE, read_message(&mut stream)).await?? {
            let answer = match self.decide(&query, Transport::Tcp) {
                Decision::Answer(answer) => Some(answer),
                Decision::Ask => self.ask(&query, Transport::Tcp).await,
                Decision::Ignore => None,
            };
            let Some(answer) = answer else { break };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
        Ok(())
    }

    /// Asks the pod's resolvers; without an answer the client hears of the failure.
    async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        self.0.metrics.upstream_requests.inc();
        if let Some(answer) = self.0.resolvers.ask(query, transport).await {
            return Some(answer);
        }
        self.0.metrics.upstream_failures.inc();
        let query = Packet::parse(query).ok()?;
        let mut reply = reply_to(&query);
        *reply.rcode_mut() = RCODE::ServerFailure;
        reply.build_bytes_vec_compressed().ok()
    }

    fn decide(&self, message: &[u8], transport: Transport) -> Decision {
        if message.len() < HEAD || message[FLAGS] & RESPONSE != 0 {
            return Decision::Ignore;
        }
        self.0.metrics.requests.inc();
        // What cannot be read (a kind of record that came later, say) may still mean something to a resolver.
        let Ok(query) = Packet::parse(message) else {
            return Decision::Ask;
        };
        self.answer(&query, transport)
            .map_or(Decision::Ask, Decision::Answer)
    }

    /// The answer from the table, if the question is about one of its names.
    fn answer(&self, query: &Packet<'_>, transport: Transport) -> Option<Vec<u8>> {
        let [question] = query.questions.as_slice() else {
            return None;
        };
        let is_usual = query.opcode() == OPCODE::StandardQuery
            && matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
        let QTYPE::TYPE(kind @ (TYPE::A | TYPE::AAAA)) = question.qtype else {
            return None;
        };
        if !is_usual {
            return None;
        }
        let asked = question.qname.to_string();
        let name = asked.trim_end_matches('.').to_lowercase();
        let names = self.0.names.load();
        let found = names.as_ref()?.find(&name)?;
        let owner = Name::new(found.canonical.unwrap_or(&name)).ok()?;
        let mut reply = reply_to(query);
        let mut add = |name: &Name<'_>, data: RData<'_>| {
            let record = ResourceRecord::new(name.clone(), CLASS::IN, TTL, data);
            reply.answers.push(record.into_owned());
        };
        if found.canonical.is_some() {
            add(&question.qname, RData::CNAME(CNAME(owner.clone())));
        }
        for address in self.turned(found.addresses, kind) {
            // A name of ours is answered by what it has, even if that is nothing of this kind.
            match address {
                IpAddr::V4(address) => add(&owner, RData::A(address.into())),
                IpAddr::V6(address) => add(&owner, RData::AAAA(address.into())),
            }
        }
        let limit = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => query.opt().map_or(SMALL, |opt| {
                usize::from(opt.udp_packet_size.min(MAX_DATAGRAM)).max(SMALL)
            }),
        };
        let bytes = reply.build_bytes_vec_compressed().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        // The client asks again, by TCP.
        reply.answers.clear();
        reply.set_flags(PacketFlag::TRUNCATION);
        reply.build_bytes_vec_compressed().ok()
    }

    /// The addresses of a kind, each time with another one in front.
    fn turned(&self, addresses: &Addresses, kind: TYPE) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = match kind {
            TYPE::A => addresses.v4.iter().copied().map(IpAddr::V4).collect(),
            _ => addresses.v6.iter().copied().map(IpAddr::V6).collect(),
        };
        if all.len() > 1 {
            let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
            let count = all.len();
            all.rotate_left(turn % count);
        }
        all
    }
}

/// The beginning of a reply: number, flags, question, and EDNS for those that speak it.
fn reply_to<'a>(query: &Packet<'a>) -> Packet<'a> {
    let mut reply = Packet::new_reply(query.id());
    *reply.opcode_mut() = query.opcode();
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    reply.questions = query.questions.clone();
    if query.opt().is_some() {
        *reply.opt_mut() = Some(OPT {
            opt_codes: Vec::new(),
            udp_packet_size: MAX_DATAGRAM,
            version: 0,
        });
    }
    reply
}

#[cfg(test)]
mod tests;
