//! Access logs as the mesh's settings ask for them.

use prost_types::Struct;
use proto::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, AndFilter, ExtensionFilter, ResponseFlagFilter, access_log,
    access_log_filter::FilterSpecifier, extension_filter,
};
use proto::envoy::config::core::v3::{
    ApiVersion, DataSource, GrpcService, SubstitutionFormatString, data_source::Specifier,
    grpc_service, substitution_format_string::Format,
};
use proto::envoy::extensions::access_loggers::{
    file::v3::{FileAccessLog, file_access_log},
    filters::cel::v3::ExpressionFilter,
    grpc::v3::{CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig},
    open_telemetry::v3::OpenTelemetryAccessLogConfig,
};
use proto::istio::mesh::v1alpha1::mesh_config::extension_provider::{
    EnvoyFileAccessLogProvider, EnvoyOpenTelemetryLogProvider, Provider,
    envoy_file_access_log_provider::log_format::LogFormat,
};
use proto::opentelemetry::proto::common::v1::{AnyValue, KeyValue, KeyValueList, any_value};

use super::wire::{any, strings};
use super::{View, provider};
use crate::model::Mesh;
use crate::push_context::status::Metric;
use crate::push_context::telemetry::{Logging, Side};

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Requests.
    Http,
    /// Connections.
    Tcp,
}

/// The default line.
const TEXT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
%RESPONSE_FLAGS% \"%DYNAMIC_METADATA(istio.mixer:status)%\" \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% \
%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The default JSON object.
const JSON_FORMAT: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "istio_policy_status",
        "%DYNAMIC_METADATA(istio.mixer:status)%",
    ),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
];

/// The access logs of HTTP connection managers and TCP proxies.
#[must_use]
pub fn build(view: &View<'_>, side: Side, layer: Layer) -> Vec<AccessLog> {
    let mesh = &view.push.mesh;
    let defaults = &mesh.default_logging_providers;
    let wanted = view.telemetry.access_logs(side, defaults).or_else(|| {
        let all = defaults.iter().map(|provider| Logging {
            provider: provider.clone(),
            filter: String::new(),
        });
        (!defaults.is_empty()).then(|| all.collect())
    });
    let Some(wanted) = wanted else {
        return of_mesh(mesh, layer);
    };
    let mut logs = Vec::new();
    for logging in wanted {
        match of_provider(view, &logging.provider, layer) {
            Ok(found) => logs.extend(found.into_iter().map(|mut log| {
                log.filter = expression(&logging.filter);
                log
            })),
            Err(reason) => view.record(Metric::InvalidTelemetry, &logging.provider, &reason),
        }
    }
    logs
}

/// The access logs of listeners: only connections for which no filter chain was found.
#[must_use]
pub fn build_for_listener(view: &View<'_>, side: Side) -> Vec<AccessLog> {
    if view.push.mesh.is_listener_log_disabled {
        return Vec::new();
    }
    let mut logs = build(view, side, Layer::Tcp);
    for log in &mut logs {
        let flags = ResponseFlagFilter {
            flags: vec!["NR".to_owned()],
        };
        let unrouted = AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(flags)),
        };
        log.filter = Some(match log.filter.take() {
            Some(asked) => AccessLogFilter {
                filter_specifier: Some(FilterSpecifier::AndFilter(AndFilter {
                    filters: vec![unrouted, asked],
                })),
            },
            None => unrouted,
        });
    }
    logs
}

fn log<T: prost::Message + prost::Name>(name: &str, config: &T) -> AccessLog {
    AccessLog {
        name: name.to_owned(),
        filter: None,
        config_type: Some(access_log::ConfigType::TypedConfig(any(config))),
    }
}

/// What the mesh's own settings ask for.
fn of_mesh(mesh: &Mesh, layer: Layer) -> Vec<AccessLog> {
    let settings = &mesh.access_log;
    let mut logs = Vec::new();
    if !settings.file.is_empty() {
        let format = if settings.is_json {
            let fields = serde_json::from_str(&settings.format)
                .ok()
                .and_then(json_fields);
            Format::JsonFormat(fields.unwrap_or_else(|| strings(JSON_FORMAT.iter().copied())))
        } else {
            text_format(&settings.format)
        };
        logs.push(file(&settings.file, format, false));
    }
    if mesh.is_log_service_enabled && layer == Layer::Http {
        let service = GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(
                grpc_service::EnvoyGrpc {
                    cluster_name: "envoy_accesslog_service".to_owned(),
                    ..grpc_service::EnvoyGrpc::default()
                },
            )),
            ..GrpcService::default()
        };
        let config = HttpGrpcAccessLogConfig {
            common_config: Some(common("http_envoy_accesslog", service, &[])),
            ..HttpGrpcAccessLogConfig::default()
        };
        logs.push(log("envoy.access_loggers.http_grpc", &config));
    }
    logs
}

fn text_format(text: &str) -> Format {
    let text = if text.is_empty() { TEXT_FORMAT } else { text };
    Format::TextFormatSource(DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    })
}

fn file(path: &str, format: Format, omits_empty: bool) -> AccessLog {
    let config = FileAccessLog {
        path: path.to_owned(),
        access_log_format: Some(file_access_log::AccessLogFormat::LogFormat(
            SubstitutionFormatString {
                format: Some(format),
                omit_empty_values: omits_empty,
                ..SubstitutionFormatString::default()
            },
        )),
    };
    log("envoy.access_loggers.file", &config)
}

