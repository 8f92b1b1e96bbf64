//! DNS clusters: names resolved again and again with the system's resolver. Where there is no answer the last one stays; as in
//! Envoy a name that no longer has addresses takes the hosts of a strict cluster along, but not the one of a logical cluster.

mod options;
#[cfg(test)]
mod tests;

pub(crate) use options::{DnsFamily, DnsOptions, failure_refresh};

use super::{Cluster, Discovery, HostAddress, LocalityEndpoints, endpoints::Resolved};
use crate::{invalid::Invalid, wire::AnyAddress};
use proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use proto_component::backoff::Backoff;
use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

/// Patience with the resolver.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the C libraries say of a name that does not exist, or has no addresses; codes are not to be had.
const NO_ADDRESS: [&str; 4] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
];

type Answers = BTreeMap<(String, u16), Vec<SocketAddr>>;

/// What became of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    has_answers: bool,
    has_failures: bool,
}

/// Resolves the names of `cluster` until it is closed.
pub(crate) async fn run_dns(cluster: Arc<Cluster>) {
    let (options, is_logical) = match cluster.config.discovery {
        Discovery::StrictDns(options) => (options, false),
        Discovery::LogicalDns(options) => (options, true),
        _ => return,
    };
    let Some(assignment) = cluster.config.assignment.clone() else {
        return;
    };
    let names = names(&assignment);
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
        for (name, port) in &names {
            let answer = resolve(name, *port, options.family).await;
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
            options.refresh + options.jitter.mul_f64(rand::random())
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

/// The addresses of a name: none if it does not exist, an error if that cannot be told.
pub(super) async fn resolve(
    name: &str,
    port: u16,
    family: DnsFamily,
) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer"))?;
    let found = match found {
        Err(error) if has_no_address(&error) => return Ok(Vec::new()),
        found => found?,
    };
    let (mut v4, mut v6): (Vec<SocketAddr>, Vec<SocketAddr>) = found.partition(SocketAddr::is_ipv4);
    let mut chosen = match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::Auto if !v6.is_empty() => v6,
        DnsFamily::Auto => v4,
        DnsFamily::V4Preferred if !v4.is_empty() => v4,
        DnsFamily::V4Preferred => v6,
        DnsFamily::All => {
            v4.append(&mut v6);
            v4
        }
    };
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Whether the resolver says that there is nothing, rather than nothing at all.
fn has_no_address(error: &io::Error) -> bool {
    let text = error.to_string();
    NO_ADDRESS.iter().any(|said| text.ends_with(said))
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
