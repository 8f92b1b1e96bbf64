//! The part of a destination rule that holds for one cluster, and what it does to the cluster.
//!
//! A subset's policy overrides the host's group by group; a port's entry replaces all four groups, those it leaves out included,
//! which are then the mesh's.

use prost_types::Duration;
use proto::envoy::config::cluster::v3::{
    Cluster, OutlierDetection, UpstreamConnectionOptions,
    circuit_breakers::thresholds::RetryBudget,
    cluster::{
        CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
        RoundRobinLbConfig, SlowStartConfig, ring_hash_lb_config::HashFunction,
    },
};
use proto::envoy::config::core::v3::{
    Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings, RuntimeDouble, TcpKeepalive,
};
use proto::envoy::r#type::v3::Percent;
use proto::istio::networking::v1alpha3::{
    self as wire, ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings,
    load_balancer_settings::{
        ConsistentHashLb, LbPolicy as WirePolicy, SimpleLb, consistent_hash_lb::HashAlgorithm,
    },
};

mod places;

pub use places::Places;

use super::protocol_options::{Common, ServerNames};
use super::{positive, unlimited};
use crate::model::{Mesh, Service};
use crate::networking::View;

/// How long an answer to a ping may take, if nobody says it: gRPC's default, as Envoy has none.
const PING_TIMEOUT: Duration = Duration {
    seconds: 20,
    nanos: 0,
};

/// The four groups that may differ by port.
#[derive(Clone, Debug, Default)]
pub struct TrafficPolicy<'a> {
    /// How an endpoint is chosen.
    pub load_balancer: Option<&'a LoadBalancerSettings>,
    /// Limits and timeouts.
    pub connection_pool: Option<&'a ConnectionPoolSettings>,
    /// When an endpoint is left alone.
    pub outlier_detection: Option<&'a wire::OutlierDetection>,
    /// What is spoken.
    pub tls: Option<&'a ClientTlsSettings>,
    /// Connections go through an HTTP proxy.
    pub tunnel: Option<&'a wire::traffic_policy::TunnelSettings>,
    /// Endpoints are told of the client.
    pub proxy_protocol: Option<&'a wire::traffic_policy::ProxyProtocol>,
    /// How many requests may be tried again at once.
    pub retry_budget: Option<&'a wire::traffic_policy::RetryBudget>,
    /// What a group starts from that nobody says.
    pub(super) baseline: Option<&'a wire::TrafficPolicy>,
}

impl<'a> TrafficPolicy<'a> {
    /// What holds for clients of a port of `service`, or of one of its subsets.
    #[must_use]
    pub fn of(view: &'a View<'_>, service: &Service, port: u32, subset: &str) -> Self {
        let rule = view.destination_rule(service);
        let policy = TrafficPolicy::of_mesh(&view.push.mesh)
            .merge(rule.and_then(|rule| rule.traffic_policy.as_ref()), port);
        if subset.is_empty() {
            return policy;
        }
        let subset = rule.and_then(|rule| rule.subset(subset));
        policy.merge(
            subset.and_then(|subset| subset.traffic_policy.as_ref()),
            port,
        )
    }

    /// What holds where no destination rule says anything.
    #[must_use]
    pub fn of_mesh(mesh: &'a Mesh) -> Self {
        let baseline = &mesh.default_policy;
        TrafficPolicy {
            connection_pool: baseline.connection_pool.as_ref(),
            outlier_detection: baseline.outlier_detection.as_ref(),
            baseline: Some(baseline),
            ..TrafficPolicy::default()
        }
    }

