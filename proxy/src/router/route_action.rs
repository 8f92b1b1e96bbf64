//! The action that forwards: which cluster, how host and path are rewritten, and the policies of the attempt.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use proto::envoy::config::route::v3 as wire;
use rand::RngExt as _;
use wire::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier};

use crate::http::filter::RouteConfigs;
use crate::http::headers::{RequestHeaders, names};
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{FieldName, HeaderSource as _, RegexSubstitution};
use crate::stream_info::StreamInfo;

use super::hash_policy::HashPolicy;
use super::mirror::{self, MirrorPolicy};
use super::path_rewrite::PathRewrite;
use super::timeout::RouteTimeouts;
use super::{InternalRedirectPolicy, Mutations, RateLimits, RetryPolicy, RouteMatch, header_name};

/// A compiled `RouteAction`.
#[derive(Debug)]
pub(crate) struct ForwardAction {
    cluster: ClusterSpec,
    /// The status when the cluster does not exist.
    pub(crate) not_found: StatusCode,
    path_rewrite: Option<PathRewrite>,
    host_rewrite: Option<HostRewrite>,
    append_x_forwarded_host: bool,
    /// The route's timeouts.
    pub(crate) timeouts: RouteTimeouts,
    pub(super) retry: Option<Arc<RetryPolicy>>,
    /// Whether late attempts go on beside the next; none where the virtual host decides.
    pub(super) hedges: Option<bool>,
    pub(super) mirrors: Vec<MirrorPolicy>,
    /// What rate limiters are told of a request.
    pub(crate) rate_limits: RateLimits,
    /// The virtual host's rate limits count too.
    pub(crate) includes_vh_rate_limits: bool,
    /// How to hash a request for consistent load balancing.
    pub(crate) hash: Vec<HashPolicy>,
    /// Upgrades that this route allows or refuses, over the connection manager's.
    pub(crate) upgrades: Vec<UpgradeRule>,
    /// Redirects that are followed here.
    pub(crate) internal_redirect: Option<InternalRedirectPolicy>,
    /// High routing priority (its own circuit breakers).
    pub(crate) is_high_priority: bool,
    /// Metadata that hosts must have (subset load balancing): `envoy.lb` of `metadata_match`.
    pub(crate) metadata_match: Option<Arc<prost_types::Struct>>,
}

/// One upgrade type, switched on or off.
#[derive(Debug, Clone)]
pub(crate) struct UpgradeRule {
    /// `websocket`, `CONNECT`, …
    pub(crate) kind: Box<str>,
    /// Allowed.
    pub(crate) is_enabled: bool,
    /// CONNECT ends here and its payload goes on as TCP.
    pub(crate) terminates_connect: bool,
}

#[derive(Debug)]
enum ClusterSpec {
    Name(Arc<str>),
    Header(FieldName),
    Weighted {
        clusters: Vec<WeightedCluster>,
        total: u64,
        header: Option<HeaderName>,
    },
}

/// One of several clusters, with its share.
#[derive(Debug)]
pub(crate) struct WeightedCluster {
    name: Arc<str>,
    cluster_header: Option<FieldName>,
    weight: u64,
    pub(super) mutations: Mutations,
    pub(super) filters: RouteConfigs,
    pub(super) host_rewrite: Option<HeaderValue>,
}

/// The drawn cluster.
#[derive(Debug, Default)]
pub(super) struct ClusterChoice {
    pub(super) cluster: Option<Arc<str>>,
    pub(super) weighted: Option<usize>,
}

#[derive(Debug)]
enum HostRewrite {
    Literal(HeaderValue),
    /// The chosen host's name; done when the host is known.
    Auto,
    Header(FieldName),
    PathRegex(RegexSubstitution),
}

impl TryFrom<&wire::RouteAction> for ForwardAction {
    type Error = Invalid;

