//! Where resources come from: the checked form of a `ConfigSource`. Two sources that are equal share a stream.
#![allow(
    deprecated,
    reason = "control planes still send the fields that Envoy has deprecated"
)]

use crate::{
    invalid::{At as _, Invalid},
    wire::duration,
};
use proto::envoy::config::core::v3::{
    ApiConfigSource, ConfigSource, api_config_source::ApiType,
    config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tonic::metadata::{MetadataKey, MetadataMap};

/// How long a resource is waited for before its holder goes on without it.
pub(crate) const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Waiting for ever has an end too, far away.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);
/// Pause before a broken stream is opened again: from the first to the second, with jitter.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Where resources come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// The one stream for everything.
    Ads,
    /// A stream of its own for each type.
    Grpc(Arc<GrpcSource>),
    /// A file with a discovery response.
    File(Arc<FileSource>),
}

/// A gRPC server of resources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GrpcSource {
    /// The cluster that leads to it.
    pub(crate) cluster: String,
    /// `:authority`; the cluster's name if empty.
    pub(crate) authority: String,
    /// Whether it speaks delta.
    pub(crate) is_delta: bool,
    /// Whether every request names the node, not only the first.
    pub(crate) repeats_node: bool,
    /// Pauses between streams: the first, and the longest.
    pub(crate) retry: (Duration, Duration),
    metadata: Vec<(String, String)>,
}

/// A file with resources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileSource {
    /// The file.
    pub(crate) path: PathBuf,
    /// The folder whose changes count; the file's own if none.
    pub(crate) watched: Option<PathBuf>,
}

impl TryFrom<&ConfigSource> for Source {
    type Error = Invalid;

    fn try_from(wire: &ConfigSource) -> Result<Self, Invalid> {
        // AUTO and V2 were dropped by Envoy as well; an unset version is read as V3.
        if wire.resource_api_version == 1 {
            return Err(Invalid::new("only V3 is spoken").at("resource_api_version"));
        }
        if !wire.authorities.is_empty() {
            return Err(Invalid::unsupported("authorities"));
        }
        match &wire.config_source_specifier {
            Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(Self::Ads),
            Some(ConfigSourceSpecifier::ApiConfigSource(api)) => GrpcSource::try_from(api)
                .at("api_config_source")
                .map(|source| Self::Grpc(Arc::new(source))),
            Some(ConfigSourceSpecifier::PathConfigSource(source)) if source.path.is_empty() => {
                Err(Invalid::new("it is needed").at("path_config_source.path"))
            }
            Some(ConfigSourceSpecifier::PathConfigSource(source)) => {
                Ok(Self::File(Arc::new(FileSource {
                    path: PathBuf::from(&source.path),
                    watched: source
                        .watched_directory
                        .as_ref()
                        .map(|folder| PathBuf::from(&folder.path)),
                })))
            }
            Some(ConfigSourceSpecifier::Path(path)) => Ok(Self::File(Arc::new(FileSource {
                path: PathBuf::from(path),
                watched: None,
            }))),
            None => Err(Invalid::new("a config source specifier is needed")),
        }
    }
}

impl TryFrom<&ApiConfigSource> for GrpcSource {
    type Error = Invalid;

