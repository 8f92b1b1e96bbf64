//! HTTP RBAC filter: enforced rules answer 403, shadow rules only count and leave their verdict in dynamic metadata.

use std::sync::{Arc, OnceLock};

use http::StatusCode;
use prost_types::Any;
use proto::envoy::extensions::filters::http::rbac::v3 as wire;

use crate::http::headers::RequestHeaders;
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::rbac::{HINTS, RbacContext, RbacEngine};
use crate::stat_group;
use crate::stats::{Counter, Scope};

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue};

/// The filter's name, which is also where it leaves metadata.
const NAME: &str = "envoy.filters.http.rbac";

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.rbac.v3.RBAC",
    name: NAME,
    build,
    routes: &[("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", route)],
};

/// Both rule sets.
#[derive(Debug, Default)]
struct Rules {
    enforced: Option<RbacEngine>,
    shadow: Option<RbacEngine>,
    shadow_prefix: String,
}

struct Factory {
    name: Box<str>,
    rules: Arc<Rules>,
    stats: Arc<Stats>,
}

struct Stats {
    allowed: Arc<Counter>,
    denied: Arc<Counter>,
    shadow_allowed: Arc<Counter>,
    shadow_denied: Arc<Counter>,
    scope: Scope,
    /// There once rules that only log have decided.
    log: OnceLock<Arc<LogStats>>,
}

stat_group! {
    /// Counts of rules that only mark requests for logging.
    struct LogStats { logged: Counter, not_logged: Counter }
}

struct Rbac {
    name: Box<str>,
    rules: Arc<Rules>,
    stats: Arc<Stats>,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::Rbac = super::unpack(any)?;
    Ok(Arc::new(Factory {
        name: context.name.into(),
        rules: Arc::new(Rules::try_from(&config)?),
        stats: Arc::new(Stats::new(context.scope, &config)),
    }))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::RbacPerRoute = super::unpack(any)?;
    // Without rules the route lets everything pass.
    let rules = config
        .rbac
        .as_ref()
        .map(Rules::try_from)
        .transpose()
        .at("rbac")?
        .unwrap_or_default();
    Ok(Arc::new(Arc::new(rules)))
}

impl TryFrom<&wire::Rbac> for Rules {
    type Error = Invalid;

    fn try_from(config: &wire::Rbac) -> Result<Self, Invalid> {
        if config.matcher.is_some() || config.shadow_matcher.is_some() {
            return Err(Invalid::unsupported("a matcher tree").at("matcher"));
        }
        Ok(Rules {
            enforced: config
                .rules
                .as_ref()
                .map(RbacEngine::try_from)
                .transpose()
                .at("rules")?,
            shadow: config
                .shadow_rules
                .as_ref()
                .map(RbacEngine::try_from)
                .transpose()
                .at("shadow_rules")?,
            shadow_prefix: config.shadow_rules_stat_prefix.clone(),
        })
    }
}

impl Stats {
    fn new(scope: &Scope, config: &wire::Rbac) -> Self {
        let scope = scope.scope("rbac");
        let of = |prefix: &str, name: &str| scope.counter(&format!("{prefix}{name}"));
        Stats {
            allowed: of(&config.rules_stat_prefix, "allowed"),
            denied: of(&config.rules_stat_prefix, "denied"),
            shadow_allowed: of(&config.shadow_rules_stat_prefix, "shadow_allowed"),
            shadow_denied: of(&config.shadow_rules_stat_prefix, "shadow_denied"),
            log: OnceLock::new(),
            scope,
        }
    }
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Rbac {
            name: self.name.clone(),
            rules: self.rules.clone(),
            stats: self.stats.clone(),
        }))
    }
}

impl HttpFilter for Rbac {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        if let Some(rules) = stream
            .route_config::<Arc<Rules>>(&self.name)
            .or_else(|| stream.route_config(NAME))
        {
            self.rules = rules.clone();
        }
        let info = &stream.info;
        let context = RbacContext {
            connection: &info.connection,
            remote_ip: info.remote_address.ip(),
            headers: Some(headers),
            metadata: &info.metadata,
        };
        let shadow = self.rules.shadow.as_ref().map(|shadow| {
            let decision = shadow.decide(&context);
            if decision.is_allowed {
                self.stats.shadow_allowed.inc();
            } else {
                self.stats.shadow_denied.inc();
            }
            decision.shadow_metadata(&self.rules.shadow_prefix)
        });
        let enforced = self
            .rules
            .enforced
            .as_ref()
            .map(|enforced| enforced.decide(&context));
        let hint =
            enforced.and_then(|decision| Some((decision.log_hint?, decision.hint_metadata()?)));
        let denial = enforced
            .filter(|decision| !decision.is_allowed)
            .map(|decision| denial(decision.policy));
        if enforced.is_some() {
            if denial.is_some() {
                self.stats.denied.inc();
            } else {
                self.stats.allowed.inc();
            }
        }
        if let Some(fields) = shadow {
            stream.info.metadata.merge(NAME, fields);
        }
        if let Some((hint, fields)) = hint {
            let log = self.stats.log.get_or_init(|| self.stats.scope.group());
            let count = if hint { &log.logged } else { &log.not_logged };
            count.inc();
            stream.info.metadata.merge(HINTS, fields);
        }
        denial.map_or(FilterStatus::Continue, FilterStatus::reply)
    }
}

fn denial(policy: Option<&str>) -> LocalReply {
    // Spaces would break the log's fields.
    let policy = policy.unwrap_or("none").replace(char::is_whitespace, "_");
    let details = format!("rbac_access_denied_matched_policy[{policy}]");
    LocalReply::new(StatusCode::FORBIDDEN, "RBAC: access denied", details)
}
