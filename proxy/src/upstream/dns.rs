//! DNS clusters: names resolved again and again with the system's resolver; the last good answer stays.

mod options;

pub(crate) use options::{DnsFamily, DnsOptions, failure_refresh};

use super::{Cluster, Discovery, HostAddress, LocalityEndpoints, endpoints::Resolved};
use crate::{invalid::Invalid, wire::AnyAddress};
use proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use proto_component::backoff::Backoff;
use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

/// Patience with the resolver.
const TIMEOUT: Duration = Duration::from_secs(5);

type Answers = BTreeMap<(String, u16), Vec<SocketAddr>>;

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
    loop {
        cluster.stats.update_attempt.inc();
        let is_good = resolve_all(&cluster, &names, options, &mut answers).await;
        // Names that never had an answer have no hosts yet; the others keep their last.
        match endpoints(&cluster, &assignment, &answers, is_logical) {
            Ok(localities) => cluster.set_hosts(localities, &assignment),
            Err(error) => {
                tracing::warn!(target: "dns", cluster = %cluster.name(), %error, "assignment refused");
            }
        }
        let pause = if is_good {
            backoff.reset();
            options.refresh + options.jitter.mul_f64(rand::random())
        } else {
            backoff.next_delay()
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

async fn resolve_all(
    cluster: &Cluster,
    names: &[(String, u16)],
    options: DnsOptions,
    answers: &mut Answers,
) -> bool {
    let mut is_good = true;
    for (name, port) in names {
        match resolve(name, *port, options.family).await {
            Ok(addresses) => {
                cluster.stats.update_success.inc();
                if addresses.is_empty() {
                    cluster.stats.update_empty.inc();
                }
                answers.insert((name.clone(), *port), addresses);
            }
            Err(error) => {
                is_good = false;
                cluster.stats.update_failure.inc();
                tracing::debug!(target: "dns", cluster = %cluster.name(), name, %error, "cannot resolve");
            }
        }
    }
    is_good
}

pub(super) async fn resolve(
    name: &str,
    port: u16,
    family: DnsFamily,
) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer"))??;
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