    fn try_from(wire: &ApiConfigSource) -> Result<Self, Invalid> {
        let is_delta = match wire.api_type() {
            ApiType::Grpc => false,
            ApiType::DeltaGrpc => true,
            _ => return Err(Invalid::new("only GRPC and DELTA_GRPC are supported").at("api_type")),
        };
        if wire.transport_api_version == 1 {
            return Err(Invalid::new("only V3 is spoken").at("transport_api_version"));
        }
        if wire.rate_limit_settings.is_some() {
            return Err(Invalid::unsupported("rate_limit_settings"));
        }
        if !wire.config_validators.is_empty() {
            return Err(Invalid::unsupported("config_validators"));
        }
        let [service] = wire.grpc_services.as_slice() else {
            return Err(Invalid::new("exactly one is needed").at("grpc_services"));
        };
        let Some(TargetSpecifier::EnvoyGrpc(target)) = &service.target_specifier else {
            return Err(Invalid::new("only envoy_grpc is supported").at("grpc_services[0]"));
        };
        let retry = target
            .retry_policy
            .as_ref()
            .and_then(|policy| policy.retry_back_off.as_ref());
        let interval = |wire: Option<&prost_types::Duration>, default: Duration, field: &str| {
            wire.map_or(Ok(default), |wire| duration(wire).at(field))
        };
        let base = interval(
            retry.and_then(|retry| retry.base_interval.as_ref()),
            RETRY.0,
            "base_interval",
        )?;
        let most = interval(
            retry.and_then(|retry| retry.max_interval.as_ref()),
            RETRY.1,
            "max_interval",
        )?;
        let source = Self {
            cluster: target.cluster_name.clone(),
            authority: target.authority.clone(),
            is_delta,
            repeats_node: !wire.set_node_on_first_message_only,
            retry: (base, most.max(base)),
            metadata: service
                .initial_metadata
                .iter()
                .map(|header| (header.key.clone(), header.value.clone()))
                .collect(),
        };
        source.metadata().at("grpc_services[0].initial_metadata")?;
        Ok(source)
    }
}

impl GrpcSource {
    /// What goes with each call.
    pub(crate) fn metadata(&self) -> Result<MetadataMap, Invalid> {
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.metadata {
            let name = MetadataKey::from_bytes(name.as_bytes())
                .map_err(|error| Invalid::new(error.to_string()))?;
            let value = value
                .parse()
                .map_err(|_| Invalid::new("not a header's value"))?;
            metadata.insert(name, value);
        }
        Ok(metadata)
    }
}

/// How long the first answer of a source is waited for; zero in the message means for ever.
pub(crate) fn fetch_timeout(wire: &ConfigSource) -> Duration {
    match wire
        .initial_fetch_timeout
        .as_ref()
        .and_then(|wire| duration(wire).ok())
    {
        Some(Duration::ZERO) => FOR_EVER,
        Some(timeout) => timeout,
        None => INITIAL_FETCH_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<Source, Invalid> {
        Source::try_from(&proto::yaml::from_str::<ConfigSource>(text).unwrap())
    }

    #[test]
    fn equal_services_are_one_source() {
        let text =
            "api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: a}}]}";
        assert_eq!(source(text).unwrap(), source(text).unwrap());
        assert_ne!(
            source(text).unwrap(),
            source(&text.replace("GRPC,", "DELTA_GRPC,")).unwrap()
        );
        assert_eq!(source("ads: {}").unwrap(), Source::Ads);
        assert!(matches!(
            source("path_config_source: {path: /a}").unwrap(),
            Source::File(_)
        ));
    }

    #[test]
    fn what_is_not_spoken_is_refused() {
        for (text, what) in [
            ("{}", "a config source specifier is needed"),
            (
                "api_config_source: {api_type: REST, cluster_names: [a]}",
                "api_config_source.api_type",
            ),
            (
                "api_config_source: {api_type: GRPC, grpc_services: [{google_grpc: {target_uri: a, stat_prefix: a}}]}",
                "only envoy_grpc",
            ),
        ] {
            let error = source(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn zero_waits_for_ever() {
        let wire = |text| proto::yaml::from_str::<ConfigSource>(text).unwrap();
        assert_eq!(fetch_timeout(&wire("ads: {}")), INITIAL_FETCH_TIMEOUT);
        assert_eq!(
            fetch_timeout(&wire("{ads: {}, initial_fetch_timeout: 0s}")),
            FOR_EVER
        );
        assert_eq!(
            fetch_timeout(&wire("{ads: {}, initial_fetch_timeout: 2s}")),
            Duration::from_secs(2)
        );
    }
}
