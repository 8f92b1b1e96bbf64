//! Tracing of a connection manager: who is told, how many requests, with which tags.
//!
//! A Telemetry resource names a provider, or the mesh's default providers do, or the proxy settings give the address of a
//! Zipkin. Without any of them request ids are made and passed on, and nobody is told.

use std::collections::BTreeMap;

use proto::envoy::config::core::v3::{HttpService, TypedExtensionConfig};
use proto::envoy::config::trace::v3::{
    ClientConfig, DatadogConfig, OpenTelemetryConfig, SkyWalkingConfig, ZipkinConfig,
    client_config,
    tracing::{Http, http},
    zipkin_config::{CollectorEndpointVersion, TraceContextOption},
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    RequestIdExtension, http_connection_manager::Tracing,
};
use proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use proto::envoy::extensions::tracers::opentelemetry::{
    resource_detectors::v3::{DynatraceResourceDetectorConfig, EnvironmentResourceDetectorConfig},
    samplers::v3::DynatraceSamplerConfig,
};
use proto::envoy::r#type::tracing::v3::{CustomTag, custom_tag};
use proto::envoy::r#type::v3::Percent;
use proto::istio::mesh::v1alpha1::mesh_config::extension_provider::{
    OpenTelemetryTracingProvider, Provider, ZipkinTracingProvider,
    open_telemetry_tracing_provider::Sampling, zipkin_tracing_provider,
};
use proto::istio::mesh::v1alpha1::{Tracing as ProxyTracing, tracing as proxy_tracing};
use proto::istio::telemetry::v1alpha1::tracing as telemetry;

use super::View;
use super::provider::{self, Upstream};
use super::wire::any;
use crate::push_context::status::Metric;
use crate::push_context::telemetry::Side;

/// Longest part of a path in a span.
const PATH_LENGTH: u32 = 256;

/// The tracing of a connection manager at `side`; none: no tracing.
pub(super) fn build(view: &View<'_>, side: Side) -> Option<Tracing> {
    let mesh = &view.push.mesh;
    let settings = view.telemetry.tracing(side);
    let proxy = mesh.tracing.as_ref();
    let name = settings
        .provider
        .as_ref()
        .or(mesh.default_tracing_provider.as_ref());
    if settings.is_disabled || (name.is_none() && !mesh.is_tracing) {
        return None;
    }
    let tracer = match name {
        Some(name) => named(view, name),
        None => proxy.and_then(|tracing| by_address(view, tracing)),
    };
    let sampling = settings.sampling.unwrap_or(mesh.trace_sampling);
    let mut tags = BTreeMap::new();
    let has_istio_tags = settings
        .has_istio_tags
        .or(proxy.and_then(|tracing| tracing.enable_istio_tags));
    if tracer.is_some() && has_istio_tags.unwrap_or(true) {
        tags.extend(istio_tags(view));
    }
    if settings.tags.is_empty() {
        let configured = proxy.iter().flat_map(|tracing| &tracing.custom_tags);
        tags.extend(configured.filter_map(|(name, tag)| Some((name.clone(), proxy_tag(tag)?))));
    } else {
        let configured = settings.tags.iter();
        tags.extend(configured.filter_map(|(name, tag)| Some((name.clone(), own_tag(tag)?))));
    }
    let length = proxy
        .map(|tracing| tracing.max_path_tag_length)
        .filter(|length| *length > 0)
        .or(name.and_then(|name| tag_length(view, name)));
    Some(Tracing {
        client_sampling: Some(Percent { value: 100.0 }),
        random_sampling: Some(Percent { value: sampling }),
        overall_sampling: Some(Percent { value: 100.0 }),
        max_path_tag_length: length.filter(|length| *length != PATH_LENGTH),
        custom_tags: tags
            .into_iter()
            .map(|(tag, kind)| CustomTag {
                tag,
                r#type: Some(kind),
            })
            .collect(),
        provider: tracer,
        no_context_propagation: settings.is_not_propagated,
        ..Tracing::default()
    })
}

/// How request ids are made, where it is not as usual: whether a request is traced is not drawn by its id.
pub(super) fn request_id(view: &View<'_>, side: Side) -> Option<RequestIdExtension> {
    let is_drawn = view.telemetry.tracing(side).draws_by_request_id?;
    let config = UuidRequestIdConfig {
        use_request_id_for_trace_sampling: Some(is_drawn),
        ..UuidRequestIdConfig::default()
    };
    Some(RequestIdExtension {
        typed_config: Some(any(&config)),
    })
}

