//! What the filter is told: the service, what it is asked with, what its silence means.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use prost_types::Any;
use proto::envoy::extensions::filters::http::ext_authz::v3 as wire;
use proto::envoy::r#type::matcher::v3::ListStringMatcher;

use crate::http::client::GrpcService;
use crate::http::filter::{FilterContext, FilterFactory, RouteValue, unpack};
use crate::http::local_reply::{LocalReply, status_code};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Fraction, MetadataMatcher, StringMatcher};
use crate::runtime::{RuntimeFlag, RuntimeFraction};
use crate::stat_group;
use crate::stream_info::ResponseFlag;

use super::Factory;
use super::http_service::HttpService;

stat_group! {
    /// `http.<prefix>.ext_authz.…`
    pub(super) struct AuthStats {
        denied: Counter, disabled: Counter, error: Counter, failure_mode_allowed: Counter, ok: Counter,
    }
}

stat_group! {
    /// `cluster.<name>.ext_authz.…`
    pub(super) struct ClusterAuthStats {
        denied: Counter, error: Counter, failure_mode_allowed: Counter, ok: Counter,
    }
}

/// A checked configuration.
pub(super) struct Config {
    pub(super) name: Box<str>,
    pub(super) service: Arc<Service>,
    pub(super) body: Option<BodyRules>,
    pub(super) allows_failures: bool,
    pub(super) marks_failures: bool,
    pub(super) clears_route: bool,
    pub(super) denies_when_disabled: RuntimeFlag,
    pub(super) takes_metadata: bool,
    pub(super) max_denied_body: usize,
    pub(super) metadata_namespaces: Vec<String>,
    pub(super) route_metadata_namespaces: Vec<String>,
    pub(super) includes_certificate: bool,
    pub(super) includes_tls_session: bool,
    pub(super) raw_headers: bool,
    pub(super) labels: BTreeMap<String, String>,
    /// Headers that a gRPC service is told; `None` for all.
    pub(super) allowed: Option<Vec<StringMatcher>>,
    pub(super) disallowed: Vec<StringMatcher>,
    pub(super) stats: Arc<AuthStats>,
    enabled: RuntimeFraction,
    enabled_metadata: Option<MetadataMatcher>,
    status_on_error: StatusCode,
    of_clusters: Option<Mutex<HashMap<Arc<str>, Arc<ClusterAuthStats>>>>,
}

/// Whom to ask.
pub(super) enum Service {
    Grpc(GrpcService),
    Http(Box<HttpService>),
}

/// How much of the body the service sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyRules {
    pub(super) limit: usize,
    pub(super) allows_partial: bool,
    pub(super) as_bytes: bool,
}

/// A route's say.
#[derive(Default)]
pub(super) struct PerRoute {
    pub(super) is_disabled: bool,
    pub(super) extensions: BTreeMap<String, String>,
    pub(super) skips_body: bool,
    pub(super) body: Option<BodyRules>,
    pub(super) service: Option<Arc<Service>>,
}

pub(super) fn build(
    any: &Any,
    context: &FilterContext<'_>,
) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::ExtAuthz = unpack(any)?;
    refuse_unsupported(&config)?;
    let allowed = matchers("allowed_headers", config.allowed_headers.as_ref())?;
    let disallowed = matchers("disallowed_headers", config.disallowed_headers.as_ref())?;
    let service = match &config.services {
        Some(wire::ext_authz::Services::GrpcService(service)) => {
            Service::Grpc(GrpcService::try_from(service).at("grpc_service")?)
        }
        Some(wire::ext_authz::Services::HttpService(service)) => Service::Http(Box::new(
            HttpService::try_new(service, allowed.as_deref()).at("http_service")?,
        )),
        None => return Err(Invalid::new("grpc_service or http_service is needed")),
    };
    let scope = context.scope.scope("ext_authz");
    let scope = match config.stat_prefix.as_str() {
        "" => scope,
        prefix => scope.scope(prefix),
    };
    let code = config.status_on_error.as_ref().map_or(0, |s| s.code);
    let labels = context.server.node.metadata.as_ref();
    Ok(Arc::new(Factory(Arc::new(Config {
        name: context.name.into(),
        service: Arc::new(service),
        body: body_rules(config.with_request_body.as_ref()).at("with_request_body")?,
        allows_failures: config.failure_mode_allow,
        marks_failures: config.failure_mode_allow_header_add,
        clears_route: config.clear_route_cache,
        denies_when_disabled: RuntimeFlag::or_off(config.deny_at_disable.as_ref()),
        takes_metadata: config.enable_dynamic_metadata_ingestion.unwrap_or(true),
        max_denied_body: config.max_denied_response_body_bytes as usize,
        metadata_namespaces: config.metadata_context_namespaces,
        route_metadata_namespaces: config.route_metadata_context_namespaces,
        includes_certificate: config.include_peer_certificate,
        includes_tls_session: config.include_tls_session,
        raw_headers: config.encode_raw_headers,
        labels: labels_of(labels, &config.bootstrap_metadata_labels_key),
        allowed,
        disallowed: disallowed.unwrap_or_default(),
        stats: scope.group(),
        enabled: RuntimeFraction::or(config.filter_enabled.as_ref(), Fraction::ALWAYS),
        enabled_metadata: config
            .filter_enabled_metadata
            .as_ref()
            .map(MetadataMatcher::try_from)
            .transpose()
            .at("filter_enabled_metadata")?,
        status_on_error: match u32::try_from(code) {
            Ok(code) if code > 0 => status_code(code).at("status_on_error")?,
            _ => StatusCode::FORBIDDEN,
        },
        of_clusters: config
            .charge_cluster_response_stats
            .unwrap_or(true)
            .then(Mutex::default),
    }))))
}

