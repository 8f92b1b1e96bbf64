//! Gateway resources and the merged view of all that select one gateway proxy.
//!
//! Servers are merged by port: plain HTTP servers share one listener and one route configuration; TLS servers become filter
//! chains chosen by server name. Where two disagree, the older resource has the port or the host, and the other is reported.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use proto::istio::networking::v1alpha3::{self as wire, server_tls_settings::TlSmode};

use super::status::{Metric, PushStatus};
use crate::config::{Config, by_age};
use crate::model::{Protocol, Proxy};

/// All gateways, oldest first.
#[derive(Debug, Default)]
pub struct GatewayIndex {
    all: Vec<Config<wire::Gateway>>,
}

/// A server and where it comes from.
#[derive(Clone, Debug)]
pub struct GatewayServer {
    /// `namespace/name` of the Gateway.
    pub gateway: String,
    /// The Gateway's namespace.
    pub namespace: String,
    /// The Gateway's name.
    pub name: String,
    /// The server.
    pub server: wire::Server,
}

/// What listens on one port of a gateway.
#[derive(Clone, Debug, Default)]
pub struct GatewayPort {
    /// Plain HTTP servers: one route configuration.
    pub http: Vec<GatewayServer>,
    /// Servers that terminate TLS and speak HTTP behind it: a filter chain and a route configuration each.
    pub https: Vec<GatewayServer>,
    /// Servers that pass bytes on: chosen by server name, or plain TCP.
    pub tcp: Vec<GatewayServer>,
    /// Address to bind, if any server says so.
    pub bind: String,
}

/// All ports of one gateway proxy.
#[derive(Clone, Debug, Default)]
pub struct MergedGateway {
    /// By port number.
    pub ports: BTreeMap<u32, GatewayPort>,
}

impl GatewayServer {
    /// The protocol of the port.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        Protocol::parse(
            &self
                .server
                .port
                .as_ref()
                .map(|port| port.protocol.clone())
                .unwrap_or_default(),
        )
    }

    /// The port's number.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.server.port.as_ref().map_or(0, |port| port.number)
    }

    /// The port's name.
    #[must_use]
    pub fn port_name(&self) -> &str {
        self.server.port.as_ref().map_or("", |port| &port.name)
    }

    /// The TLS mode, if TLS is spoken at all.
    #[must_use]
    pub fn tls_mode(&self) -> Option<TlSmode> {
        let tls = self.server.tls.as_ref()?;
        self.protocol().is_tls().then(|| tls.mode())
    }

    /// True when TLS ends at the gateway.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.tls_mode()
            .is_some_and(|mode| !matches!(mode, TlSmode::Passthrough | TlSmode::AutoPassthrough))
    }

    /// `namespace/host` entries without the namespace part.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.server.hosts.iter().map(|entry| {
            entry
                .split_once('/')
                .map_or(entry.as_str(), |(_, name)| name)
        })
    }

    /// Name of the route configuration, if HTTP is spoken.
    #[must_use]
    pub fn route_name(&self) -> String {
        if self.is_terminating() {
            format!(
                "https.{}.{}.{}.{}",
                self.port(),
                self.port_name(),
                self.name,
                self.namespace
            )
        } else {
            format!("http.{}", self.port())
        }
    }
}

impl GatewayIndex {
    /// Builds the index.
    pub fn new<'a>(configs: impl Iterator<Item = &'a Config<wire::Gateway>>) -> Self {
        GatewayIndex {
            all: by_age(configs).into_iter().cloned().collect(),
        }
    }

    /// Everything that `proxy` has to serve.
    #[must_use]
    pub fn merge_for(&self, proxy: &Proxy, status: &PushStatus) -> MergedGateway {
        let mut merged = MergedGateway::default();
        let mut server_names: HashMap<u32, HashSet<String>> = HashMap::new();
        for config in self
            .all
            .iter()
            .filter(|config| proxy.is_selected_by(&config.spec.selector))
        {
            for server in &config.spec.servers {
                let server = GatewayServer {
                    gateway: format!("{}/{}", config.meta.namespace, config.meta.name),
                    namespace: config.meta.namespace.clone(),
                    name: config.meta.name.clone(),
                    server: server.clone(),
                };
                if let Err(reason) = merged.add(server, &mut server_names) {
                    status.record(
                        Metric::RejectedGateway,
                        &format!("{}/{}", config.meta.namespace, config.meta.name),
                        &proxy.id,
                        &reason,
                    );
                }
            }
        }
        merged
    }

    /// Every gateway.
    #[must_use]
    pub fn all(&self) -> &[Config<wire::Gateway>] {
        &self.all
    }
}

impl MergedGateway {
    fn add(
        &mut self,
        server: GatewayServer,
        server_names: &mut HashMap<u32, HashSet<String>>,
    ) -> Result<(), String> {
        let number = server.port();
        let port = self.ports.entry(number).or_default();
        let protocol = server.protocol();
        let is_empty = port.http.is_empty() && port.https.is_empty() && port.tcp.is_empty();
        if is_empty {
            port.bind.clone_from(&server.server.bind);
        }
        if protocol.is_tls() {
            let has_plain =
                !port.http.is_empty() || port.tcp.iter().any(|other| !other.protocol().is_tls());
            if has_plain {
                return Err(format!("port {number} already speaks without TLS"));
            }
            let taken = server_names.entry(number).or_default();
            if let Some(name) = server.hosts().find(|name| taken.contains(*name)) {
                return Err(format!(
                    "host {name} on port {number} belongs to an older gateway"
                ));
            }
            taken.extend(server.hosts().map(str::to_owned));
            if server.is_terminating() && protocol == Protocol::Https {
                port.https.push(server);
            } else {
                port.tcp.push(server);
            }
        } else if protocol.is_http() {
            if !port.https.is_empty() || !port.tcp.is_empty() {
                return Err(format!("port {number} already speaks another protocol"));
            }
            port.http.push(server);
        } else {
            if !is_empty {
                return Err(format!("port {number} already belongs to an older gateway"));
            }
            port.tcp.push(server);
        }
        Ok(())
    }

    /// The servers behind a route configuration.
    #[must_use]
    pub fn servers_of_route(&self, route: &str) -> Vec<&GatewayServer> {
        let all = self
            .ports
            .values()
            .flat_map(|port| port.http.iter().chain(&port.https));
        all.filter(|server| server.route_name() == route).collect()
    }

    /// The names of all gateways that take part.
    #[must_use]
    pub fn gateway_names(&self) -> HashSet<&str> {
        let servers = self
            .ports
            .values()
            .flat_map(|port| port.http.iter().chain(&port.https).chain(&port.tcp));
        servers.map(|server| server.gateway.as_str()).collect()
    }
}

/// Gateways as shared by the push context.
pub type Gateways = Arc<GatewayIndex>;
