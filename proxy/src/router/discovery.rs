//! Virtual hosts that are not in the route configuration itself but discovered (VHDS).

use std::sync::Arc;
use std::time::Duration;

use proto::envoy::config::route::v3 as wire;

use crate::config::DemandSource;
use crate::invalid::{At as _, Invalid};
use crate::xds::fetch_timeout;

use super::{VirtualHost, body_limit};

/// Where the virtual hosts of a table are asked for.
#[derive(Debug, Clone)]
pub(crate) struct HostDiscovery {
    /// Whom to ask.
    pub(crate) source: DemandSource,
    /// The table's name, with which the names of its virtual hosts begin.
    pub(crate) table: Arc<str>,
    /// How long the first answer is waited for.
    pub(crate) fetch_timeout: Duration,
}

/// A discovered virtual host, compiled.
#[derive(Debug)]
pub(crate) struct DiscoveredHost {
    /// The message.
    pub(crate) wire: wire::VirtualHost,
    pub(super) compiled: Arc<VirtualHost>,
}

impl HostDiscovery {
    /// Checks where a table gets more virtual hosts from, if it does.
    pub(crate) fn try_new(config: &wire::RouteConfiguration) -> Result<Option<Self>, Invalid> {
        let Some(vhds) = &config.vhds else {
            return Ok(None);
        };
        let source = vhds.config_source.as_ref();
        let source = source.ok_or_else(|| Invalid::new("it is needed").at("vhds.config_source"))?;
        Ok(Some(Self {
            source: DemandSource::virtual_hosts(source, &config.name).at("vhds.config_source")?,
            table: config.name.as_str().into(),
            fetch_timeout: fetch_timeout(source),
        }))
    }

    /// Whether both ask the same of the same.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.source == other.source && self.table == other.table
    }

    /// The name under which the virtual host of `host` is asked for.
    pub(crate) fn name_of(&self, host: &str) -> String {
        format!("{}/{}", self.table, host.to_ascii_lowercase())
    }
}

impl DiscoveredHost {
    /// Checks a virtual host for a table of this configuration.
    pub(crate) fn try_new(
        wire: wire::VirtualHost,
        table: &wire::RouteConfiguration,
    ) -> Result<Self, Invalid> {
        let compiled = Arc::new(VirtualHost::try_new(&wire, body_limit(table))?);
        Ok(Self { wire, compiled })
    }
}
