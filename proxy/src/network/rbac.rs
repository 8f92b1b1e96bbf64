//! RBAC for connections: the engine's answer with what is known before the first byte. Shadow rules only count, and leave their
//! verdict in dynamic metadata for the filters behind.
//!
//! It is asked when the connection is up, not with the first byte as in Envoy: a refused client learns it sooner.

use super::{FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{
    invalid::{At as _, Invalid},
    listener::Connection,
    rbac::{HINTS, RbacContext, RbacEngine},
    stat_group,
};
use futures::future::{FutureExt as _, LocalBoxFuture};
use prost_types::{Any, Struct};
use proto::envoy::extensions::filters::network::rbac::v3::{Rbac as Wire, rbac::EnforcementType};
use std::{rc::Rc, sync::Arc};

/// Where the verdict of shadow rules is left.
const NAMESPACE: &str = "envoy.filters.network.rbac";

stat_group! {
    /// `<stat_prefix>rbac.…`
    pub(crate) struct RbacStats { allowed: Counter, denied: Counter, shadow_allowed: Counter, shadow_denied: Counter }
}

struct Rbac {
    rules: Option<RbacEngine>,
    shadow: Option<RbacEngine>,
    shadow_prefix: String,
    stats: Arc<RbacStats>,
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    if wire.matcher.is_some() || wire.shadow_matcher.is_some() {
        return Err(Invalid::unsupported("matcher"));
    }
    if wire.enforcement_type() == EnforcementType::Continuous {
        return Err(Invalid::unsupported("CONTINUOUS").at("enforcement_type"));
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
        shadow_prefix: wire.shadow_rules_stat_prefix,
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
    fn decide(&self, connection: &mut Connection) -> Verdict {
        let info = &connection.info;
        let context = RbacContext {
            connection: info,
            remote_ip: info.remote_address.ip(),
            headers: None,
            metadata: &info.metadata,
        };
        let shadow = self.shadow.as_ref().map(|rules| rules.decide(&context));
        let decision = self.rules.as_ref().map(|rules| rules.decide(&context));
        if let Some(shadow) = shadow {
            let count = if shadow.is_allowed {
                &self.stats.shadow_allowed
            } else {
                &self.stats.shadow_denied
            };
            count.inc();
            leave(
                connection,
                NAMESPACE,
                shadow.shadow_metadata(&self.shadow_prefix),
            );
        }
        let Some(decision) = decision else {
            return Verdict::Continue;
        };
        if let Some(hint) = decision.hint_metadata() {
            leave(connection, HINTS, hint);
        }
        if decision.is_allowed {
            self.stats.allowed.inc();
            return Verdict::Continue;
        }
        self.stats.denied.inc();
        tracing::debug!(target: "rbac", connection = connection.info.id, policy = decision.policy.unwrap_or("none"), "connection refused");
        connection.info.meter.because("rbac_deny_close");
        Verdict::Close
    }
}

/// Leaves something for the filters behind, and for the log.
fn leave(connection: &mut Connection, namespace: &'static str, fields: Struct) {
    Rc::make_mut(&mut connection.info)
        .metadata
        .merge(namespace, fields);
}