pub(super) fn route(any: &Any) -> Result<RouteValue, Invalid> {
    use wire::check_settings::ServiceOverride;
    use wire::ext_authz_per_route::Override;
    let config: wire::ExtAuthzPerRoute = unpack(any)?;
    let settings = match &config.r#override {
        Some(Override::CheckSettings(settings)) => settings,
        Some(Override::Disabled(is_disabled)) => {
            return Ok(Arc::new(PerRoute {
                is_disabled: *is_disabled,
                ..PerRoute::default()
            }));
        }
        None => return Err(Invalid::new("disabled or check_settings is needed")),
    };
    let service = match &settings.service_override {
        None => None,
        Some(ServiceOverride::GrpcService(service)) => Some(Arc::new(Service::Grpc(
            GrpcService::try_from(service).at("check_settings.grpc_service")?,
        ))),
        Some(ServiceOverride::HttpService(service)) => Some(Arc::new(Service::Http(Box::new(
            HttpService::try_new(service, None).at("check_settings.http_service")?,
        )))),
    };
    Ok(Arc::new(PerRoute {
        is_disabled: false,
        extensions: settings.context_extensions.clone(),
        skips_body: settings.disable_request_body_buffering,
        body: body_rules(settings.with_request_body.as_ref()).at("with_request_body")?,
        service,
    }))
}

fn refuse_unsupported(config: &wire::ExtAuthz) -> Result<(), Invalid> {
    let refuse = |is_set: bool, field: &str| {
        if is_set {
            Err(Invalid::unsupported(field))
        } else {
            Ok(())
        }
    };
    refuse(
        config.decoder_header_mutation_rules.is_some(),
        "decoder_header_mutation_rules",
    )?;
    refuse(config.shadow_mode, "shadow_mode")?;
    refuse(config.validate_mutations, "validate_mutations")?;
    refuse(
        config.enforce_response_header_limits,
        "enforce_response_header_limits",
    )?;
    refuse(config.filter_metadata.is_some(), "filter_metadata")?;
    refuse(
        !config.typed_metadata_context_namespaces.is_empty(),
        "typed_metadata_context_namespaces",
    )?;
    refuse(
        !config.route_typed_metadata_context_namespaces.is_empty(),
        "route_typed_metadata_context_namespaces",
    )
}

/// A list of matchers, lower case ones as header names are.
pub(super) fn matchers(
    field: &str,
    list: Option<&ListStringMatcher>,
) -> Result<Option<Vec<StringMatcher>>, Invalid> {
    list.map(|list| try_all("patterns", &list.patterns, StringMatcher::try_from).at(field))
        .transpose()
}

fn body_rules(rules: Option<&wire::BufferSettings>) -> Result<Option<BodyRules>, Invalid> {
    let Some(rules) = rules else {
        return Ok(None);
    };
    if rules.max_request_bytes == 0 {
        return Err(Invalid::new("a limit greater than 0 is needed").at("max_request_bytes"));
    }
    Ok(Some(BodyRules {
        limit: rules.max_request_bytes as usize,
        allows_partial: rules.allow_partial_message,
        as_bytes: rules.pack_as_bytes,
    }))
}

fn labels_of(metadata: Option<&prost_types::Struct>, key: &str) -> BTreeMap<String, String> {
    use prost_types::value::Kind;
    let value = metadata.and_then(|metadata| metadata.fields.get(key));
    let Some(Kind::StructValue(labels)) = value.and_then(|value| value.kind.as_ref()) else {
        return BTreeMap::new();
    };
    let text = |value: &prost_types::Value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    };
    labels
        .fields
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
        .collect()
}

impl Config {
    /// Whether this request is one to ask about.
    pub(super) fn is_enabled(&self, stream: &Stream) -> bool {
        let by_metadata = self
            .enabled_metadata
            .as_ref()
            .is_none_or(|matcher| matcher.matches(stream.info.metadata.get(matcher.filter())));
        by_metadata && self.enabled.draw()
    }

    /// The reply when the service cannot be asked.
    pub(super) fn error_reply(&self) -> LocalReply {
        LocalReply::new(self.status_on_error, "", "ext_authz_error")
            .flag(ResponseFlag::UnauthorizedExternalService)
    }

    /// The counters of the cluster that the request goes to.
    pub(super) fn stats_of_cluster(&self, stream: &Stream) -> Option<Arc<ClusterAuthStats>> {
        let name = stream.route()?.cluster()?;
        let mut known = self.of_clusters.as_ref()?.lock();
        if let Some(stats) = known.get(name) {
            return Some(stats.clone());
        }
        let clusters = &stream.worker().clusters;
        let stats: Arc<ClusterAuthStats> = clusters.get(name)?.scope.scope("ext_authz").group();
        // Clusters that are gone would only take up room.
        known.retain(|name, _| clusters.get(name).is_some());
        known.insert(name.clone(), stats.clone());
        Some(stats)
    }
}
