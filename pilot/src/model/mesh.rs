//! The mesh's settings, as far as Pilot needs them.

use std::collections::BTreeMap;

use prost_types::Duration;
use proto::istio::mesh::v1alpha1::{
    ForwardClientCertDetails, LabelSelector, MeshConfig, Tracing,
    mesh_config::{
        AccessLogEncoding, ExtensionProvider, H2UpgradePolicy, TlsConfig,
        extension_provider::Provider, inbound_traffic_policy, outbound_traffic_policy,
        proxy_path_normalization::NormalizationType,
    },
    proxy_config::ProxyHeaders,
};
use proto::istio::networking::v1alpha3::{
    HttpRetry, LocalityLoadBalancerSetting, TrafficPolicy, ZoneAwareLoadBalancerSetting,
    connection_pool_settings::tcp_settings::TcpKeepalive,
};

use super::{Registry, Service, ServicePort};

/// Where access logs go and what they look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessLogSettings {
    /// Path; empty: no access log.
    pub file: String,
    /// Text format, or a JSON object of formats; empty: the default.
    pub format: String,
    /// JSON instead of text.
    pub is_json: bool,
}

/// Where Mixer is and how it is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MixerSettings {
    /// `host:port`, empty: no checks.
    pub check_server: String,
    /// `host:port`, empty: no reports.
    pub report_server: String,
    /// No checks at all.
    pub is_check_disabled: bool,
    /// Checks at the client's side too.
    pub is_client_check_enabled: bool,
    /// What cannot be checked may pass.
    pub is_fail_open: bool,
    /// Each report alone.
    pub is_batch_disabled: bool,
    /// Largest batch, 0: the default.
    pub batch_entries: u32,
    /// Longest wait for a batch.
    pub batch_time: Option<Duration>,
    /// No reports of HTTP requests.
    pub is_http_report_disabled: bool,
}

/// The settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// Port of `virtualOutbound`.
    pub outbound_port: u32,
    /// Port of `virtualInbound`.
    pub inbound_port: u32,
    /// Port of the explicit HTTP proxy, 0: none.
    pub http_proxy_port: u32,
    /// For clusters that do not say.
    pub connect_timeout: Duration,
    /// How long a listener waits for first bytes; `None`: nobody says it, and listeners have their own defaults.
    pub detection_timeout: Option<Duration>,
    /// Access logs.
    pub access_log: AccessLogSettings,
    /// Spans for requests.
    pub is_tracing: bool,
    /// Share of the requests that are traced, in percent.
    pub trace_sampling: f64,
    /// Destinations that nobody declared may be reached.
    pub is_any_outbound_allowed: bool,
    /// mTLS without being asked.
    pub is_auto_mtls: bool,
    /// HTTP/1.1 goes out as HTTP/2 unless a rule says otherwise.
    pub is_h2_upgraded: bool,
    /// First part of SPIFFE ids.
    pub trust_domain: String,
    /// Further first parts that mean the same.
    pub trust_domain_aliases: Vec<String>,
    /// Where mesh-wide resources are.
    pub root_namespace: String,
    /// `exportTo` of services that do not say.
    pub service_export_to: Vec<String>,
    /// `exportTo` of virtual services that do not say.
    pub virtual_service_export_to: Vec<String>,
    /// `exportTo` of destination rules that do not say.
    pub destination_rule_export_to: Vec<String>,
    /// How often names are resolved.
    pub dns_refresh_rate: Duration,
    /// Keep-alive of upstream connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Load balancing between localities.
    pub locality_lb: Option<LocalityLoadBalancerSetting>,
    /// Load balancing between zones, which proxies do by themselves.
    pub zone_aware_lb: Option<ZoneAwareLoadBalancerSetting>,
    /// The workload is reached at the address that its clients asked for, not at the loopback address.
    pub is_inbound_passthrough: bool,
    /// Hosts, or wildcards, whose endpoints are for clients of their own cluster only, or are not.
    pub cluster_local: BTreeMap<String, bool>,
    /// What destination rules start from: limits, and when an endpoint is left alone.
    pub default_policy: TrafficPolicy,
    /// Retries of routes that do not say.
    pub default_retry: Option<HttpRetry>,
    /// How paths are made comparable before anything looks at them.
    pub path_normalization: NormalizationType,
    /// Mixer.
    pub mixer: MixerSettings,
    /// The mesh's name, for telemetry.
    pub mesh_id: String,
    /// What policies and telemetry may call by name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Which headers proxies add, and what they say.
    pub headers: ProxyHeaders,
    /// The tracer where no Telemetry names one.
    pub default_tracing_provider: Option<String>,
    /// The metrics where no Telemetry names others.
    pub default_metrics_providers: Vec<String>,
    /// The access logs where no Telemetry names others.
    pub default_logging_providers: Vec<String>,
    /// How proxies trace by themselves.
    pub tracing: Option<Tracing>,
    /// Listeners do not log connections without a filter chain.
    pub is_listener_log_disabled: bool,
    /// Access logs over gRPC go to `envoy_accesslog_service` too.
    pub is_log_service_enabled: bool,
    /// Proxies of one's own before the gateways.
    pub trusted_proxies: u32,
    /// What gateways do with the client's certificate in headers.
    pub gateway_client_cert: ForwardClientCertDetails,
    /// Gateways read PROXY protocol.
    pub is_gateway_proxy_protocol: bool,
    /// Limits of mesh mTLS.
    pub mesh_tls: TlsConfig,
    /// Limits of all other TLS that says nothing itself.
    pub tls_defaults: TlsConfig,
    /// Labels of the namespaces that the mesh follows; empty: all.
    pub discovery_selectors: Vec<LabelSelector>,
    inbound_stat_pattern: String,
    outbound_stat_pattern: String,
}

