//! Name servers asked by ourselves, the way c-ares does for Envoy: what the machine itself knows first, then one server after the
//! other, each in turn as often as configured, with more patience every time round. A query has a port of its own, so limits
//! on queries from one port always hold.

use super::{
    DnsFamily,
    host_files::{PORT, ResolvConf, known},
    query::{Reply, ask},
};
use crate::{
    invalid::{At as _, Invalid},
    wire::AnyAddress,
};
use nix::ifaddrs::getifaddrs;
use proto::envoy::{
    config::core::v3::{Address, address::Address as AddressKind},
    extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig as Wire,
};
use simple_dns::TYPE;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::timeout;

/// Envoy's defaults.
const TIMEOUT: u64 = 5;
const TRIES: u32 = 4;
/// Longest datagrams that are asked for.
const PAYLOAD: u16 = 1232;

/// Whom to ask, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NameServers {
    addresses: Vec<SocketAddr>,
    search: Vec<String>,
    dots: usize,
    by_tcp: bool,
    timeout: Duration,
    tries: u32,
    rotates: bool,
    payload: u16,
    leaves_out_unroutable: bool,
    start: Start,
}

/// The server that is asked first unless they take turns: one that has not failed since another did. No part of the
/// configuration, so all are equal.
#[derive(Debug, Default)]
struct Start(AtomicUsize);

impl PartialEq for Start {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Start {}

/// A question to a server; one that is not answered, or not waited for to the end, makes the next server the first.
struct Attempt<'a> {
    servers: &'a NameServers,
    index: usize,
    is_answered: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let next = (self.index + 1) % self.servers.addresses.len();
            let start = &self.servers.start.0;
            // Others may have found out before.
            let _ = start.compare_exchange(self.index, next, Relaxed, Relaxed);
        }
    }
}

impl TryFrom<Wire> for NameServers {
    type Error = Invalid;

    fn try_from(wire: Wire) -> Result<Self, Invalid> {
        if wire.qcache_max_ttl.unwrap_or_default() > 0 {
            return Err(Invalid::unsupported("a cache").at("qcache_max_ttl"));
        }
        let payload = wire.edns0_max_payload_size.unwrap_or(u32::from(PAYLOAD));
        if !(512..=4096).contains(&payload) {
            let error = Invalid::new("it must be between 512 and 4096");
            return Err(error.at("edns0_max_payload_size"));
        }
        for (is_zero, field) in [
            (
                wire.query_timeout_seconds == Some(0),
                "query_timeout_seconds",
            ),
            (wire.query_tries == Some(0), "query_tries"),
        ] {
            if is_zero {
                return Err(Invalid::new("it must be at least 1").at(field));
            }
        }
        let options = wire.dns_resolver_options.unwrap_or_default();
        let machine = ResolvConf::read();
        let mut addresses = Vec::new();
        for (index, address) in wire.resolvers.iter().enumerate() {
            addresses.push(server(address).at(format_args!("resolvers[{index}]"))?);
        }
        let is_fallback = wire.use_resolvers_as_fallback && !machine.servers.is_empty();
        if addresses.is_empty() || is_fallback {
            addresses = machine.servers;
        }
        if addresses.is_empty() {
            addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))];
        }
        Ok(Self {
            addresses,
            search: if options.no_default_search_domain {
                Vec::new()
            } else {
                machine.search
            },
            dots: machine.dots,
            by_tcp: options.use_tcp_for_dns_lookups,
            timeout: Duration::from_secs(wire.query_timeout_seconds.unwrap_or(TIMEOUT)),
            tries: wire.query_tries.unwrap_or(TRIES),
            rotates: wire.rotate_nameservers,
            payload: u16::try_from(payload).unwrap_or(PAYLOAD),
            leaves_out_unroutable: wire.filter_unroutable_families,
            start: Start::default(),
        })
    }
}

/// A server's address; what protocol it names does not count.
fn server(wire: &Address) -> Result<SocketAddr, Invalid> {
    let mut wire = wire.clone();
    if let Some(AddressKind::SocketAddress(address)) = &mut wire.address {
        address.protocol = 0;
    }
    let mut address = AnyAddress::try_from(&wire)?.socket()?;
    if address.port() == 0 {
        address.set_port(PORT);
    }
    Ok(address)
}

