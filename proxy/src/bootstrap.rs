//! The bootstrap: an Envoy v3 `Bootstrap` in YAML or JSON. What we do not support is refused with its path.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

mod compile;
mod node;

pub use compile::{compile, precompiled};

use crate::{
    args::{BootstrapSource, Options},
    config::ConfigStore,
    invalid::{At as _, Invalid},
    overload::OverloadConfig,
    transport::Secret,
    upstream::{EventLog, Locality, Resolver},
    wire::AnyAddress,
    xds::{GrpcSource, Source, fetch_timeout},
};
use anyhow::Context as _;
use proto::envoy::config::{
    bootstrap::v3::Bootstrap as Wire,
    bootstrap::v3::runtime_layer::LayerSpecifier,
    core::v3::{ConfigSource, Node},
};
use serde_json::Value;
use std::{collections::HashSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

/// A checked bootstrap.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    /// The message, for dumps; with the node that is sent.
    pub(crate) wire: Wire,
    /// The proxy's node.
    pub(crate) node: Node,
    /// Where the admin interface listens.
    pub(crate) admin: Option<AdminAddress>,
    /// Where xDS comes from.
    pub(crate) dynamic: Dynamic,
}

/// Where the admin interface listens.
#[derive(Clone, Debug)]
pub(crate) enum AdminAddress {
    /// TCP.
    Socket(SocketAddr),
    /// A Unix socket.
    Pipe(PathBuf),
}

/// What is asked of xDS.
#[derive(Debug, Default)]
pub(crate) struct Dynamic {
    /// The ADS server.
    pub(crate) ads: Option<GrpcSource>,
    /// Where clusters come from.
    pub(crate) clusters: Option<DynamicSource>,
    /// Where listeners come from.
    pub(crate) listeners: Option<DynamicSource>,
    /// Layers of the runtime that are discovered.
    pub(crate) runtime: Vec<RuntimeDiscovery>,
}

/// Where all resources of a type come from.
#[derive(Clone, Debug)]
pub(crate) struct DynamicSource {
    /// The source.
    pub(crate) source: Source,
    /// How long the first answer is waited for.
    pub(crate) timeout: Duration,
}

/// A layer of the runtime that is discovered.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeDiscovery {
    /// The resource.
    pub(crate) resource: Arc<str>,
    /// Where it comes from.
    pub(crate) source: DynamicSource,
}

impl Bootstrap {
    /// Reads and checks the bootstrap.
    pub(crate) fn load(options: &Options) -> anyhow::Result<Self> {
        let (wire, place) = read(options)?;
        Self::new(wire, options).with_context(|| format!("check {place}"))
    }

    fn new(mut wire: Wire, options: &Options) -> Result<Self, Invalid> {
        refuse(&wire)?;
        let node = node::build(wire.node.take().unwrap_or_default(), options);
        wire.node = Some(node.clone());
        let admin = match wire.admin.as_ref().and_then(|admin| admin.address.as_ref()) {
            None => None,
            Some(address) => Some(match AnyAddress::try_from(address).at("admin.address")? {
                AnyAddress::Socket(address) => AdminAddress::Socket(address),
                AnyAddress::Pipe(path) => AdminAddress::Pipe(path),
                AnyAddress::Name(name, _) => {
                    return Err(
                        Invalid::new(format!("malformed IP address: {name}")).at("admin.address")
                    );
                }
            }),
        };
        let dynamic = dynamic(&wire).at("dynamic_resources")?;
        let asks = [&dynamic.clusters, &dynamic.listeners];
        let is_asking = asks
            .into_iter()
            .flatten()
            .any(|one| matches!(one.source, Source::Grpc(_)));
        if node.id.is_empty() && (dynamic.ads.is_some() || is_asking) {
            return Err(Invalid::new("xDS needs it; set node.id and node.cluster, or --service-node and --service-cluster").at("node.id"));
        }
        Ok(Self {
            wire,
            node,
            admin,
            dynamic,
        })
    }

    /// The tracer of connection managers that name none.
    pub(crate) fn tracer(&self) -> Option<&proto::envoy::config::trace::v3::tracing::Http> {
        #[allow(deprecated, reason = "agents still say the tracer here")]
        self.wire.tracing.as_ref()?.http.as_ref()
    }

    /// The overload manager, if there is one.
    pub(crate) fn overload(&self) -> Result<OverloadConfig, Invalid> {
        self.wire
            .overload_manager
            .as_ref()
            .map_or_else(|| Ok(OverloadConfig::default()), OverloadConfig::try_from)
            .at("overload_manager")
    }