impl Default for Mesh {
    fn default() -> Self {
        Mesh::from(&proto_mesh::mesh_config::defaults())
    }
}

impl From<&MeshConfig> for AccessLogSettings {
    fn from(config: &MeshConfig) -> Self {
        AccessLogSettings {
            file: config.access_log_file.clone(),
            format: config.access_log_format.clone(),
            is_json: config.access_log_encoding() == AccessLogEncoding::Json,
        }
    }
}

impl From<&MeshConfig> for MixerSettings {
    fn from(config: &MeshConfig) -> Self {
        MixerSettings {
            check_server: config.mixer_check_server.clone(),
            report_server: config.mixer_report_server.clone(),
            is_check_disabled: config.disable_policy_checks,
            is_client_check_enabled: config.enable_client_side_policy_check,
            is_fail_open: config.policy_check_fail_open,
            is_batch_disabled: config.disable_report_batch,
            batch_entries: config.report_batch_max_entries,
            batch_time: config.report_batch_max_time,
            is_http_report_disabled: config.disable_mixer_http_reports,
        }
    }
}

impl From<&MeshConfig> for Mesh {
    fn from(config: &MeshConfig) -> Self {
        let port = |value: i32, default: u32| {
            u32::try_from(value)
                .ok()
                .filter(|port| *port > 0)
                .unwrap_or(default)
        };
        let proxy = config.default_config.clone().unwrap_or_default();
        let providers = config.default_providers.clone().unwrap_or_default();
        let topology = proxy.gateway_topology.unwrap_or_default();
        let list = |values: &[String]| values.to_vec();
        let or = |value: &str, default: &str| {
            if value.is_empty() {
                default.to_owned()
            } else {
                value.to_owned()
            }
        };
        Mesh {
            outbound_port: port(config.proxy_listen_port, 15001),
            inbound_port: port(config.proxy_inbound_listen_port, 15006),
            http_proxy_port: u32::try_from(config.proxy_http_port).unwrap_or(0),
            connect_timeout: seconds_or(config.connect_timeout, 10),
            detection_timeout: config.protocol_detection_timeout.filter(is_positive),
            access_log: AccessLogSettings::from(config),
            is_tracing: config.enable_tracing,
            trace_sampling: proxy
                .tracing
                .as_ref()
                .map_or(1.0, |tracing| tracing.sampling),
            is_any_outbound_allowed: config
                .outbound_traffic_policy
                .as_ref()
                .is_none_or(|policy| policy.mode() != outbound_traffic_policy::Mode::RegistryOnly),
            is_auto_mtls: config.enable_auto_mtls.unwrap_or(true),
            is_h2_upgraded: config.h2_upgrade_policy() == H2UpgradePolicy::Upgrade,
            trust_domain: or(&config.trust_domain, "cluster.local"),
            trust_domain_aliases: list(&config.trust_domain_aliases),
            root_namespace: or(&config.root_namespace, "istio-system"),
            service_export_to: list(&config.default_service_export_to),
            virtual_service_export_to: list(&config.default_virtual_service_export_to),
            destination_rule_export_to: list(&config.default_destination_rule_export_to),
            dns_refresh_rate: seconds_or(config.dns_refresh_rate, 60),
            tcp_keepalive: config.tcp_keepalive,
            locality_lb: config.locality_lb_setting.clone(),
            zone_aware_lb: config.zone_aware_lb_setting.clone(),
            is_inbound_passthrough: config
                .inbound_traffic_policy
                .as_ref()
                .is_some_and(|policy| policy.mode() == inbound_traffic_policy::Mode::Passthrough),
            cluster_local: cluster_local(config),
            default_policy: default_policy(config),
            default_retry: config.default_http_retry_policy.clone(),
            path_normalization: config.path_normalization.as_ref().map_or(
                NormalizationType::Default,
                proto::istio::mesh::v1alpha1::mesh_config::ProxyPathNormalization::normalization,
            ),
            mixer: MixerSettings::from(config),
            mesh_id: proxy.mesh_id.clone(),
            extension_providers: config.extension_providers.clone(),
            headers: proxy.proxy_headers.unwrap_or_default(),
            default_tracing_provider: providers.tracing.first().cloned(),
            default_metrics_providers: providers.metrics.clone(),
            default_logging_providers: providers.access_logging.clone(),
            trusted_proxies: topology.num_trusted_proxies,
            gateway_client_cert: topology.forward_client_cert_details(),
            is_gateway_proxy_protocol: topology.proxy_protocol.is_some(),
            is_listener_log_disabled: config.disable_envoy_listener_log,
            is_log_service_enabled: config.enable_envoy_access_log_service,
            mesh_tls: config.mesh_m_tls.clone().unwrap_or_default(),
            tls_defaults: config.tls_defaults.clone().unwrap_or_default(),
            tracing: proxy.tracing.clone(),
            discovery_selectors: config.discovery_selectors.clone(),
            inbound_stat_pattern: config.inbound_cluster_stat_name.clone(),
            outbound_stat_pattern: config.outbound_cluster_stat_name.clone(),
        }
    }
}