    fn try_from(action: &wire::RouteAction) -> Result<Self, Invalid> {
        refuse_unsupported(action)?;
        let cluster = action
            .cluster_specifier
            .as_ref()
            .ok_or_else(|| Invalid::new("a cluster specifier is needed"))?;
        let metadata_match = action
            .metadata_match
            .as_ref()
            .and_then(|metadata| metadata.filter_metadata.get("envoy.lb"))
            .map(|fields| Arc::new(fields.clone()));
        Ok(ForwardAction {
            cluster: ClusterSpec::try_from(cluster)?,
            not_found: match action.cluster_not_found_response_code() {
                ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
                ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
                ClusterNotFoundResponseCode::InternalServerError => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            },
            path_rewrite: PathRewrite::try_new(action)?,
            host_rewrite: action
                .host_rewrite_specifier
                .as_ref()
                .map(HostRewrite::try_new)
                .transpose()?
                .flatten(),
            append_x_forwarded_host: action.append_x_forwarded_host,
            timeouts: RouteTimeouts::try_from(action)?,
            retry: action
                .retry_policy
                .as_ref()
                .map(RetryPolicy::try_from)
                .transpose()
                .at("retry_policy")?
                .map(Arc::new),
            hedges: action
                .hedge_policy
                .as_ref()
                .map(|policy| policy.hedge_on_per_try_timeout),
            mirrors: mirror::try_all_policies(&action.request_mirror_policies)?,
            rate_limits: RateLimits::try_new(&action.rate_limits)?,
            #[allow(deprecated, reason = "control planes still send the older field")]
            includes_vh_rate_limits: action.include_vh_rate_limits.unwrap_or(false),
            hash: try_all("hash_policy", &action.hash_policy, HashPolicy::try_from)?,
            upgrades: action
                .upgrade_configs
                .iter()
                .map(UpgradeRule::from)
                .collect(),
            internal_redirect: internal_redirect(action).at("internal_redirect_policy")?,
            is_high_priority: action.priority()
                == proto::envoy::config::core::v3::RoutingPriority::High,
            metadata_match,
        })
    }
}

fn refuse_unsupported(action: &wire::RouteAction) -> Result<(), Invalid> {
    if action.retry_policy_typed_config.is_some() {
        return Err(Invalid::unsupported("retry_policy_typed_config"));
    }
    Ok(())
}

/// The policy, or the older fields in its place.
#[allow(deprecated, reason = "control planes still send the older fields")]
fn internal_redirect(
    action: &wire::RouteAction,
) -> Result<Option<InternalRedirectPolicy>, Invalid> {
    if let Some(policy) = &action.internal_redirect_policy {
        return InternalRedirectPolicy::try_from(policy).map(Some);
    }
    if action.internal_redirect_action()
        != wire::route_action::InternalRedirectAction::HandleInternalRedirect
    {
        return Ok(None);
    }
    InternalRedirectPolicy::try_from(&wire::InternalRedirectPolicy {
        max_internal_redirects: action.max_internal_redirects,
        ..Default::default()
    })
    .map(Some)
}

impl From<&wire::route_action::UpgradeConfig> for UpgradeRule {
    fn from(config: &wire::route_action::UpgradeConfig) -> Self {
        UpgradeRule {
            kind: config.upgrade_type.as_str().into(),
            is_enabled: config.enabled.unwrap_or(true),
            terminates_connect: config.connect_config.is_some(),
        }
    }
}

impl HostRewrite {
    fn try_new(rewrite: &HostRewriteSpecifier) -> Result<Option<Self>, Invalid> {
        Ok(Some(match rewrite {
            HostRewriteSpecifier::HostRewriteLiteral(text) => HostRewrite::Literal(
                HeaderValue::from_str(text)
                    .map_err(|_| Invalid::new("not a host").at("host_rewrite_literal"))?,
            ),
            HostRewriteSpecifier::AutoHostRewrite(true) => HostRewrite::Auto,
            HostRewriteSpecifier::AutoHostRewrite(false) => return Ok(None),
            HostRewriteSpecifier::HostRewriteHeader(name) => {
                HostRewrite::Header(FieldName::parse(name).at("host_rewrite_header")?)
            }
            HostRewriteSpecifier::HostRewritePathRegex(regex) => HostRewrite::PathRegex(
                RegexSubstitution::try_from(regex).at("host_rewrite_path_regex")?,
            ),
            HostRewriteSpecifier::HostRewrite(_) => {
                return Err(Invalid::unsupported("host_rewrite"));
            }
        }))
    }
}

