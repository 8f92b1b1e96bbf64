//! DNS clusters: names resolved again and again, each on a schedule of its own, so that one without an answer holds up no other.
//! Where there is no answer the last one stays; as in Envoy a name that no longer has addresses takes the hosts of a strict
//! cluster along, but not the one of a logical cluster.

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
use futures::{
    FutureExt as _,
    stream::{FuturesUnordered, StreamExt as _},
};
use proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use proto_component::backoff::Backoff;
use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// So many names of a cluster are asked for at once.
const AT_ONCE: usize = 32;

type Answers = BTreeMap<(String, u16), Vec<SocketAddr>>;

/// Resolves the names of `cluster` until it is closed.
pub(crate) async fn run_dns(cluster: Arc<Cluster>) {
    tokio::select! {
        () = cluster.closed.cancelled() => {}
        () = resolve_again_and_again(&cluster) => {}
    }
}

async fn resolve_again_and_again(cluster: &Cluster) {
    let (options, is_logical) = match &cluster.config.discovery {
        Discovery::StrictDns(options) => (options, false),
        Discovery::LogicalDns(options) => (options, true),
        _ => return,
    };
    let Some(assignment) = cluster.config.assignment.clone() else {
        return;
    };
    let names = names(&assignment);
    let resolver = &cluster.resolver(options.resolver.as_ref());
    let mut answers = Answers::new();
    let (first, most) = options.failure_refresh;
    let mut backoff = Backoff::new(first, most);
    if !options.is_awaited {
        cluster.set_initialized();
    }
    let room = &Semaphore::new(AT_ONCE);
    let ask = |named: usize, pause: Duration| {
        let (name, port) = &names[named];
        async move {
            tokio::time::sleep(pause).await;
            let _permit = room.acquire().await;
            cluster.stats.update_attempt.inc();
            let answer = resolver.resolve(name, *port, options.family).await;
            (named, answer)
        }
    };
    // What has no name is there from the beginning.
    if names.is_empty() {
        store(cluster, &assignment, &answers, is_logical);
    }
    let all = (0..names.len()).map(|named| ask(named, Duration::ZERO));
    let mut asked: FuturesUnordered<_> = all.collect();
    let mut is_first = true;
    while let Some(answered) = asked.next().await {
        // What has come together is taken over together.
        let mut all_answered = vec![answered];
        while let Some(Some(more)) = asked.next().now_or_never() {
            all_answered.push(more);
        }
        let mut has_changed = false;
        for (named, answer) in all_answered {
            let ttl = answer.as_ref().ok().and_then(|found| found.ttl);
            let answer = answer.map(|found| found.addresses);
            let (name, port) = &names[named];
            let pause = match note(cluster, &mut answers, (name, *port), answer, is_logical) {
                Noted::Failed => backoff.next_delay(),
                noted => {
                    has_changed |= noted == Noted::Changed;
                    backoff.reset();
                    let holds = ttl.filter(|ttl| options.respects_ttl && !ttl.is_zero());
                    holds.unwrap_or(options.refresh) + options.jitter.mul_f64(rand::random())
                }
            };
            asked.push(ask(named, pause));
        }
        if has_changed {
            store(cluster, &assignment, &answers, is_logical);
        } else if is_first {
            // As in Envoy the cluster serves once it is known what has become of any name.
            cluster.set_initialized();
        }
        is_first = false;
    }
}

fn store(
    cluster: &Cluster,
    assignment: &ClusterLoadAssignment,
    answers: &Answers,
    is_logical: bool,
) {
    match endpoints(cluster, assignment, answers, is_logical) {
        Ok(localities) => cluster.set_hosts(localities, assignment),
        Err(error) => {
            tracing::warn!(target: "dns", cluster = %cluster.name(), %error, "assignment refused");
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
                // An address is its own answer, and counts like any other.
                AnyAddress::Socket(address) => Some((address.ip().to_string(), address.port())),
                AnyAddress::Pipe(_) => None,
            }
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// There are other addresses than before.
    Changed,
    /// There are the same.
    Same,
    /// There is none; what was known stays.
    Failed,
}

/// Counts the answer for a name, and keeps it if it is to count.
fn note(
    cluster: &Cluster,
    answers: &mut Answers,
    (name, port): (&str, u16),
    answer: io::Result<Vec<SocketAddr>>,
    is_logical: bool,
) -> Noted {
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
            cluster.stats.update_success.inc();
            let known = answers.entry((name.to_owned(), port)).or_default();
            if *known == addresses {
                cluster.stats.update_no_rebuild.inc();
                return Noted::Same;
            }
            *known = addresses;
            Noted::Changed
        }
        Err(error) => {
            cluster.stats.update_failure.inc();
            tracing::debug!(target: "dns", cluster = %cluster.name(), name, %error, "cannot resolve");
            Noted::Failed
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