impl NameServers {
    /// The addresses of a name, and how long they hold.
    pub(super) async fn resolve(
        &self,
        name: &str,
        family: DnsFamily,
    ) -> io::Result<(Vec<IpAddr>, Option<Duration>)> {
        let (has_v4, has_v6) = if self.leaves_out_unroutable {
            families()
        } else {
            (true, true)
        };
        let is_routable = |ip: &IpAddr| if ip.is_ipv4() { has_v4 } else { has_v6 };
        let mut found = known(name).await;
        found.retain(|ip| match family {
            DnsFamily::V4Only => ip.is_ipv4(),
            DnsFamily::V6Only => ip.is_ipv6(),
            DnsFamily::V4Preferred | DnsFamily::Auto | DnsFamily::All => true,
        });
        if found.is_empty() {
            return self.ask_for(name, family, is_routable).await;
        }
        found.retain(is_routable);
        Ok((found, None))
    }

    async fn ask_for(
        &self,
        name: &str,
        family: DnsFamily,
        is_routable: impl Fn(&IpAddr) -> bool,
    ) -> io::Result<(Vec<IpAddr>, Option<Duration>)> {
        let rounds: &[&[TYPE]] = match family {
            DnsFamily::V4Only => &[&[TYPE::A]],
            DnsFamily::V6Only => &[&[TYPE::AAAA]],
            DnsFamily::V4Preferred => &[&[TYPE::A], &[TYPE::AAAA]],
            DnsFamily::Auto => &[&[TYPE::AAAA], &[TYPE::A]],
            DnsFamily::All => &[&[TYPE::A, TYPE::AAAA]],
        };
        let mut outcome = Ok((Vec::new(), None));
        for kinds in rounds {
            let asked = kinds.iter().map(|kind| self.search(name, *kind));
            let (mut found, mut ttl, mut failure) = (Vec::new(), None, None);
            for answer in futures::future::join_all(asked).await {
                match answer {
                    Ok((addresses, holds)) => {
                        found.extend(addresses);
                        ttl = ttl.into_iter().chain(holds).min();
                    }
                    Err(error) => failure = Some(error),
                }
            }
            // A family that cannot be reached is none, so that the other one is asked for.
            found.retain(&is_routable);
            match failure {
                Some(error) if found.is_empty() => outcome = Err(error),
                _ if found.is_empty() => outcome = Ok((found, None)),
                _ => return Ok((found, ttl)),
            }
        }
        outcome
    }

    /// Looks for a name as it is and in the domains, in the order that its dots ask for.
    async fn search(&self, name: &str, kind: TYPE) -> io::Result<(Vec<IpAddr>, Option<Duration>)> {
        for candidate in self.candidates(name) {
            if let Reply::Addresses(found, ttl) = self.query(&candidate, kind).await? {
                return Ok((found, Some(ttl)));
            }
        }
        Ok((Vec::new(), None))
    }

    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let mut names: Vec<String> = self
            .search
            .iter()
            .map(|domain| format!("{name}.{}", domain.trim_end_matches('.')))
            .collect();
        let is_long = name.matches('.').count() >= self.dots;
        let at = if is_long { 0 } else { names.len() };
        names.insert(at, name.to_owned());
        names
    }

    /// Asks one server after the other until one knows whether there is something.
    async fn query(&self, name: &str, kind: TYPE) -> io::Result<Reply> {
        let first = if self.rotates {
            rand::random_range(0..self.addresses.len())
        } else {
            self.start.0.load(Relaxed)
        };
        let mut last = io::Error::new(io::ErrorKind::TimedOut, "no name server answers");
        for round in 0..self.tries {
            let patience = self.timeout.saturating_mul(1 << round.min(16));
            for step in 0..self.addresses.len() {
                let mut attempt = Attempt {
                    servers: self,
                    index: (first + step) % self.addresses.len(),
                    is_answered: false,
                };
                let server = self.addresses[attempt.index];
                let asked = ask(server, name, kind, self.payload, self.by_tcp);
                match timeout(patience, asked).await {
                    Ok(Ok(reply)) => {
                        attempt.is_answered = true;
                        return Ok(reply);
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(target: "dns", %server, name, %error, "no answer");
                        last = error;
                    }
                    Err(_) => tracing::debug!(target: "dns", %server, name, "no answer in time"),
                }
            }
        }
        Err(last)
    }
}