impl TryFrom<&ClusterSpecifier> for ClusterSpec {
    type Error = Invalid;

    fn try_from(specifier: &ClusterSpecifier) -> Result<Self, Invalid> {
        Ok(match specifier {
            ClusterSpecifier::Cluster(name) if name.is_empty() => {
                return Err(Invalid::new("cluster is empty"));
            }
            ClusterSpecifier::Cluster(name) => ClusterSpec::Name(name.as_str().into()),
            ClusterSpecifier::ClusterHeader(name) => {
                ClusterSpec::Header(FieldName::parse(name).at("cluster_header")?)
            }
            ClusterSpecifier::WeightedClusters(weighted) => {
                ClusterSpec::weighted(weighted).at("weighted_clusters")?
            }
            ClusterSpecifier::ClusterSpecifierPlugin(_)
            | ClusterSpecifier::InlineClusterSpecifierPlugin(_) => {
                return Err(Invalid::unsupported("a cluster specifier plugin"));
            }
        })
    }
}

impl ClusterSpec {
    fn weighted(weighted: &wire::WeightedCluster) -> Result<Self, Invalid> {
        let clusters = try_all("clusters", &weighted.clusters, WeightedCluster::try_from)?;
        let total: u64 = clusters.iter().map(|cluster| cluster.weight).sum();
        if total == 0 {
            return Err(Invalid::new("the sum of the weights must not be 0"));
        }
        if total > u64::from(u32::MAX) {
            return Err(Invalid::new(format!(
                "the sum of the weights must not exceed {}",
                u32::MAX
            )));
        }
        let header = match &weighted.random_value_specifier {
            Some(wire::weighted_cluster::RandomValueSpecifier::HeaderName(name)) => {
                Some(header_name(name)?)
            }
            Some(wire::weighted_cluster::RandomValueSpecifier::UseHashPolicy(true)) => {
                return Err(Invalid::unsupported("use_hash_policy"));
            }
            _ => None,
        };
        Ok(ClusterSpec::Weighted {
            clusters,
            total,
            header,
        })
    }
}

impl TryFrom<&wire::weighted_cluster::ClusterWeight> for WeightedCluster {
    type Error = Invalid;

    fn try_from(cluster: &wire::weighted_cluster::ClusterWeight) -> Result<Self, Invalid> {
        let cluster_header = match (cluster.name.as_str(), cluster.cluster_header.as_str()) {
            ("", "") => return Err(Invalid::new("name or cluster_header is needed")),
            ("", header) => Some(FieldName::parse(header).at("cluster_header")?),
            (_, "") => None,
            _ => {
                return Err(Invalid::new(
                    "only one of name, cluster_header can be specified",
                ));
            }
        };
        let host_rewrite = match &cluster.host_rewrite_specifier {
            Some(
                wire::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(
                    text,
                ),
            ) => Some(
                HeaderValue::from_str(text)
                    .map_err(|_| Invalid::new("not a host").at("host_rewrite_literal"))?,
            ),
            None => None,
        };
        Ok(WeightedCluster {
            name: cluster.name.as_str().into(),
            cluster_header,
            weight: u64::from(cluster.weight.unwrap_or(0)),
            mutations: Mutations::try_new(
                &cluster.request_headers_to_add,
                &cluster.request_headers_to_remove,
                &cluster.response_headers_to_add,
                &cluster.response_headers_to_remove,
            )?,
            filters: RouteConfigs::try_new(&cluster.typed_per_filter_config)?,
            host_rewrite,
        })
    }
}

