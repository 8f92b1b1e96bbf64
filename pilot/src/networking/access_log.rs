//! Access logs as the mesh's settings ask for them.

use prost_types::Struct;
use proto::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, ResponseFlagFilter, access_log, access_log_filter::FilterSpecifier,
};
use proto::envoy::config::core::v3::{
    DataSource, SubstitutionFormatString, data_source::Specifier,
    substitution_format_string::Format,
};
use proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};

use super::wire::{any, strings};
use crate::model::Mesh;

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
pub fn build(mesh: &Mesh) -> Vec<AccessLog> {
    let settings = &mesh.access_log;
    if settings.file.is_empty() {
        return Vec::new();
    }
    let format = if settings.is_json {
        let fields = serde_json::from_str(&settings.format)
            .ok()
            .and_then(json_fields);
        Format::JsonFormat(fields.unwrap_or_else(|| strings(JSON_FORMAT.iter().copied())))
    } else {
        let text = if settings.format.is_empty() {
            TEXT_FORMAT
        } else {
            &settings.format
        };
        Format::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(text.to_owned())),
            ..DataSource::default()
        })
    };
    let log = FileAccessLog {
        path: settings.file.clone(),
        access_log_format: Some(file_access_log::AccessLogFormat::LogFormat(
            SubstitutionFormatString {
                format: Some(format),
                ..SubstitutionFormatString::default()
            },
        )),
    };
    vec![AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter: None,
        config_type: Some(access_log::ConfigType::TypedConfig(any(&log))),
    }]
}

/// The access logs of listeners: only connections for which no filter chain was found.
#[must_use]
pub fn build_for_listener(mesh: &Mesh) -> Vec<AccessLog> {
    let mut logs = build(mesh);
    for log in &mut logs {
        let flags = ResponseFlagFilter {
            flags: vec!["NR".to_owned()],
        };
        log.filter = Some(AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(flags)),
        });
    }
    logs
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
