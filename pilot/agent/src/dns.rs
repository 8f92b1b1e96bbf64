//! The name server of the pod (`ISTIO_META_DNS_CAPTURE=true`): names of the mesh, also those that no other name server knows
//! (ServiceEntry hosts, wildcards, addresses that the mesh has given), are answered here, the rest by the pod's own resolvers.
//!
//! Flow: [`discovery`] keeps the [`table`] (NDS from Pilot) → [`server`] (UDP and TCP) answers from it → [`forward`] asks others.
//! As in Istio's agent it listens on port 15053 of the loopback address, where interception sends what the application asks.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use proto_component::drain::Drain;
use proto_component::task;

pub mod discovery;
pub mod forward;
pub mod server;
pub mod table;

use discovery::NameSource;
use forward::Resolvers;
use server::{Bound, Metrics, NameServer};
use table::Table;

/// The port to which interception sends name queries.
pub const PORT: u16 = 15053;

/// The names of this moment; none before Pilot has sent them.
pub type Names = Arc<ArcSwapOption<Table>>;

/// Takes the addresses, then serves until the drain's end: an application that drains still has names to resolve.
///
/// # Errors
/// When the address is taken.
pub async fn start(
    address: SocketAddr,
    source: NameSource,
    resolvers: Resolvers,
    metrics: Metrics,
    drain: &Drain,
) -> anyhow::Result<()> {
    let names = Names::default();
    let server = NameServer::new(names.clone(), resolvers.without(address), metrics);
    let bound = Bound::new(address)
        .await
        .with_context(|| format!("listen for name queries on {address}"))?;
    tracing::info!(target: "dns", %address, "name server");
    server.serve(bound, drain);
    if address.ip() == IpAddr::from([127, 0, 0, 1]) {
        // A query to an IPv6 resolver comes in here; not every machine has the family.
        let also = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
        if let Ok(bound) = Bound::new(also).await {
            server.serve(bound, drain);
        }
    }
    let (search, drain) = (server.first_search_domain(), drain.clone());
    task::spawn("name-table", async move {
        source.follow(&names, &search, &drain).await;
    });
    Ok(())
}