/// What is said of hosts, by host.
fn cluster_local(config: &MeshConfig) -> BTreeMap<String, bool> {
    let said = config.service_settings.iter().flat_map(|one| {
        let is_local = one.settings.is_some_and(|settings| settings.cluster_local);
        one.hosts.iter().map(move |host| (host.clone(), is_local))
    });
    said.collect()
}

/// As in Istio only two of the groups count for a whole mesh.
fn default_policy(config: &MeshConfig) -> TrafficPolicy {
    let given = config.default_traffic_policy.clone().unwrap_or_default();
    TrafficPolicy {
        connection_pool: given.connection_pool,
        outlier_detection: given.outlier_detection,
        ..TrafficPolicy::default()
    }
}

fn is_positive(duration: &Duration) -> bool {
    duration.seconds > 0 || duration.nanos > 0
}

fn seconds_or(duration: Option<Duration>, seconds: i64) -> Duration {
    let default = Duration { seconds, nanos: 0 };
    duration.filter(is_positive).unwrap_or(default)
}

impl Mesh {
    /// True when upstreams are told how often a request has been tried.
    #[must_use]
    pub fn is_attempt_told(&self) -> bool {
        let header = self.headers.attempt_count.as_ref();
        !header.is_some_and(|header| header.disabled.unwrap_or_default())
    }

