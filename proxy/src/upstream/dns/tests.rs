//! What answers, no addresses and failures do to strict and to logical clusters. Envoy was asked what it does.

use super::{resolver::has_no_address, *};
use crate::{
    stats::{Counter, Store},
    transport::SecretSlots,
    upstream::ClusterConfig,
};
use simple_dns::{CLASS, Name, Packet, PacketFlag, ResourceRecord, rdata};
use std::collections::HashMap;
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

/// Longer than anything takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name server that answers as it is told, and counts what it is asked.
struct Server {
    socket: UdpSocket,
    /// How long the answer for a name holds; there is none for the others.
    ttls: HashMap<&'static str, u32>,
    asked: parking_lot::Mutex<HashMap<String, usize>>,
}

impl Server {
    async fn new(ttls: &[(&'static str, u32)]) -> Self {
        Self {
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            ttls: ttls.iter().copied().collect(),
            asked: parking_lot::Mutex::default(),
        }
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().get(name).copied().unwrap_or(0)
    }

    async fn serve(&self) {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = self.socket.recv_from(&mut buffer).await.unwrap();
            let query = Packet::parse(&buffer[..length]).unwrap();
            let name = query.questions[0].qname.to_string();
            *self.asked.lock().entry(name.clone()).or_default() += 1;
            let Some(ttl) = self.ttls.get(name.as_str()) else {
                continue;
            };
            let mut reply = Packet::new_reply(query.id());
            reply.set_flags(PacketFlag::RESPONSE);
            reply.questions.clone_from(&query.questions);
            let data = rdata::RData::A(rdata::A { address: 1 });
            let name = Name::new_unchecked(&name);
            reply
                .answers
                .push(ResourceRecord::new(name, CLASS::IN, *ttl, data));
            let reply = reply.build_bytes_vec().unwrap();
            self.socket.send_to(&reply, client).await.unwrap();
        }
    }

    /// A cluster of names that asks this server, and waits for each answer for minutes.
    fn cluster(&self, names: &[&str]) -> Arc<Cluster> {
        let endpoints: Vec<String> = (80..)
            .zip(names)
            .map(|(port, name)| {
                format!("{{endpoint: {{address: {{socket_address: {{address: {name}, port_value: {port}}}}}}}}}")
            })
            .collect();
        let text = format!(
            "{{name: c, type: STRICT_DNS, dns_lookup_family: V4_ONLY, respect_dns_ttl: true, dns_refresh_rate: 3600s, \
             load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}]}}]}}, \
             typed_dns_resolver_config: {{name: r, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, \
             query_timeout_seconds: 600, dns_resolver_options: {{no_default_search_domain: true}}, \
             resolvers: [{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}]}}}}}}",
            endpoints.join(", "),
            self.socket.local_addr().unwrap().port()
        );
        cluster(&text)
    }

    /// Serves until something is so.
    async fn until(&self, is_so: impl Fn() -> bool) {
        let poll = async {
            while !is_so() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let served = async {
            tokio::select! {
                () = poll => {}
                () = self.serve() => {}
            }
        };
        timeout(PATIENCE, served).await.unwrap();
    }
}

fn cluster(text: &str) -> Arc<Cluster> {
    let wire = proto::yaml::from_str(text).unwrap();
    let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
    Cluster::new(config, &Arc::new(Store::default()).root()).unwrap()
}

/// The hosts after each round, of a name that had one address before.
fn hosts_after(kind: &str, rounds: Vec<io::Result<Vec<SocketAddr>>>) -> (Vec<usize>, [u64; 3]) {
    let text = format!(
        "{{name: c, type: {kind}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: x.test, port_value: 80}}}}}}}}]}}]}}}}"
    );
    let cluster = cluster(&text);
    let assignment = cluster.config.assignment.clone().unwrap();
    let is_logical = kind == "LOGICAL_DNS";
    let mut answers = Answers::new();
    let mut counts = Vec::new();
    for answer in rounds {
        note(&cluster, &mut answers, ("x.test", 80), answer, is_logical);
        let localities = endpoints(&cluster, &assignment, &answers, is_logical).unwrap();
        cluster.set_hosts(localities, &assignment);
        counts.push(cluster.hosts().hosts().count());
    }
    let stats = &cluster.stats;
    let stats = [
        &stats.update_success,
        &stats.update_failure,
        &stats.update_empty,
    ];
    (counts, stats.map(Counter::value))
}

fn rounds() -> Vec<io::Result<Vec<SocketAddr>>> {
    let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
    vec![
        Ok(vec![address(1), address(2)]),
        Err(io::Error::other(
            "failed to lookup address information: Temporary failure in name resolution",
        )),
        Ok(Vec::new()),
        Ok(vec![address(3)]),
    ]
}

#[test]
fn a_name_without_addresses_takes_the_hosts_of_a_strict_cluster_along() {
    assert_eq!(
        hosts_after("STRICT_DNS", rounds()),
        (vec![2, 2, 0, 1], [3, 1, 0])
    );
}

#[test]
fn a_logical_cluster_keeps_its_host_whatever_becomes_of_the_name() {
    assert_eq!(
        hosts_after("LOGICAL_DNS", rounds()),
        (vec![1, 1, 1, 1], [2, 2, 0])
    );
}

#[test]
fn what_does_not_exist_is_told_from_what_cannot_be_asked() {
    for (text, is_none) in [
        (
            "failed to lookup address information: Name or service not known",
            true,
        ),
        (
            "failed to lookup address information: No address associated with hostname",
            true,
        ),
        (
            "failed to lookup address information: Temporary failure in name resolution",
            false,
        ),
        ("the resolver does not answer", false),
    ] {
        assert_eq!(has_no_address(&io::Error::other(text)), is_none, "{text}");
    }
}

#[tokio::test]
async fn a_name_without_an_answer_holds_up_no_other() {
    let server = Server::new(&[("b.test", 60), ("d.test", 60)]).await;
    let cluster = server.cluster(&["a.test", "b.test", "c.test", "d.test"]);
    let running = proto_component::task::spawn("dns", run_dns(cluster.clone()));
    server.until(|| cluster.hosts().hosts().count() == 2).await;
    assert!(cluster.is_initialized());
    assert_eq!((server.asked("a.test"), server.asked("c.test")), (1, 1));
    // Nor is it waited for when the cluster goes.
    cluster.close();
    timeout(PATIENCE, running).await.unwrap().unwrap();
}

#[tokio::test]
async fn each_name_has_a_schedule_of_its_own() {
    let server = Server::new(&[("long.test", 3600), ("short.test", 1)]).await;
    let cluster = server.cluster(&["long.test", "short.test"]);
    let running = proto_component::task::spawn("dns", run_dns(cluster.clone()));
    server.until(|| server.asked("short.test") == 3).await;
    assert_eq!(server.asked("long.test"), 1);
    cluster.close();
    timeout(PATIENCE, running).await.unwrap().unwrap();
}
