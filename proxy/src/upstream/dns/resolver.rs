//! Who is asked for names: the system's resolver (`getaddrinfo`), or name servers by ourselves, as Envoy does with c-ares.

use super::{DnsFamily, name_servers::NameServers};
use crate::invalid::{At as _, Invalid};
use prost_types::Any;
use proto::envoy::{
    config::core::v3::{Address, DnsResolutionConfig, DnsResolverOptions, TypedExtensionConfig},
    extensions::network::dns_resolver::{
        cares::v3::CaresDnsResolverConfig, getaddrinfo::v3::GetAddrInfoDnsResolverConfig,
    },
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// Patience with the system's resolver, and the pause before it is asked again at once.
const TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// What the C libraries say of a name that does not exist, or has no addresses; codes are not to be had.
const NO_ADDRESS: [&str; 4] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
];
/// And of one that may exist.
const AGAIN: [&str; 2] = ["Temporary failure in name resolution", "Try again"];

/// Who is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resolver {
    /// The system, so many times more while it says that it may know later.
    System {
        /// `None` stands for as long as there is patience.
        retries: Option<u32>,
    },
    /// Name servers.
    NameServers(Arc<NameServers>),
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// None if the name does not exist.
    pub(crate) addresses: Vec<SocketAddr>,
    /// How long they hold, if that is known.
    pub(crate) ttl: Option<Duration>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::System { retries: Some(0) }
    }
}

impl Resolver {
    /// What is configured, in any of the ways to say it; the newest of those that are there counts. `None` if there is nothing.
    pub(crate) fn of(
        typed: Option<&TypedExtensionConfig>,
        older: Option<&DnsResolutionConfig>,
        oldest: (&[Address], bool),
    ) -> Result<Option<Self>, Invalid> {
        if let Some(typed) = typed {
            let any = typed.typed_config.as_ref();
            let resolver = Self::typed(any).at("typed_dns_resolver_config.typed_config")?;
            return Ok(Some(resolver));
        }
        if let Some(older) = older {
            if older.resolvers.is_empty() {
                return Err(Invalid::new("at least one is needed")
                    .at("resolvers")
                    .at("dns_resolution_config"));
            }
            let resolver = Self::cares(CaresDnsResolverConfig {
                resolvers: older.resolvers.clone(),
                dns_resolver_options: older.dns_resolver_options,
                ..CaresDnsResolverConfig::default()
            });
            return resolver.at("dns_resolution_config").map(Some);
        }
        let (servers, by_tcp) = oldest;
        if servers.is_empty() && !by_tcp {
            return Ok(None);
        }
        let resolver = Self::cares(CaresDnsResolverConfig {
            resolvers: servers.to_vec(),
            dns_resolver_options: Some(DnsResolverOptions {
                use_tcp_for_dns_lookups: by_tcp,
                ..DnsResolverOptions::default()
            }),
            ..CaresDnsResolverConfig::default()
        });
        resolver.at("dns_resolvers").map(Some)
    }

    fn typed(any: Option<&Any>) -> Result<Self, Invalid> {
        let any = any.ok_or_else(|| Invalid::new("it is needed"))?;
        if proto::any::is::<CaresDnsResolverConfig>(any) {
            Self::cares(proto::any::unpack(any)?)
        } else if proto::any::is::<GetAddrInfoDnsResolverConfig>(any) {
            let config: GetAddrInfoDnsResolverConfig = proto::any::unpack(any)?;
            Ok(Self::System {
                retries: config.num_retries,
            })
        } else {
            let message = proto::type_url::message_name(&any.type_url);
            Err(Invalid::unsupported(&format!("resolver {message}")))
        }
    }

    fn cares(config: CaresDnsResolverConfig) -> Result<Self, Invalid> {
        // Without wishes of its own it asks whom the system asks, as the system does.
        if config == CaresDnsResolverConfig::default() {
            return Ok(Self::default());
        }
        Ok(Self::NameServers(Arc::new(NameServers::try_from(config)?)))
    }

    /// The addresses of a name: none if it does not exist, an error if that cannot be told.
    pub(crate) async fn resolve(
        &self,
        name: &str,
        port: u16,
        family: DnsFamily,
    ) -> io::Result<Found> {
        let (found, ttl) = match (name.parse::<IpAddr>(), self) {
            (Ok(literal), _) => (vec![literal], None),
            (_, Self::System { retries }) => (ask_system(name, *retries).await?, None),
            (_, Self::NameServers(servers)) => servers.resolve(name, family).await?,
        };
        let found = found.into_iter().map(|ip| SocketAddr::new(ip, port));
        Ok(Found {
            addresses: family.choose(found),
            ttl,
        })
    }
}

async fn ask_system(name: &str, retries: Option<u32>) -> io::Result<Vec<IpAddr>> {
    let ask = async {
        let mut left = retries;
        loop {
            match tokio::net::lookup_host((name, 0)).await {
                Ok(found) => return Ok(found.map(|address| address.ip()).collect()),
                Err(error) if ends(&error, &NO_ADDRESS) => return Ok(Vec::new()),
                Err(error) if left == Some(0) || !ends(&error, &AGAIN) => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
            left = left.map(|left| left - 1);
        }
    };
    timeout(TIMEOUT, ask)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer"))?
}

/// Whether the resolver says one of these.
pub(super) fn ends(error: &io::Error, texts: &[&str]) -> bool {
    let text = error.to_string();
    texts.iter().any(|said| text.ends_with(said))
}

/// Whether the resolver says that there is nothing, rather than nothing at all.
#[cfg(test)]
pub(super) fn has_no_address(error: &io::Error) -> bool {
    ends(error, &NO_ADDRESS)
}