/// Whether the machine has addresses of either family that others can reach; if it does not say, it may have both.
fn families() -> (bool, bool) {
    let Ok(all) = getifaddrs() else {
        return (true, true);
    };
    let addresses = all.filter_map(|interface| interface.address);
    addresses.fold((false, false), |(v4, v6), address| {
        let is_v4 = address
            .as_sockaddr_in()
            .is_some_and(|a| !a.ip().is_loopback());
        let is_v6 = address
            .as_sockaddr_in6()
            .is_some_and(|a| !a.ip().is_loopback());
        (v4 || is_v4, v6 || is_v6)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, ResourceRecord, rdata};
    use tokio::net::UdpSocket;

    /// Answers what is asked: with an address of the kind, or that it will not.
    async fn serve(socket: &UdpSocket, refuses: bool) {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Packet::parse(&buffer[..length]).unwrap();
            let data = match query.questions[0].qtype {
                QTYPE::TYPE(TYPE::A) => rdata::RData::A(rdata::A { address: 1 }),
                _ => rdata::RData::AAAA(rdata::AAAA { address: 1 }),
            };
            let mut reply = Packet::new_reply(query.id());
            reply.set_flags(PacketFlag::RESPONSE);
            reply.questions.clone_from(&query.questions);
            if refuses {
                *reply.rcode_mut() = simple_dns::RCODE::Refused;
            }
            let name = Name::new_unchecked("x.test");
            let record = ResourceRecord::new(name, CLASS::IN, 1, data);
            reply.answers.push(record);
            let reply = reply.build_bytes_vec().unwrap();
            socket.send_to(&reply, client).await.unwrap();
        }
    }

    async fn socket() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.unwrap()
    }

    fn servers(sockets: &[&UdpSocket]) -> NameServers {
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap());
        NameServers {
            addresses: addresses.collect(),
            search: Vec::new(),
            timeout: Duration::from_secs(60),
            ..NameServers::try_from(Wire::default()).unwrap()
        }
    }

    #[tokio::test]
    async fn what_cannot_be_reached_makes_way_for_the_other_family() {
        let socket = socket().await;
        let servers = servers(&[&socket]);
        let asked = async {
            for (family, can_v6, want) in [
                (DnsFamily::Auto, true, Some("::1")),
                (DnsFamily::Auto, false, Some("0.0.0.1")),
                (DnsFamily::All, false, Some("0.0.0.1")),
                (DnsFamily::V6Only, false, None),
            ] {
                let is_routable = |ip: &IpAddr| can_v6 || ip.is_ipv4();
                let answer = servers.ask_for("x.test", family, is_routable).await;
                let want: Vec<IpAddr> = want.iter().map(|ip| ip.parse().unwrap()).collect();
                assert_eq!(answer.unwrap().0, want, "{family:?} {can_v6}");
            }
        };
        tokio::select! {
            () = asked => {}
            () = serve(&socket, false) => {}
        }
    }

    #[tokio::test]
    async fn a_server_that_fails_is_not_asked_first_again() {
        let (bad, good, silent) = (socket().await, socket().await, socket().await);
        let all = servers(&[&bad, &good, &silent]);
        let start = || all.start.0.load(Relaxed);
        let asked = async {
            for _ in 0..2 {
                all.query("x.test", TYPE::A).await.unwrap();
                assert_eq!(start(), 1);
            }
        };
        tokio::select! {
            () = asked => {}
            () = serve(&bad, true) => {}
            () = serve(&good, false) => {}
        }
        // Nor is one that had no more time.
        all.start.0.store(2, Relaxed);
        let mut given_up = Box::pin(all.query("x.test", TYPE::A));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        assert_eq!(start(), 0);
        assert_eq!(all, servers(&[&bad, &good, &silent]));
    }

    #[test]
    fn short_names_are_looked_for_in_the_domains_first() {
        let servers = NameServers {
            search: vec!["a.test".to_owned(), "b.test.".to_owned()],
            dots: 1,
            ..NameServers::try_from(Wire::default()).unwrap()
        };
        for (name, want) in [
            ("x", &["x.a.test", "x.b.test", "x"][..]),
            ("x.y", &["x.y", "x.y.a.test", "x.y.b.test"]),
            ("x.", &["x"]),
        ] {
            assert_eq!(servers.candidates(name), want, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        for (text, want) in [
            ("{qcache_max_ttl: 1}", "qcache_max_ttl"),
            ("{edns0_max_payload_size: 100}", "edns0_max_payload_size"),
            ("{query_tries: 0}", "query_tries"),
            ("{query_timeout_seconds: 0}", "query_timeout_seconds"),
            ("{resolvers: [{pipe: {path: /x}}]}", "resolvers[0]"),
            (
                "{resolvers: [{socket_address: {address: x.test, port_value: 53}}]}",
                "resolvers[0]",
            ),
        ] {
            let wire: Wire = proto::yaml::from_str(text).unwrap();
            let error = NameServers::try_from(wire).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn a_server_without_a_port_has_the_usual_one() {
        let text = "{resolvers: [{socket_address: {protocol: UDP, address: 10.0.0.1}}]}";
        let servers = NameServers::try_from(proto::yaml::from_str::<Wire>(text).unwrap()).unwrap();
        assert_eq!(servers.addresses, ["10.0.0.1:53".parse().unwrap()]);
    }
}