    /// Puts the static resources in force.
    pub(crate) fn apply_static(&self, store: &Arc<ConfigStore>) -> Result<(), Invalid> {
        let runtime = &store.server.runtime;
        runtime
            .configure(self.wire.layered_runtime.as_ref())
            .at("layered_runtime")?;
        let ads = self.dynamic.ads.as_ref();
        let is_ads_delta = ads.is_some_and(|ads| ads.is_delta);
        store.server.demand.set_ads(is_ads_delta);
        if let Some(resolver) = self.resolver()? {
            // The bootstrap is applied once.
            let _ = store.server.clusters.shared.resolver.set(resolver);
        }
        self.configure_clusters(store).at("cluster_manager")?;
        let Some(resources) = &self.wire.static_resources else {
            return Ok(());
        };
        for (index, secret) in resources.secrets.iter().enumerate() {
            let checked =
                Secret::new(secret).at(format_args!("static_resources.secrets[{index}]"))?;
            store.secrets.add_static(&secret.name, checked);
        }
        let mut names = HashSet::new();
        for (index, cluster) in resources.clusters.iter().enumerate() {
            if !names.insert(&cluster.name) {
                let text = format!("duplicate cluster '{}'", cluster.name);
                return Err(
                    Invalid::new(text).at(format_args!("static_resources.clusters[{index}]"))
                );
            }
            store
                .add_static_cluster(cluster.clone())
                .at(format_args!("static_resources.clusters[{index}]"))?;
        }
        Ok(())
    }

    /// Who is asked for the names of clusters that do not say.
    #[allow(deprecated, reason = "control planes still send the older fields")]
    fn resolver(&self) -> Result<Option<Resolver>, Invalid> {
        Resolver::of(
            self.wire.typed_dns_resolver_config.as_ref(),
            self.wire.dns_resolution_config.as_ref(),
            (&[], self.wire.use_tcp_for_dns_lookups),
        )
    }

    /// What holds for all clusters.
    fn configure_clusters(&self, store: &Arc<ConfigStore>) -> Result<(), Invalid> {
        let Some(wire) = &self.wire.cluster_manager else {
            return Ok(());
        };
        if wire.load_stats_config.is_some() {
            return Err(Invalid::unsupported("load reporting").at("load_stats_config"));
        }
        if wire.upstream_bind_config.is_some() {
            return Err(
                Invalid::unsupported("a bind config for all clusters").at("upstream_bind_config")
            );
        }
        let shared = &store.server.clusters.shared;
        if !wire.local_cluster_name.is_empty() {
            let locality = self.node.locality.clone().unwrap_or_default();
            let own = Locality {
                region: locality.region,
                zone: locality.zone,
                sub_zone: locality.sub_zone,
            };
            // The bootstrap is applied once.
            let _ = shared
                .local
                .own
                .set((wire.local_cluster_name.as_str().into(), own));
        }
        if let Some(outlier) = &wire.outlier_detection
            && !outlier.event_log_path.is_empty()
        {
            let log =
                EventLog::open(&outlier.event_log_path).at("outlier_detection.event_log_path")?;
            let _ = shared.outlier_log.set(log);
        }
        Ok(())
    }

    /// Checks the static listeners; takes no address.
    pub(crate) fn check_listeners(&self, store: &ConfigStore) -> Result<(), Invalid> {
        let resources = self.wire.static_resources.iter();
        let listeners = resources.flat_map(|resources| resources.listeners.iter().cloned());
        for (index, listener) in listeners.enumerate() {
            let at = format!("static_resources.listeners[{index}]");
            store.check_listener(listener).at(at)?;
        }
        Ok(())
    }

    /// Builds the static listeners; they serve when they are warm.
    pub(crate) fn apply_listeners(&self, store: &Arc<ConfigStore>) -> anyhow::Result<()> {
        let Some(resources) = &self.wire.static_resources else {
            return Ok(());
        };
        for (index, listener) in resources.listeners.iter().enumerate() {
            let outcome = store.add_static_listener(listener.clone());
            outcome.map_err(|error| {
                anyhow::anyhow!(
                    "static_resources.listeners[{index}] ({}): {error}",
                    listener.name
                )
            })?;
        }
        Ok(())
    }
}