impl ForwardAction {
    /// Draws the cluster of a request.
    pub(super) fn choose_cluster(&self, headers: &RequestHeaders) -> ClusterChoice {
        match &self.cluster {
            ClusterSpec::Name(name) => ClusterChoice {
                cluster: Some(name.clone()),
                weighted: None,
            },
            ClusterSpec::Header(name) => ClusterChoice {
                cluster: cluster_in(headers, name),
                weighted: None,
            },
            ClusterSpec::Weighted {
                clusters,
                total,
                header,
            } => {
                let drawn = header
                    .as_ref()
                    .and_then(|name| headers.text(name))
                    .and_then(|text| text.parse::<u64>().ok())
                    .unwrap_or_else(|| rand::rng().random_range(0..*total))
                    % total;
                let mut below = 0;
                let index = clusters.iter().position(|cluster| {
                    below += cluster.weight;
                    drawn < below
                });
                let cluster =
                    index.map(|index| &clusters[index]).and_then(|cluster| {
                        match &cluster.cluster_header {
                            Some(name) => cluster_in(headers, name),
                            None => Some(cluster.name.clone()),
                        }
                    });
                ClusterChoice {
                    cluster,
                    weighted: index,
                }
            }
        }
    }

    /// The weighted cluster at an index.
    pub(super) fn weighted(&self, index: usize) -> Option<&WeightedCluster> {
        match &self.cluster {
            ClusterSpec::Weighted { clusters, .. } => clusters.get(index),
            ClusterSpec::Name(_) | ClusterSpec::Header(_) => None,
        }
    }

    /// True when `:authority` becomes the chosen host's name.
    pub(crate) fn is_auto_host_rewrite(&self) -> bool {
        matches!(self.host_rewrite, Some(HostRewrite::Auto))
    }

    /// Puts `:authority` for a host that was chosen (`auto_host_rewrite`).
    pub(crate) fn rewrite_host_to(&self, headers: &mut RequestHeaders, name: &str) {
        let before = headers.authority.clone();
        if headers.authority.as_bytes() != name.as_bytes() && headers.set_host(name).is_some() {
            self.note_forwarded_host(headers, before);
        }
    }

    pub(super) fn rewrite_host(
        &self,
        headers: &mut RequestHeaders,
        weighted: Option<&HeaderValue>,
    ) {
        let host = match (weighted, &self.host_rewrite) {
            (Some(host), _) | (None, Some(HostRewrite::Literal(host))) => Some(host.clone()),
            (None, None | Some(HostRewrite::Auto)) => None,
            (None, Some(HostRewrite::Header(name))) => headers
                .field(name)
                .and_then(|value| HeaderValue::from_bytes(&value).ok()),
            (None, Some(HostRewrite::PathRegex(regex))) => {
                HeaderValue::from_bytes(&regex.apply(headers.path.path().as_bytes())).ok()
            }
        };
        if let Some(host) = host.filter(|host| !host.is_empty()) {
            let before = std::mem::replace(&mut headers.authority, host);
            self.note_forwarded_host(headers, before);
        }
    }

    fn note_forwarded_host(&self, headers: &mut RequestHeaders, before: HeaderValue) {
        if before.is_empty() || before == headers.authority {
            return;
        }
        if self.append_x_forwarded_host {
            headers
                .map
                .append(names::X_FORWARDED_HOST.clone(), before.clone());
        }
        headers
            .map
            .insert(names::X_ENVOY_ORIGINAL_HOST.clone(), before);
    }

    /// Rewrites the path; `info` for formats.
    pub(super) fn rewrite_path(
        &self,
        route: &RouteMatch,
        headers: &mut RequestHeaders,
        info: &StreamInfo,
        keep_original: bool,
    ) {
        if let Some(rewrite) = &self.path_rewrite {
            rewrite.apply(route, headers, info, keep_original);
        }
    }

    /// Refuses a rewrite that the match does not allow.
    pub(super) fn check_rewrite(&self, route: &RouteMatch) -> Result<(), Invalid> {
        match &self.path_rewrite {
            Some(rewrite) => rewrite.check(route),
            None => Ok(()),
        }
    }

    /// The idle timeout of the route, if it has one.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.timeouts.idle
    }

    /// How long a client may take for what is left of a response, if the route says so.
    pub(crate) fn flush_timeout(&self) -> Option<Duration> {
        self.timeouts.flush
    }
}

fn cluster_in(headers: &RequestHeaders, name: &FieldName) -> Option<Arc<str>> {
    let value = headers.field(name)?;
    let text = std::str::from_utf8(&value).ok()?;
    (!text.is_empty()).then(|| text.into())
}
