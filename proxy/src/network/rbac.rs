//! RBAC for connections: the engine's answer with what is known before the first byte.
//!
//! It is asked when the connection is up, not with the first byte as in Envoy: a refused client learns it sooner.

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{
    invalid::{At as _, Invalid},
    listener::Connection,
    rbac::{RbacContext, RbacEngine},
    stat_group,
};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::Any;
use proto::envoy::extensions::filters::network::rbac::v3::Rbac as Wire;
use std::sync::Arc;

stat_group! {
    /// `<stat_prefix>rbac.…`
    pub(crate) struct RbacStats { allowed: Counter, denied: Counter, shadow_allowed: Counter, shadow_denied: Counter }
}

struct Rbac {
    rules: Option<RbacEngine>,
    shadow: Option<RbacEngine>,
    stats: Arc<RbacStats>,
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    if wire.matcher.is_some() || wire.shadow_matcher.is_some() {
        return Err(Invalid::unsupported("matcher"));
    }
    let prefix = wire.stat_prefix.trim_end_matches('.');
    let scope = if prefix.is_empty() {
        context.stats.clone()
    } else {
        context.stats.scope(prefix)
    };
    Ok(Filter::Passing(Arc::new(Rbac {
        rules: wire
            .rules
            .as_ref()
            .map(RbacEngine::try_from)
            .transpose()
            .at("rules")?,
        shadow: wire
            .shadow_rules
            .as_ref()
            .map(RbacEngine::try_from)
            .transpose()
            .at("shadow_rules")?,
        stats: scope.scope("rbac").group(),
    })))
}

impl NetworkFilter for Rbac {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        std::future::ready(self.decide(connection)).boxed_local()
    }
}

impl Rbac {
    fn decide(&self, connection: &Connection) -> Verdict {
        let info = &connection.info;
        let context = RbacContext {
            connection: info,
            remote_ip: info.remote_address.ip(),
            headers: None,
            metadata: &info.metadata,
        };
        if let Some(shadow) = &self.shadow {
            if shadow.decide(&context).is_allowed {
                &self.stats.shadow_allowed
            } else {
                &self.stats.shadow_denied
            }
            .inc();
        }
        let Some(rules) = &self.rules else {
            return Verdict::Continue;
        };
        let decision = rules.decide(&context);
        if decision.is_allowed {
            self.stats.allowed.inc();
            return Verdict::Continue;
        }
        self.stats.denied.inc();
        tracing::debug!(target: "rbac", connection = info.id, policy = decision.policy.unwrap_or("none"), "connection refused");
        Verdict::Close
    }
}