fn tracer<T: prost::Message + prost::Name>(name: &str, config: &T) -> Http {
    Http {
        name: name.to_owned(),
        config_type: Some(http::ConfigType::TypedConfig(any(config))),
    }
}

/// The provider called `name`. One that cannot be reached is reported, and nobody is told.
fn named(view: &View<'_>, name: &str) -> Option<Http> {
    let outcome = match provider::find(view, name).and_then(|found| found.provider.as_ref()) {
        Some(found) => of_provider(view, found),
        None => Err("no such provider".to_owned()),
    };
    outcome
        .map_err(|reason| view.record(Metric::InvalidTelemetry, name, &reason))
        .ok()
}

fn of_provider(view: &View<'_>, found: &Provider) -> Result<Http, String> {
    match found {
        Provider::Zipkin(settings) => {
            let upstream = provider::upstream(view, &settings.service, settings.port)?;
            Ok(zipkin(&upstream, settings))
        }
        Provider::Opentelemetry(settings) => opentelemetry(view, settings),
        Provider::Datadog(settings) => {
            let upstream = provider::upstream(view, &settings.service, settings.port)?;
            let config = DatadogConfig {
                collector_cluster: upstream.cluster,
                collector_hostname: upstream.host,
                service_name: view.proxy.canonical_service(),
                ..DatadogConfig::default()
            };
            Ok(tracer("envoy.tracers.datadog", &config))
        }
        Provider::Skywalking(settings) => {
            let upstream = provider::upstream(view, &settings.service, settings.port)?;
            let token = (!settings.access_token.is_empty())
                .then(|| settings.access_token.clone())
                .map(client_config::BackendTokenSpecifier::BackendToken);
            let config = SkyWalkingConfig {
                grpc_service: Some(upstream.grpc(None)),
                client_config: Some(ClientConfig {
                    service_name: view.proxy.canonical_service(),
                    instance_name: view.proxy.id.clone(),
                    backend_token_specifier: token,
                    ..ClientConfig::default()
                }),
            };
            Ok(tracer("envoy.tracers.skywalking", &config))
        }
        Provider::Lightstep(_) | Provider::Opencensus(_) | Provider::Stackdriver(_) => {
            Err("Envoy has no such tracer any more: use opentelemetry".to_owned())
        }
        _ => Err("this provider does not trace".to_owned()),
    }
}

fn zipkin(upstream: &Upstream, settings: &ZipkinTracingProvider) -> Http {
    let path = if settings.path.is_empty() {
        "/api/v2/spans"
    } else {
        &settings.path
    };
    let is_both = settings.trace_context_option()
        == zipkin_tracing_provider::TraceContextOption::UseB3WithW3cPropagation;
    let mut config = ZipkinConfig {
        collector_cluster: upstream.cluster.clone(),
        collector_endpoint: path.to_owned(),
        collector_hostname: upstream.host.clone(),
        collector_endpoint_version: CollectorEndpointVersion::HttpJson as i32,
        // Istio's name says the opposite of what is meant by default: 128 bits.
        trace_id_128bit: !settings.enable_64bit_trace_id,
        shared_span_context: Some(false),
        ..ZipkinConfig::default()
    };
    if is_both {
        config.trace_context_option = TraceContextOption::UseB3WithW3cPropagation as i32;
    }
    tracer("envoy.tracers.zipkin", &config)
}

fn opentelemetry(view: &View<'_>, settings: &OpenTelemetryTracingProvider) -> Result<Http, String> {
    let upstream = provider::upstream(view, &settings.service, settings.port)?;
    let mut config = OpenTelemetryConfig {
        service_name: view.proxy.canonical_service(),
        ..OpenTelemetryConfig::default()
    };
    match &settings.http {
        Some(http) => {
            config.http_service = Some(HttpService {
                http_uri: Some(upstream.http(&http.path, http.timeout)),
                ..HttpService::default()
            });
        }
        None => {
            let timeout = settings.grpc.as_ref().and_then(|grpc| grpc.timeout);
            config.grpc_service = Some(upstream.grpc(timeout));
        }
    }
    let detectors = settings.resource_detectors.unwrap_or_default();
    let extension = |name: &str, config| TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(config),
    };
    if detectors.environment.is_some() {
        config.resource_detectors.push(extension(
            "envoy.tracers.opentelemetry.resource_detectors.environment",
            any(&EnvironmentResourceDetectorConfig {}),
        ));
    }
    if detectors.dynatrace.is_some() {
        config.resource_detectors.push(extension(
            "envoy.tracers.opentelemetry.resource_detectors.dynatrace",
            any(&DynatraceResourceDetectorConfig {}),
        ));
    }
    if let Some(Sampling::DynatraceSampler(sampler)) = &settings.sampling {
        config.sampler = Some(extension(
            "envoy.tracers.opentelemetry.samplers.dynatrace",
            any(&DynatraceSamplerConfig {
                tenant: sampler.tenant.clone(),
                cluster_id: sampler.cluster_id,
                root_spans_per_minute: sampler.root_spans_per_minute,
                ..DynatraceSamplerConfig::default()
            }),
        ));
    }
    Ok(tracer("envoy.tracers.opentelemetry", &config))
}

