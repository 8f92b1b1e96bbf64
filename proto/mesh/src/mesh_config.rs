//! The settings of the whole mesh: today's defaults for everything that both lines know, the 1.4 line's for what only it
//! knows (Mixer, the node agent).

use prost_types::Duration;
use proto::istio::mesh::v1alpha1::mesh_config::{self, IngressControllerMode};
use proto::istio::mesh::v1alpha1::{
    AuthenticationPolicy, MeshConfig, ProxyConfig, Tracing, proxy_config,
};
use proto::istio::networking::v1alpha3::{HttpRetry, LocalityLoadBalancerSetting};
use proto::json::{self, JsonError};
use proto::yaml::{self, YamlError};
use serde_json::{Map, Value};

mod discovery;
mod rules;

pub use discovery::is_followed;
pub use rules::{check, check_networks};

/// A text that is no mesh configuration.
#[derive(Debug, thiserror::Error)]
pub enum InvalidMeshConfig {
    /// It is not YAML.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// It holds several documents.
    #[error("found {0} documents where one is wanted")]
    Documents(usize),
    /// A field is unknown or does not fit.
    #[error("line {line}: {error}")]
    Field {
        /// Line of the field.
        line: usize,
        /// What is wrong with it.
        #[source]
        error: JsonError,
    },
}

/// The mesh configuration when nothing is said.
#[must_use]
pub fn defaults() -> MeshConfig {
    let public = || vec!["*".to_owned()];
    MeshConfig {
        disable_policy_checks: true,
        proxy_listen_port: 15001,
        proxy_inbound_listen_port: 15006,
        connect_timeout: Some(seconds(10)),
        ingress_class: "istio".into(),
        ingress_service: "istio-ingressgateway".into(),
        ingress_selector: "ingressgateway".into(),
        ingress_controller_mode: IngressControllerMode::Strict.into(),
        enable_tracing: true,
        default_config: Some(default_proxy_config()),
        outbound_traffic_policy: Some(mesh_config::OutboundTrafficPolicy {
            mode: mesh_config::outbound_traffic_policy::Mode::AllowAny.into(),
        }),
        trust_domain: crate::spiffe::DEFAULT_TRUST_DOMAIN.into(),
        default_service_export_to: public(),
        default_virtual_service_export_to: public(),
        default_destination_rule_export_to: public(),
        root_namespace: "istio-system".into(),
        locality_lb_setting: Some(LocalityLoadBalancerSetting {
            enabled: Some(true),
            ..Default::default()
        }),
        dns_refresh_rate: Some(seconds(60)),
        report_batch_max_entries: 100,
        report_batch_max_time: Some(seconds(1)),
        protocol_detection_timeout: Some(seconds(0)),
        enable_auto_mtls: Some(true),
        enable_prometheus_merge: Some(true),
        extension_providers: default_providers(),
        default_providers: Some(mesh_config::DefaultProviders::default()),
        default_http_retry_policy: Some(HttpRetry {
            attempts: 2,
            retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
                .into(),
            ..Default::default()
        }),
        hbone_idle_timeout: Some(seconds(3600)),
        ..Default::default()
    }
}

fn default_providers() -> Vec<mesh_config::ExtensionProvider> {
    use mesh_config::extension_provider::{
        EnvoyFileAccessLogProvider, PrometheusMetricsProvider, Provider, StackdriverProvider,
    };
    let provider = |name: &str, provider| mesh_config::ExtensionProvider {
        name: name.into(),
        provider: Some(provider),
    };
    vec![
        provider(
            "prometheus",
            Provider::Prometheus(PrometheusMetricsProvider {}),
        ),
        provider(
            "stackdriver",
            Provider::Stackdriver(StackdriverProvider::default()),
        ),
        provider(
            "envoy",
            Provider::EnvoyFileAccessLog(EnvoyFileAccessLogProvider {
                path: "/dev/stdout".into(),
                ..Default::default()
            }),
        ),
    ]
}

