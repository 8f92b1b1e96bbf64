//! The cluster's name server: A records of services, answered from a table that is swapped whole.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;
use parking_lot::RwLock;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE, rdata};
use tokio::net::UdpSocket;

use super::node::Node;

/// The domain of the cluster.
pub(crate) const DOMAIN: &str = "cluster.local";
/// Seconds that an answer may be kept: short, since pods of headless services come and go.
const TTL: u32 = 5;

/// What names mean.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    /// Addresses by (namespace, service): the cluster address, or the pods' if there is none.
    pub services: BTreeMap<(String, String), Vec<Ipv4Addr>>,
    /// Names outside the cluster that a service of type `ExternalName` stands for.
    pub aliases: BTreeMap<(String, String), String>,
    /// The namespace of each pod: in it short names are looked up.
    pub namespaces: BTreeMap<Ipv4Addr, String>,
}

/// The zone that is served now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Arc<RwLock<Arc<Zone>>>);

impl Zone {
    /// The addresses of `name` for a pod in `namespace`; none when there is no such name.
    pub(crate) fn resolve(&self, name: &str, namespace: Option<&str>) -> Option<Vec<Ipv4Addr>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let name = name
            .strip_suffix(DOMAIN)
            .map_or(name.as_str(), |rest| rest.trim_end_matches('.'));
        let labels: Vec<&str> = name.split('.').collect();
        let (service, namespace) = match labels.as_slice() {
            [service] if !name.is_empty() => (*service, namespace?),
            [service, namespace] | [service, namespace, "svc"] => (*service, *namespace),
            _ => return None,
        };
        let key = (namespace.to_owned(), service.to_owned());
        if let Some(addresses) = self.services.get(&key) {
            return Some(addresses.clone());
        }
        // One step is enough: an alias of an alias is not a thing in Kubernetes either.
        let target = self.aliases.get(&key)?;
        self.services.get(&split_host(target)?).cloned()
    }
}

fn split_host(host: &str) -> Option<(String, String)> {
    let mut labels = host.split('.');
    let service = labels.next()?.to_owned();
    Some((labels.next()?.to_owned(), service))
}

impl Names {
    /// Serves `zone` from now on.
    pub(crate) fn set(&self, zone: Zone) {
        *self.0.write() = Arc::new(zone);
    }

    /// The zone of this moment.
    pub(crate) fn zone(&self) -> Arc<Zone> {
        self.0.read().clone()
    }

    /// Answers on `address` until the node ends.
    pub(crate) async fn serve(&self, node: &Node, address: SocketAddr) -> anyhow::Result<()> {
        let names = self.clone();
        node.run("dns-bind", async move {
            let socket = UdpSocket::bind(address)
                .await
                .with_context(|| format!("listen for name queries on {address}"))?;
            proto_component::task::spawn("dns", async move {
                let mut buffer = [0; 1500];
                loop {
                    let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
                        continue;
                    };
                    if let Some(answer) = answer(&buffer[..length], client.ip(), &names.zone()) {
                        // A client that has gone away asks again if it still cares.
                        let _ = socket.send_to(&answer, client).await;
                    }
                }
            });
            Ok(())
        })
        .await
    }
}

/// The reply to one query; none for what is not a query at all.
fn answer(query: &[u8], client: IpAddr, zone: &Zone) -> Option<Vec<u8>> {
    let query = Packet::parse(query).ok()?;
    if query.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    }
    let question = query.questions.first()?.clone();
    let namespace = match client {
        IpAddr::V4(address) => zone.namespaces.get(&address).map(String::as_str),
        IpAddr::V6(_) => None,
    };
    let name = question.qname.to_string();
    match zone.resolve(&name, namespace) {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(addresses) if matches!(question.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => {
            for address in addresses {
                let data = rdata::RData::A(rdata::A {
                    address: address.to_bits(),
                });
                let name = Name::new(&name).ok()?.into_owned();
                reply
                    .answers
                    .push(ResourceRecord::new(name, CLASS::IN, TTL, data));
            }
        }
        // The name exists, without a record of that type.
        Some(_) => {}
    }
    reply.questions.push(question);
    reply.build_bytes_vec_compressed().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::{QCLASS, Question};

    fn zone() -> Zone {
        let mut zone = Zone::default();
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let address = Ipv4Addr::new(10, 96, 0, 20);
        zone.services
            .insert(key("default", "reviews"), vec![address]);
        zone.aliases.insert(
            key("default", "alias"),
            "reviews.default.svc.cluster.local".into(),
        );
        zone.namespaces
            .insert(Ipv4Addr::new(10, 244, 0, 9), "default".into());
        zone
    }

    #[test]
    fn a_service_is_found_by_each_of_its_names() {
        let zone = zone();
        for name in [
            "reviews.default",
            "reviews.default.svc",
            "Reviews.default.svc.cluster.local.",
        ] {
            assert!(zone.resolve(name, None).is_some(), "{name}");
        }
        assert!(zone.resolve("reviews", Some("default")).is_some());
        assert!(zone.resolve("alias.default", None).is_some());
        assert!(zone.resolve("reviews", Some("other")).is_none());
        assert!(
            zone.resolve("reviews.default.svc.cluster.local.example.com", None)
                .is_none()
        );
        assert!(zone.resolve("cluster.local", None).is_none());
    }

    #[test]
    fn a_query_is_answered_and_an_unknown_name_refused() {
        let ask = |name: &str, kind: TYPE| {
            let mut query = Packet::new_query(7);
            query.questions.push(Question::new(
                Name::new(name).unwrap().into_owned(),
                kind.into(),
                QCLASS::CLASS(CLASS::IN),
                false,
            ));
            let bytes = query.build_bytes_vec().unwrap();
            answer(&bytes, "10.244.0.9".parse().unwrap(), &zone()).unwrap()
        };
        let found = ask("reviews", TYPE::A);
        let found = Packet::parse(&found).unwrap();
        assert_eq!(
            (found.id(), found.answers.len(), found.rcode()),
            (7, 1, RCODE::NoError)
        );
        let other_type = ask("reviews", TYPE::AAAA);
        let other_type = Packet::parse(&other_type).unwrap();
        assert_eq!(
            (other_type.answers.len(), other_type.rcode()),
            (0, RCODE::NoError)
        );
        let unknown = ask("nothing.here", TYPE::A);
        assert_eq!(Packet::parse(&unknown).unwrap().rcode(), RCODE::NameError);
        assert!(answer(b"garbage", "10.244.0.9".parse().unwrap(), &zone()).is_none());
    }
}