    /// `policy` on top of what holds already, for `port`.
    #[must_use]
    pub fn merge(&self, policy: Option<&'a wire::TrafficPolicy>, port: u32) -> Self {
        let Some(policy) = policy else {
            return self.clone();
        };
        let of_port = policy.port_level_settings.iter().find(|entry| {
            entry
                .port
                .as_ref()
                .is_some_and(|selector| selector.number == port)
        });
        // A port's entry says nothing of these.
        let whole = TrafficPolicy {
            tunnel: policy.tunnel.as_ref().or(self.tunnel),
            proxy_protocol: policy.proxy_protocol.as_ref().or(self.proxy_protocol),
            retry_budget: policy.retry_budget.as_ref().or(self.retry_budget),
            baseline: self.baseline,
            ..TrafficPolicy::default()
        };
        let baseline = self.baseline;
        if let Some(entry) = of_port {
            return TrafficPolicy {
                load_balancer: entry.load_balancer.as_ref(),
                connection_pool: entry
                    .connection_pool
                    .as_ref()
                    .or_else(|| baseline?.connection_pool.as_ref()),
                outlier_detection: entry
                    .outlier_detection
                    .as_ref()
                    .or_else(|| baseline?.outlier_detection.as_ref()),
                tls: entry.tls.as_ref(),
                ..whole
            };
        }
        TrafficPolicy {
            load_balancer: policy.load_balancer.as_ref().or(self.load_balancer),
            connection_pool: policy.connection_pool.as_ref().or(self.connection_pool),
            outlier_detection: policy.outlier_detection.as_ref().or(self.outlier_detection),
            tls: policy.tls.as_ref().or(self.tls),
            ..whole
        }
    }