    /// The name of an outbound cluster in statistics, empty: its own name.
    #[must_use]
    pub fn outbound_stat_name(
        &self,
        service: &Service,
        port: &ServicePort,
        subset: &str,
    ) -> String {
        stat_name(&self.outbound_stat_pattern, service, port, subset)
    }

    /// The name of an inbound cluster in statistics, empty: its own name.
    #[must_use]
    pub fn inbound_stat_name(&self, service: &Service, port: &ServicePort) -> String {
        stat_name(&self.inbound_stat_pattern, service, port, "")
    }

    /// True when endpoints are preferred by the client's labels.
    #[must_use]
    pub fn has_failover_labels(&self) -> bool {
        let zones = self.zone_aware_lb.as_ref();
        let localities = self.locality_lb.as_ref();
        zones.is_some_and(|setting| !setting.failover_priority.is_empty())
            || localities.is_some_and(|setting| !setting.failover_priority.is_empty())
    }

    /// True when clients in other clusters are not to reach the service's endpoints here: where the settings say nothing, those of
    /// Kubernetes itself.
    #[must_use]
    pub fn is_cluster_local(&self, service: &Service) -> bool {
        let hosts = self.cluster_local.keys().map(String::as_str);
        match proto_mesh::host::most_specific(&service.host, hosts) {
            Some(host) => self.cluster_local[host],
            None => {
                let is_api_server = service.name == "kubernetes" && service.namespace == "default";
                service.registry == Registry::Kubernetes
                    && (is_api_server || service.namespace == "kube-system")
            }
        }
    }

    /// The trust domain and its aliases.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.trust_domain.as_str())
            .chain(self.trust_domain_aliases.iter().map(String::as_str))
    }
}

fn stat_name(pattern: &str, service: &Service, port: &ServicePort, subset: &str) -> String {
    if pattern.is_empty() {
        return String::new();
    }
    let short = format!("{}.{}", service.name, service.namespace);
    pattern
        .replace("%SERVICE_PORT_NAME%", &port.name)
        .replace("%SERVICE_PORT%", &port.number.to_string())
        .replace("%SERVICE_FQDN%", &service.host)
        .replace("%SERVICE_NAME%", &service.name)
        .replace("%SERVICE%", &short)
        .replace("%SUBSET_NAME%", subset)
}

/// The services that providers are at, as `host`.
pub fn provider_hosts(providers: &[ExtensionProvider]) -> impl Iterator<Item = &str> {
    providers.iter().filter_map(|provider| {
        let service = match provider.provider.as_ref()? {
            Provider::EnvoyExtAuthzHttp(found) => &found.service,
            Provider::EnvoyExtAuthzGrpc(found) => &found.service,
            Provider::Zipkin(found) => &found.service,
            Provider::Lightstep(found) => &found.service,
            Provider::Datadog(found) => &found.service,
            Provider::Opencensus(found) => &found.service,
            Provider::Skywalking(found) => &found.service,
            Provider::EnvoyHttpAls(found) => &found.service,
            Provider::EnvoyTcpAls(found) => &found.service,
            Provider::EnvoyOtelAls(found) => &found.service,
            Provider::Opentelemetry(found) => &found.service,
            Provider::Sds(found) => &found.service,
            Provider::Stackdriver(_)
            | Provider::Prometheus(_)
            | Provider::EnvoyFileAccessLog(_) => return None,
        };
        Some(
            service
                .split_once('/')
                .map_or(service.as_str(), |(_, host)| host),
        )
    })
}