/// The settings of proxies when nothing is said.
#[must_use]
pub fn default_proxy_config() -> ProxyConfig {
    ProxyConfig {
        config_path: "/etc/istio/proxy".into(),
        binary_path: "/usr/local/bin/envoy".into(),
        cluster_name: Some(proxy_config::ClusterName::ServiceCluster(
            "istio-proxy".into(),
        )),
        drain_duration: Some(seconds(45)),
        parent_shutdown_duration: Some(seconds(60)),
        termination_drain_duration: Some(seconds(5)),
        discovery_address: "istio-pilot.istio-system.svc:15010".into(),
        proxy_admin_port: 15000,
        control_plane_auth_policy: AuthenticationPolicy::None.into(),
        stat_name_length: 189,
        status_port: 15020,
        tracing: Some(Tracing {
            sampling: 1.0,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Reads a mesh configuration from YAML over the defaults. Each field that the text has replaces the default's as a whole,
/// except that `defaultConfig` is laid over the default settings of proxies field by field.
///
/// # Errors
/// When the text is not YAML, or a field is unknown or does not fit.
pub fn from_yaml(text: &str) -> Result<MeshConfig, InvalidMeshConfig> {
    let mut documents = yaml::parse_documents(text);
    if documents.len() > 1 {
        return Err(InvalidMeshConfig::Documents(documents.len()));
    }
    let Some(document) = documents.pop().transpose()? else {
        return Ok(defaults());
    };
    overlay(&defaults(), &document.value).map_err(|error| InvalidMeshConfig::Field {
        line: document.line_of(error.path().unwrap_or_default()),
        error,
    })
}

/// Lays JSON over a mesh configuration, as [`from_yaml`] does over the defaults.
///
/// # Errors
/// When a field is unknown or does not fit.
pub fn overlay(base: &MeshConfig, settings: &Value) -> Result<MeshConfig, JsonError> {
    // The settings must fit by themselves, so that an error's path is the user's.
    let given: MeshConfig = json::from_value(settings)?;
    let Value::Object(settings) = settings else {
        return Ok(base.clone());
    };
    let mut merged = to_object(base)?;
    for (name, value) in by_json_name("istio.mesh.v1alpha1.MeshConfig", settings) {
        let value = match (name.as_str(), value) {
            ("defaultConfig", Value::Object(proxy)) if given.default_config.is_some() => {
                let proxy_base = base.default_config.clone().unwrap_or_default();
                Value::Object(merge_proxy_config(&proxy_base, &proxy)?)
            }
            (_, value) => value,
        };
        merged.insert(name, value);
    }
    json::from_value(&Value::Object(merged))
}

/// Lays JSON (of the annotation `proxy.istio.io/config`) over the settings of a proxy, field by field.
///
/// # Errors
/// When a field is unknown or does not fit.
pub fn overlay_proxy_config(
    base: &ProxyConfig,
    settings: &Value,
) -> Result<ProxyConfig, JsonError> {
    json::from_value::<ProxyConfig>(settings)?;
    match settings {
        Value::Object(settings) => {
            json::from_value(&Value::Object(merge_proxy_config(base, settings)?))
        }
        _ => Ok(base.clone()),
    }
}

fn merge_proxy_config(
    base: &ProxyConfig,
    settings: &Map<String, Value>,
) -> Result<Map<String, Value>, JsonError> {
    let mut merged = to_object(base)?;
    for (name, value) in by_json_name("istio.mesh.v1alpha1.ProxyConfig", settings) {
        // The two ways to name a cluster exclude each other.
        if name == "tracingServiceName" {
            merged.remove("serviceCluster");
        }
        merged.insert(name, value);
    }
    Ok(merged)
}

fn to_object<T: prost::Message + prost::Name>(
    message: &T,
) -> Result<Map<String, Value>, JsonError> {
    match json::to_value(message)? {
        Value::Object(fields) => Ok(fields),
        _ => Ok(Map::new()),
    }
}

/// The fields of a message's JSON form under their camelCase names, whichever of the two names was written.
fn by_json_name(message: &str, fields: &Map<String, Value>) -> Vec<(String, Value)> {
    let descriptor = proto::descriptor::message(message);
    fields
        .iter()
        .map(|(name, value)| {
            let field = descriptor
                .as_ref()
                .and_then(|descriptor| descriptor.get_field_by_name(name));
            (
                field.map_or_else(|| name.clone(), |field| field.json_name().to_owned()),
                value.clone(),
            )
        })
        .collect()
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_means_the_defaults() {
        assert_eq!(from_yaml("").unwrap(), defaults());
        assert_eq!(from_yaml("{}").unwrap(), defaults());
    }

    #[test]
    fn what_is_said_replaces_the_default() {
        let mesh = from_yaml(
            "enableTracing: false\ntrust_domain: td\nenableAutoMtls: false\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n\
             mixerCheckServer: istio-policy:9091\ndefaultConfig:\n  discoveryAddress: pilot:1\n  tracing: {zipkin: {address: z:1}}\n",
        )
        .unwrap();
        assert!(!mesh.enable_tracing);
        assert_eq!(mesh.enable_auto_mtls, Some(false));
        assert_eq!(
            (mesh.trust_domain.as_str(), mesh.root_namespace.as_str()),
            ("td", "istio-system")
        );
        assert_eq!(mesh.mixer_check_server, "istio-policy:9091");
        assert_eq!(mesh.outbound_traffic_policy.unwrap().mode, 0);
        let proxy = mesh.default_config.unwrap();
        assert_eq!(
            (proxy.discovery_address.as_str(), proxy.proxy_admin_port),
            ("pilot:1", 15000)
        );
        assert!(proxy.tracing.unwrap().sampling.abs() < f64::EPSILON);
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_line() {
        let error = from_yaml("enableTracing: true\ndefaultConfig:\n  statusPrt: 1\n").unwrap_err();
        assert!(
            matches!(error, InvalidMeshConfig::Field { line: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_pod_may_change_its_proxy() {
        let proxy = overlay_proxy_config(
            &default_proxy_config(),
            &serde_json::json!({"concurrency": 3}),
        )
        .unwrap();
        assert_eq!((proxy.concurrency, proxy.status_port), (Some(3), 15020));
    }
}
