//! Original destinations: hosts made of where clients want to go, forgotten when nobody has gone there for a while.

use super::{
    Cluster, Discovery, Host, HostAddress, LoadBalancerContext,
    cluster::NoHost,
    host::{HealthCheckTarget, HostParts},
};
use parking_lot::{Mutex, RwLock};
use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The hosts of an original-destination cluster.
#[derive(Default)]
pub(super) struct Originals(RwLock<HashMap<SocketAddr, Arc<Original>>>);

struct Original {
    host: Arc<Host>,
    used: Mutex<Instant>,
}

impl Cluster {
    /// The host that the request or its connection names.
    pub(super) fn choose_original(
        &self,
        context: &LoadBalancerContext<'_>,
    ) -> Result<Arc<Host>, NoHost> {
        let Discovery::OriginalDst {
            port_override,
            header,
            ..
        } = &self.config.discovery
        else {
            return Err(NoHost::NoDestination);
        };
        let named = match (header, context.headers) {
            (Some(name), Some(headers)) => headers.get(name),
            _ => None,
        };
        let mut address = match named {
            Some(value) => {
                let address = value.to_str().ok().and_then(|text| text.parse().ok());
                address.ok_or_else(|| {
                    self.stats.original_dst_host_invalid.inc();
                    NoHost::NoDestination
                })?
            }
            None => context.original_destination.ok_or(NoHost::NoDestination)?,
        };
        if let Some(port) = port_override {
            address.set_port(*port);
        }
        Ok(self.original_host(address))
    }

    fn original_host(&self, address: SocketAddr) -> Arc<Host> {
        if let Some(known) = self.original.0.read().get(&address) {
            *known.used.lock() = Instant::now();
            return known.host.clone();
        }
        let mut original = self.original.0.write();
        let entry = original.entry(address).or_insert_with(|| {
            let host = Host::new(HostParts {
                address: HostAddress::Socket(address),
                hostname: "".into(),
                more_addresses: Box::default(),
                health_check: HealthCheckTarget::default(),
                locality: Arc::default(),
                metadata: None,
                transport: self.config.transport.of_endpoint(None),
                weight: 1,
                health: 0,
            });
            Arc::new(Original {
                host,
                used: Mutex::new(Instant::now()),
            })
        });
        let host = entry.host.clone();
        self.stats.membership_total.set(original.len() as u64);
        self.stats.membership_healthy.set(original.len() as u64);
        host
    }

    /// Forgets original destinations that nobody has used for `unused`.
    pub(crate) fn clean_original(&self, unused: Duration) {
        let mut original = self.original.0.write();
        original.retain(|_, known| {
            let is_kept =
                known.host.stats.cx_active.value() > 0 || known.used.lock().elapsed() < unused;
            known.host.set_removed(!is_kept);
            is_kept
        });
        self.stats.membership_total.set(original.len() as u64);
        self.stats.membership_healthy.set(original.len() as u64);
    }

    /// The hosts that requests have made: original destinations, resolved names.
    pub(crate) fn made_hosts(&self) -> Vec<Arc<Host>> {
        let originals = self.original.0.read();
        let originals = originals.values().map(|known| known.host.clone());
        let resolved = self.dns_cache.iter().flat_map(|cache| cache.hosts());
        originals.chain(resolved).collect()
    }
}