fn expression(text: &str) -> Option<AccessLogFilter> {
    if text.is_empty() {
        return None;
    }
    let filter = ExpressionFilter {
        expression: text.to_owned(),
        ..ExpressionFilter::default()
    };
    Some(AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ExtensionFilter(ExtensionFilter {
            name: "envoy.access_loggers.extension_filters.cel".to_owned(),
            config_type: Some(extension_filter::ConfigType::TypedConfig(any(&filter))),
        })),
    })
}

/// A provider's log of `layer`; none when it has none of that kind.
fn of_provider(view: &View<'_>, name: &str, layer: Layer) -> Result<Option<AccessLog>, String> {
    let found = provider::find(view, name).and_then(|found| found.provider.as_ref());
    Ok(match found.ok_or("no such provider")? {
        Provider::EnvoyFileAccessLog(settings) => Some(of_file(settings)),
        Provider::EnvoyHttpAls(settings) if layer == Layer::Http => {
            let upstream = provider::upstream(view, &settings.service, settings.port)?;
            let name = or(&settings.log_name, "http_envoy_accesslog");
            let objects = &settings.filter_state_objects_to_log;
            let config = HttpGrpcAccessLogConfig {
                common_config: Some(common(name, upstream.grpc(None), objects)),
                additional_request_headers_to_log: settings
                    .additional_request_headers_to_log
                    .clone(),
                additional_response_headers_to_log: settings
                    .additional_response_headers_to_log
                    .clone(),
                additional_response_trailers_to_log: settings
                    .additional_response_trailers_to_log
                    .clone(),
            };
            Some(log("envoy.access_loggers.http_grpc", &config))
        }
        Provider::EnvoyTcpAls(settings) if layer == Layer::Tcp => {
            let upstream = provider::upstream(view, &settings.service, settings.port)?;
            let name = or(&settings.log_name, "tcp_envoy_accesslog");
            let objects = &settings.filter_state_objects_to_log;
            let config = TcpGrpcAccessLogConfig {
                common_config: Some(common(name, upstream.grpc(None), objects)),
            };
            Some(log("envoy.access_loggers.tcp_grpc", &config))
        }
        Provider::EnvoyHttpAls(_) | Provider::EnvoyTcpAls(_) => None,
        Provider::EnvoyOtelAls(settings) => Some(of_otel(view, settings)?),
        _ => return Err("this provider has no access log".to_owned()),
    })
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn common(name: &str, service: GrpcService, objects: &[String]) -> CommonGrpcAccessLogConfig {
    CommonGrpcAccessLogConfig {
        log_name: name.to_owned(),
        grpc_service: Some(service),
        transport_api_version: ApiVersion::V3 as i32,
        filter_state_objects_to_log: objects.to_vec(),
        ..CommonGrpcAccessLogConfig::default()
    }
}

fn of_file(settings: &EnvoyFileAccessLogProvider) -> AccessLog {
    let format = settings
        .log_format
        .as_ref()
        .and_then(|format| format.log_format.as_ref());
    let format = match format {
        Some(LogFormat::Labels(labels)) if !labels.fields.is_empty() => {
            Format::JsonFormat(labels.clone())
        }
        Some(LogFormat::Labels(_)) => Format::JsonFormat(strings(JSON_FORMAT.iter().copied())),
        // Every line ends, whatever was written.
        Some(LogFormat::Text(text)) if !text.is_empty() && !text.ends_with('\n') => {
            text_format(&format!("{text}\n"))
        }
        Some(LogFormat::Text(text)) => text_format(text),
        None => text_format(""),
    };
    file(
        or(&settings.path, "/dev/stdout"),
        format,
        settings.omit_empty_values,
    )
}

fn of_otel(view: &View<'_>, settings: &EnvoyOpenTelemetryLogProvider) -> Result<AccessLog, String> {
    let upstream = provider::upstream(view, &settings.service, settings.port)?;
    let format = settings.log_format.clone().unwrap_or_default();
    let body = or(&format.text, TEXT_FORMAT);
    let text = |text: &str| AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    };
    let labels = format.labels.unwrap_or_default();
    let values = labels.fields.iter().filter_map(|(key, value)| {
        let prost_types::value::Kind::StringValue(value) = value.kind.as_ref()? else {
            return None;
        };
        Some(KeyValue {
            key: key.clone(),
            value: Some(text(value)),
            ..KeyValue::default()
        })
    });
    let config = OpenTelemetryAccessLogConfig {
        log_name: or(&settings.log_name, "otel_envoy_accesslog").to_owned(),
        grpc_service: Some(upstream.grpc(None)),
        disable_builtin_labels: true,
        body: Some(text(body)),
        attributes: Some(KeyValueList {
            values: values.collect(),
        }),
        ..OpenTelemetryAccessLogConfig::default()
    };
    Ok(log("envoy.access_loggers.open_telemetry", &config))
}

fn json_fields(value: serde_json::Value) -> Option<Struct> {
    let serde_json::Value::Object(fields) = value else {
        return None;
    };
    let texts = fields
        .iter()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
    Some(strings(texts))
}