/// Reads the message; where it came from goes with it.
pub(crate) fn read(options: &Options) -> anyhow::Result<(Wire, String)> {
    let (place, text, over) = match &options.bootstrap {
        BootstrapSource::Message(wire) => {
            return Ok(((**wire).clone(), "the bootstrap".to_owned()));
        }
        BootstrapSource::Text(text) => ("--config-yaml".to_owned(), text.clone(), None),
        BootstrapSource::File(file) => (file.display().to_string(), read_file(file)?, None),
        BootstrapSource::Merged(file, over) => {
            let place = format!("{} with --config-yaml", file.display());
            (place, read_file(file)?, Some(over))
        }
    };
    let wire = match over {
        // With the line of what is wrong.
        None if !options.allows_unknown_fields => {
            proto::yaml::from_str(&text).with_context(|| format!("read {place}"))?
        }
        _ => {
            let mut base = value(&text).with_context(|| format!("read {place}"))?;
            if let Some(over) = over {
                merge(&mut base, value(over).context("read --config-yaml")?);
            }
            let read = if options.allows_unknown_fields {
                proto::json::lenient_from_value(&base)
            } else {
                proto::json::from_value(&base)
            };
            read.with_context(|| format!("read {place}"))?
        }
    };
    Ok((wire, place))
}

fn read_file(file: &std::path::Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

fn value(text: &str) -> anyhow::Result<Value> {
    let mut documents = proto::yaml::parse_documents(text);
    anyhow::ensure!(documents.len() == 1, "one YAML document is needed");
    Ok(documents.remove(0)?.value)
}

/// Objects are merged, lists joined, everything else replaced: as protobuf merges messages.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                merge(base.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(base), Value::Array(over)) => base.extend(over),
        (base, over) => *base = over,
    }
}

fn refuse(wire: &Wire) -> Result<(), Invalid> {
    for (is_set, field) in [
        (wire.hds_config.is_some(), "hds_config"),
        (!wire.flags_path.is_empty(), "flags_path"),
        (!wire.stats_sinks.is_empty(), "stats_sinks"),
        (!wire.header_prefix.is_empty(), "header_prefix"),
        (!wire.config_sources.is_empty(), "config_sources"),
        (
            wire.default_config_source.is_some(),
            "default_config_source",
        ),
        (
            !wire.certificate_provider_instances.is_empty(),
            "certificate_provider_instances",
        ),
        (!wire.inline_headers.is_empty(), "inline_headers"),
        (
            wire.xds_delegate_extension.is_some(),
            "xds_delegate_extension",
        ),
        (
            wire.xds_config_tracker_extension.is_some(),
            "xds_config_tracker_extension",
        ),
        (
            !wire.bootstrap_extensions.is_empty(),
            "bootstrap_extensions",
        ),
        (wire.listener_manager.is_some(), "listener_manager"),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    Ok(())
}

fn dynamic(wire: &Wire) -> Result<Dynamic, Invalid> {
    let mut checked = Dynamic {
        runtime: runtime_discovery(wire)?,
        ..Dynamic::default()
    };
    let Some(dynamic) = &wire.dynamic_resources else {
        return Ok(checked);
    };
    if !dynamic.cds_resources_locator.is_empty() {
        return Err(Invalid::unsupported("an xdstp locator").at("cds_resources_locator"));
    }
    if !dynamic.lds_resources_locator.is_empty() {
        return Err(Invalid::unsupported("an xdstp locator").at("lds_resources_locator"));
    }
    let source = |wire: Option<&ConfigSource>, field: &str| {
        wire.map(|wire| DynamicSource::new(wire).at(field))
            .transpose()
    };
    checked.ads = dynamic
        .ads_config
        .as_ref()
        .map(GrpcSource::try_from)
        .transpose()
        .at("ads_config")?;
    checked.clusters = source(dynamic.cds_config.as_ref(), "cds_config")?;
    checked.listeners = source(dynamic.lds_config.as_ref(), "lds_config")?;
    let is_ads = |one: &DynamicSource| one.source == Source::Ads;
    let asks = [&checked.clusters, &checked.listeners];
    if checked.ads.is_none() && asks.into_iter().flatten().any(is_ads) {
        return Err(Invalid::new("it is needed for ads").at("ads_config"));
    }
    Ok(checked)
}

impl DynamicSource {
    fn new(wire: &ConfigSource) -> Result<Self, Invalid> {
        Ok(Self {
            source: Source::try_from(wire)?,
            timeout: fetch_timeout(wire),
        })
    }
}

fn runtime_discovery(wire: &Wire) -> Result<Vec<RuntimeDiscovery>, Invalid> {
    let layers = wire
        .layered_runtime
        .iter()
        .flat_map(|runtime| &runtime.layers);
    layers
        .filter_map(|layer| match &layer.layer_specifier {
            Some(LayerSpecifier::RtdsLayer(rtds)) => Some(rtds),
            _ => None,
        })
        .map(|rtds| {
            let source = rtds
                .rtds_config
                .as_ref()
                .ok_or_else(|| Invalid::new("it is needed"))
                .and_then(DynamicSource::new)
                .at("layered_runtime.layers.rtds_layer.rtds_config")?;
            Ok(RuntimeDiscovery {
                resource: rtds.name.as_str().into(),
                source,
            })
        })
        .collect()
}