    /// The key by which requests are spread, if they are.
    #[must_use]
    pub fn consistent_hash(&self) -> Option<&'a ConsistentHashLb> {
        match self.load_balancer?.lb_policy.as_ref()? {
            WirePolicy::ConsistentHash(hash) => Some(hash),
            WirePolicy::Simple(_) => None,
        }
    }

    /// True when connections go to their original destination.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        let policy = self
            .load_balancer
            .and_then(|balancer| balancer.lb_policy.as_ref());
        matches!(policy, Some(WirePolicy::Simple(simple)) if *simple == SimpleLb::Passthrough as i32)
    }

    pub(super) fn apply_load_balancer(&self, cluster: &mut Cluster, mesh: &Mesh) {
        match self
            .load_balancer
            .and_then(|balancer| balancer.lb_policy.as_ref())
        {
            Some(WirePolicy::Simple(simple)) => {
                match SimpleLb::try_from(*simple).unwrap_or(SimpleLb::Unspecified) {
                    SimpleLb::Random => cluster.lb_policy = LbPolicy::Random as i32,
                    SimpleLb::RoundRobin => cluster.lb_policy = LbPolicy::RoundRobin as i32,
                    // Callers turn the whole cluster into one that keeps the destination.
                    SimpleLb::Passthrough => cluster.lb_policy = LbPolicy::ClusterProvided as i32,
                    SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => {
                        cluster.lb_policy = LbPolicy::LeastRequest as i32;
                    }
                }
            }
            Some(WirePolicy::ConsistentHash(hash)) => apply_hash(cluster, hash),
            None => cluster.lb_policy = LbPolicy::LeastRequest as i32,
        }
        self.apply_warmup(cluster);
        if let Some(config) = self.locality_config(mesh) {
            common_lb(cluster).locality_config_specifier = Some(config);
        }
    }

    fn apply_warmup(&self, cluster: &mut Cluster) {
        let Some(balancer) = self.load_balancer else {
            return;
        };
        let warmup = balancer.warmup.as_ref();
        #[allow(deprecated, reason = "the old field is still in use")]
        let old = balancer.warmup_duration_secs.as_ref();
        let window = positive(warmup.and_then(|warmup| warmup.duration.as_ref()).or(old));
        let Some(window) = window else { return };
        let slow_start = SlowStartConfig {
            slow_start_window: Some(window),
            aggression: warmup
                .and_then(|warmup| warmup.aggression)
                .map(|value| RuntimeDouble {
                    default_value: value,
                    runtime_key: format!("{}_slow_start_aggression", cluster.name),
                }),
            min_weight_percent: warmup
                .and_then(|warmup| warmup.minimum_percent)
                .map(|value| Percent { value }),
        };
        let slow_start_config = Some(slow_start);
        if cluster.lb_policy == LbPolicy::RoundRobin as i32 {
            cluster.lb_config = Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
                slow_start_config,
            }));
        } else if cluster.lb_policy == LbPolicy::LeastRequest as i32 {
            let config = LeastRequestLbConfig {
                slow_start_config,
                ..LeastRequestLbConfig::default()
            };
            cluster.lb_config = Some(LbConfig::LeastRequestLbConfig(config));
        }
    }

    pub(super) fn apply_connection_pool(&self, cluster: &mut Cluster, mesh: &Mesh) {
        let tcp = self.connection_pool.and_then(|pool| pool.tcp.as_ref());
        let http = self.connection_pool.and_then(|pool| pool.http.as_ref());
        cluster.connect_timeout = Some(
            positive(tcp.and_then(|tcp| tcp.connect_timeout.as_ref()))
                .unwrap_or(mesh.connect_timeout),
        );
        let mut breakers = unlimited();
        let threshold = &mut breakers.thresholds[0];
        let limit = |value: Option<i32>| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .filter(|value| *value > 0)
        };
        threshold.max_connections =
            limit(tcp.map(|tcp| tcp.max_connections)).or(threshold.max_connections);
        threshold.max_pending_requests = limit(http.map(|http| http.http1_max_pending_requests))
            .or(threshold.max_pending_requests);
        threshold.max_requests =
            limit(http.map(|http| http.http2_max_requests)).or(threshold.max_requests);
        threshold.max_retries = limit(http.map(|http| http.max_retries)).or(threshold.max_retries);
        threshold.retry_budget = self.retry_budget.map(|budget| RetryBudget {
            budget_percent: budget.percent.map(|value| Percent { value }),
            min_retry_concurrency: Some(budget.min_retry_concurrency).filter(|min| *min > 0),
            budget_interval: positive(budget.budget_interval.as_ref()),
        });
        cluster.circuit_breakers = Some(breakers);
        let keepalive = tcp
            .and_then(|tcp| tcp.tcp_keepalive.as_ref())
            .or(mesh.tcp_keepalive.as_ref());
        if let Some(keepalive) = keepalive {
            cluster.upstream_connection_options = Some(UpstreamConnectionOptions {
                tcp_keepalive: Some(tcp_keepalive(keepalive)),
                ..UpstreamConnectionOptions::default()
            });
        }
    }

    /// What holds for HTTP of any version.
    pub(super) fn common_http_options(&self) -> Common {
        let codes = self
            .outlier_detection
            .map(|outlier| outlier.outlier_detection_http_error_codes.clone());
        Common {
            http: self.http_limits(),
            error_codes: codes.unwrap_or_default(),
            server_names: ServerNames::Fixed,
        }
    }

    /// What holds for HTTP/2.
    pub(super) fn http2_options(&self) -> Http2ProtocolOptions {
        let mut options = super::http2();
        let http = self.connection_pool.and_then(|pool| pool.http.as_ref());
        let streams = http
            .and_then(|http| u32::try_from(http.max_concurrent_streams).ok())
            .filter(|max| *max > 0);
        if streams.is_some() {
            options.max_concurrent_streams = streams;
        }
        let keepalive = http.and_then(|http| http.http2_keep_alive.as_ref());
        options.connection_keepalive = keepalive.map(|keepalive| KeepaliveSettings {
            interval: positive(keepalive.interval.as_ref()),
            timeout: positive(keepalive.timeout.as_ref()).or(Some(PING_TIMEOUT)),
            ..KeepaliveSettings::default()
        });
        options
    }

    fn http_limits(&self) -> Option<HttpProtocolOptions> {
        let pool = self.connection_pool?;
        let http = pool.http.as_ref();
        let idle_timeout = positive(http.and_then(|http| http.idle_timeout.as_ref()));
        let max_requests = http
            .and_then(|http| u32::try_from(http.max_requests_per_connection).ok())
            .filter(|max| *max > 0);
        let max_duration = positive(
            pool.tcp
                .as_ref()
                .and_then(|tcp| tcp.max_connection_duration.as_ref()),
        );
        if idle_timeout.is_none() && max_requests.is_none() && max_duration.is_none() {
            return None;
        }
        Some(HttpProtocolOptions {
            idle_timeout,
            max_requests_per_connection: max_requests,
            max_connection_duration: max_duration,
            ..HttpProtocolOptions::default()
        })
    }

    pub(super) fn apply_outlier_detection(&self, cluster: &mut Cluster) {
        let Some(settings) = self.outlier_detection else {
            return;
        };
        let mut detection = OutlierDetection {
            interval: positive(settings.interval.as_ref()),
            base_ejection_time: positive(settings.base_ejection_time.as_ref()),
            max_ejection_percent: u32::try_from(settings.max_ejection_percent)
                .ok()
                .filter(|percent| *percent > 0),
            // Success rates are never used.
            enforcing_success_rate: Some(0),
            ..OutlierDetection::default()
        };
        if let Some(errors) = settings.consecutive_5xx_errors {
            detection.consecutive_5xx = Some(errors);
            detection.enforcing_consecutive_5xx = Some(if errors > 0 { 100 } else { 0 });
        }
        #[allow(deprecated, reason = "the old field is still in use")]
        let old = u32::try_from(settings.consecutive_errors)
            .ok()
            .filter(|errors| *errors > 0);
        if let Some(errors) = settings.consecutive_gateway_errors.or(old) {
            detection.consecutive_gateway_failure = Some(errors);
            detection.enforcing_consecutive_gateway_failure =
                Some(if errors > 0 { 100 } else { 0 });
            if settings.consecutive_5xx_errors.is_none() && old.is_some() {
                // The old field counted gateway errors only.
                detection.enforcing_consecutive_5xx = Some(0);
            }
        }
        if settings.split_external_local_origin_errors {
            detection.split_external_local_origin_errors = true;
            if let Some(failures) = settings.consecutive_local_origin_failures {
                detection.consecutive_local_origin_failure = Some(failures);
                detection.enforcing_consecutive_local_origin_failure = Some(100);
            }
            detection.enforcing_local_origin_success_rate = Some(0);
        }
        cluster.outlier_detection = Some(detection);
        let percent = f64::from(settings.min_health_percent.clamp(0, 100));
        common_lb(cluster).healthy_panic_threshold = Some(Percent { value: percent });
    }
}