/// The tracer that the proxy settings give the address of, if that is a service of the mesh.
fn by_address(view: &View<'_>, tracing: &ProxyTracing) -> Option<Http> {
    let address = match tracing.tracer.as_ref()? {
        proxy_tracing::Tracer::Zipkin(zipkin) => &zipkin.address,
        proxy_tracing::Tracer::Datadog(datadog) => &datadog.address,
        // No proxy of today has these.
        proxy_tracing::Tracer::Lightstep(_)
        | proxy_tracing::Tracer::Stackdriver(_)
        | proxy_tracing::Tracer::OpenCensusAgent(_) => return None,
    };
    let (host, port) = address.rsplit_once(':')?;
    let host = view.full_host(host);
    let upstream = provider::upstream(view, &host, port.parse().ok()?)
        .map_err(|reason| view.record(Metric::InvalidTelemetry, address, &reason))
        .ok()?;
    if let Some(proxy_tracing::Tracer::Zipkin(_)) = &tracing.tracer {
        return Some(zipkin(&upstream, &ZipkinTracingProvider::default()));
    }
    let config = DatadogConfig {
        collector_cluster: upstream.cluster,
        collector_hostname: upstream.host,
        service_name: view.proxy.canonical_service(),
        ..DatadogConfig::default()
    };
    Some(tracer("envoy.tracers.datadog", &config))
}

fn tag_length(view: &View<'_>, name: &str) -> Option<u32> {
    let length = match provider::find(view, name)?.provider.as_ref()? {
        Provider::Zipkin(settings) => settings.max_tag_length,
        Provider::Opentelemetry(settings) => settings.max_tag_length,
        Provider::Datadog(settings) => settings.max_tag_length,
        _ => 0,
    };
    (length > 0).then_some(length)
}

fn literal(value: &str) -> custom_tag::Type {
    custom_tag::Type::Literal(custom_tag::Literal {
        value: value.to_owned(),
    })
}

/// Who the proxy is, for every span.
fn istio_tags(view: &View<'_>) -> Vec<(String, custom_tag::Type)> {
    let proxy = view.proxy;
    let revision = proxy.label("service.istio.io/canonical-revision");
    let mesh_id = proxy
        .metadata_text("MESH_ID")
        .unwrap_or(&view.push.mesh.trust_domain);
    let tags = [
        ("istio.canonical_revision", revision.unwrap_or("latest")),
        ("istio.canonical_service", &proxy.canonical_service()),
        ("istio.mesh_id", mesh_id),
        ("istio.namespace", &proxy.namespace),
        (
            "istio.cluster_id",
            proxy.metadata_text("CLUSTER_ID").unwrap_or("Kubernetes"),
        ),
    ];
    tags.into_iter()
        .map(|(name, value)| (name.to_owned(), literal(value)))
        .collect()
}

fn environment(name: &str, default: &str) -> custom_tag::Type {
    custom_tag::Type::Environment(custom_tag::Environment {
        name: name.to_owned(),
        default_value: default.to_owned(),
    })
}

fn header(name: &str, default: &str) -> custom_tag::Type {
    custom_tag::Type::RequestHeader(custom_tag::Header {
        name: name.to_owned(),
        default_value: default.to_owned(),
    })
}

fn proxy_tag(tag: &proxy_tracing::CustomTag) -> Option<custom_tag::Type> {
    use proxy_tracing::custom_tag::Type;
    Some(match tag.r#type.as_ref()? {
        Type::Literal(found) => literal(&found.value),
        Type::Environment(found) => environment(&found.name, &found.default_value),
        Type::Header(found) => header(&found.name, &found.default_value),
    })
}

fn own_tag(tag: &telemetry::CustomTag) -> Option<custom_tag::Type> {
    use telemetry::custom_tag::Type;
    Some(match tag.r#type.as_ref()? {
        Type::Literal(found) => literal(&found.value),
        Type::Environment(found) => environment(&found.name, &found.default_value),
        Type::Header(found) => header(&found.name, &found.default_value),
        Type::Formatter(found) => custom_tag::Type::Value(found.value.clone()),
    })
}
