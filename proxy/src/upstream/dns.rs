//! DNS clusters: names resolved again and again. Where there is no answer the last one stays; as in
//! Envoy a name that no longer has addresses takes the hosts of a strict cluster along, but not the one of a logical cluster.

mod host_files;
mod name_servers;
mod options;
mod query;
mod resolver;
#[cfg(test)]
mod tests;

pub(crate) use options::{DnsFamily, DnsOptions, failure_refresh};
pub(crate) use resolver::{Found, Resolver};

use super::{Cluster, Discovery, HostAddress, LocalityEndpoints, endpoints::Resolved};
use crate::{invalid::Invalid, wire::AnyAddress};
use proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use proto_component::backoff::Backoff;
use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

type Answers = BTreeMap<(String, u16), Vec<SocketAddr>>;

/// What became of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    has_answers: bool,
    has_failures: bool,
}

/// Resolves the names of `cluster` until it is closed.
pub(crate) async fn run_dns(cluster: Arc<Cluster>) {
    let (options, is_logical) = match &cluster.config.discovery {
        Discovery::StrictDns(options) => (options, false),
        Discovery::LogicalDns(options) => (options, true),
        _ => return,
    };
    let Some(assignment) = cluster.config.assignment.clone() else {
        return;
    };
    let names = names(&assignment);
    let resolver = cluster.resolver(options.resolver.as_ref());
    let mut answers = Answers::new();
    let (first, most) = options.failure_refresh;
    let mut backoff = Backoff::new(first, most);
    if !options.is_awaited {
        cluster.set_initialized();
    }
    let mut is_first = true;
    loop {
        cluster.stats.update_attempt.inc();
        let mut round = Round::default();
        let mut ttl = None;
        for (name, port) in &names {
            let answer = resolver.resolve(name, *port, options.family).await;
            let holds = answer.as_ref().ok().and_then(|found| found.ttl);
            ttl = ttl.into_iter().chain(holds).min();
            let answer = answer.map(|found| found.addresses);
            round.note(&cluster, &mut answers, (name, *port), answer, is_logical);
        }
        // Names that never had an answer have no hosts yet; the others keep their last.
        if round.has_answers || is_first {
            match endpoints(&cluster, &assignment, &answers, is_logical) {
                Ok(localities) => cluster.set_hosts(localities, &assignment),
                Err(error) => {
                    tracing::warn!(target: "dns", cluster = %cluster.name(), %error, "assignment refused");
                }
            }
        }
        is_first = false;
        let pause = if round.has_failures {
            backoff.next_delay()
        } else {
            backoff.reset();
            let holds = ttl.filter(|ttl| options.respects_ttl && !ttl.is_zero());
            holds.unwrap_or(options.refresh) + options.jitter.mul_f64(rand::random())
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cluster.closed.cancelled() => return,
        }
    }
}

fn names(assignment: &ClusterLoadAssignment) -> Vec<(String, u16)> {
    let endpoints = assignment
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints);
    let mut names: Vec<_> = endpoints
        .filter_map(|endpoint| {
            let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
                return None;
            };
            match AnyAddress::try_from(endpoint.address.as_ref()?).ok()? {
                AnyAddress::Name(name, port) => Some((name, port)),
                AnyAddress::Socket(_) | AnyAddress::Pipe(_) => None,
            }
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Round {
    /// Counts the answer for a name, and keeps it if it is to count.
    fn note(
        &mut self,
        cluster: &Cluster,
        answers: &mut Answers,
        (name, port): (&str, u16),
        answer: io::Result<Vec<SocketAddr>>,
        is_logical: bool,
    ) {
        let none = || io::Error::other("the name has no address");
        let answer = answer.and_then(|addresses| {
            let is_failure = is_logical && addresses.is_empty();
            if is_failure {
                Err(none())
            } else {
                Ok(addresses)
            }
        });
        match answer {
            Ok(addresses) => {
                self.has_answers = true;
                cluster.stats.update_success.inc();
                answers.insert((name.to_owned(), port), addresses);
            }
            Err(error) => {
                self.has_failures = true;
                cluster.stats.update_failure.inc();
                tracing::debug!(target: "dns", cluster = %cluster.name(), name, %error, "cannot resolve");
            }
        }
    }
}

fn endpoints(
    cluster: &Cluster,
    assignment: &ClusterLoadAssignment,
    answers: &Answers,
    is_logical: bool,
) -> Result<Vec<LocalityEndpoints>, Invalid> {
    cluster.localities(assignment, &|address| {
        let found = match address {
            AnyAddress::Socket(address) => vec![*address],
            AnyAddress::Name(name, port) => answers
                .get(&(name.clone(), *port))
                .cloned()
                .unwrap_or_default(),
            AnyAddress::Pipe(path) => {
                return Ok(vec![HostAddress::Pipe(Arc::new(path.clone())).into()]);
            }
        };
        // A logical host is one host, whatever addresses it has now.
        if is_logical {
            return Ok(Resolved::one(found).into_iter().collect());
        }
        let hosts = found.into_iter().map(HostAddress::Socket);
        Ok(hosts.map(Resolved::from).collect())
    })
}