fn common_lb(cluster: &mut Cluster) -> &mut CommonLbConfig {
    cluster.common_lb_config.get_or_insert_default()
}

fn apply_hash(cluster: &mut Cluster, hash: &ConsistentHashLb) {
    #[allow(deprecated, reason = "the old field is still in use")]
    let old_size = hash.minimum_ring_size;
    match &hash.hash_algorithm {
        Some(HashAlgorithm::Maglev(maglev)) => {
            cluster.lb_policy = LbPolicy::Maglev as i32;
            let table_size = (maglev.table_size > 0).then_some(maglev.table_size);
            cluster.lb_config = Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size }));
        }
        other => {
            let size = match other {
                Some(HashAlgorithm::RingHash(ring)) if ring.minimum_ring_size > 0 => {
                    ring.minimum_ring_size
                }
                _ if old_size > 0 => old_size,
                _ => 1024,
            };
            cluster.lb_policy = LbPolicy::RingHash as i32;
            cluster.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: Some(size),
                hash_function: HashFunction::XxHash as i32,
                ..RingHashLbConfig::default()
            }));
        }
    }
}

fn tcp_keepalive(
    settings: &wire::connection_pool_settings::tcp_settings::TcpKeepalive,
) -> TcpKeepalive {
    let whole = |duration: Option<&Duration>| {
        duration
            .and_then(|duration| u32::try_from(duration.seconds).ok())
            .filter(|value| *value > 0)
    };
    TcpKeepalive {
        keepalive_probes: (settings.probes > 0).then_some(settings.probes),
        keepalive_time: whole(settings.time.as_ref()),
        keepalive_interval: whole(settings.interval.as_ref()),
    }
}

#[cfg(test)]
mod tests;
