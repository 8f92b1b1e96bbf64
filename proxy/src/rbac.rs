//! The RBAC engine: `envoy.config.rbac.v3.RBAC` compiled into policies of permissions and principals. The network filter and
//! the HTTP filter ask it the same question, with what each knows.

mod permission;
mod principal;

#[cfg(test)]
mod tests;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::envoy::config::rbac::v3 as wire;

use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::listener::ConnectionInfo;
use crate::stream_info::DynamicMetadata;

use permission::Permission;
use principal::Principal;

/// Compiled rules.
#[derive(Debug)]
pub(crate) struct RbacEngine {
    action: wire::rbac::Action,
    /// Sorted by name, as they are matched.
    policies: Vec<Policy>,
}

#[derive(Debug)]
struct Policy {
    name: Box<str>,
    permissions: Vec<Permission>,
    principals: Vec<Principal>,
}

/// What a decision is made from.
#[derive(Clone, Copy)]
pub(crate) struct RbacContext<'a> {
    /// The connection.
    pub(crate) connection: &'a ConnectionInfo,
    /// The client, as found by `x-forwarded-for`; the connection's peer for TCP.
    pub(crate) remote_ip: std::net::IpAddr,
    /// The request's head; none for TCP.
    pub(crate) headers: Option<&'a RequestHeaders>,
    /// What filters before have left.
    pub(crate) metadata: &'a DynamicMetadata,
}

/// A decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision<'a> {
    /// Let it pass.
    pub(crate) is_allowed: bool,
    /// The policy that matched.
    pub(crate) policy: Option<&'a str>,
    /// `action` is LOG and a policy matched (or did not): the access-log hint to set.
    pub(crate) log_hint: Option<bool>,
}

/// Where the hint of rules that only log is left in dynamic metadata.
pub(crate) const HINTS: &str = "envoy.common";

impl Decision<'_> {
    /// What the verdict of shadow rules is in dynamic metadata, under names with this prefix.
    pub(crate) fn shadow_metadata(&self, prefix: &str) -> Struct {
        let result = if self.is_allowed { "allowed" } else { "denied" };
        let result = (format!("{prefix}shadow_engine_result"), result);
        let policy =
            (self.policy).map(|policy| (format!("{prefix}shadow_effective_policy_id"), policy));
        let texts = [result].into_iter().chain(policy);
        fields(texts.map(|(name, text)| (name, Kind::StringValue(text.to_owned()))))
    }

    /// What rules that only log leave in dynamic metadata, under [`HINTS`].
    pub(crate) fn hint_metadata(&self) -> Option<Struct> {
        let hint = self.log_hint?;
        Some(fields([(
            "access_log_hint".to_owned(),
            Kind::BoolValue(hint),
        )]))
    }
}

fn fields(items: impl IntoIterator<Item = (String, Kind)>) -> Struct {
    Struct {
        fields: items
            .into_iter()
            .map(|(key, kind)| (key, Value { kind: Some(kind) }))
            .collect(),
    }
}

impl TryFrom<&wire::Rbac> for RbacEngine {
    type Error = Invalid;

    fn try_from(rules: &wire::Rbac) -> Result<Self, Invalid> {
        let policies = rules
            .policies
            .iter()
            .map(|(name, policy)| {
                Policy::try_new(name, policy).at(format_args!("policies[{name}]"))
            })
            .collect::<Result<_, _>>()?;
        Ok(RbacEngine {
            action: rules.action(),
            policies,
        })
    }
}

impl RbacEngine {
    /// The decision: with ALLOW, what matches passes; with DENY, what matches does not; with LOG, all passes.
    pub(crate) fn decide(&self, context: &RbacContext<'_>) -> Decision<'_> {
        let matched = self.policies.iter().find(|policy| policy.matches(context));
        let is_match = matched.is_some();
        Decision {
            is_allowed: match self.action {
                wire::rbac::Action::Allow => is_match,
                wire::rbac::Action::Deny => !is_match,
                wire::rbac::Action::Log => true,
            },
            policy: matched.map(|policy| policy.name.as_ref()),
            log_hint: (self.action == wire::rbac::Action::Log).then_some(is_match),
        }
    }
}

impl Policy {
    fn try_new(name: &str, policy: &wire::Policy) -> Result<Self, Invalid> {
        if policy.condition.is_some() || policy.checked_condition.is_some() {
            return Err(Invalid::unsupported("a CEL condition").at("condition"));
        }
        if policy.permissions.is_empty() || policy.principals.is_empty() {
            return Err(Invalid::new(
                "at least one permission and one principal are needed",
            ));
        }
        Ok(Policy {
            name: name.into(),
            permissions: try_all("permissions", &policy.permissions, Permission::try_from)?,
            principals: try_all("principals", &policy.principals, Principal::try_from)?,
        })
    }

    fn matches(&self, context: &RbacContext<'_>) -> bool {
        self.permissions
            .iter()
            .any(|permission| permission.matches(context))
            && self
                .principals
                .iter()
                .any(|principal| principal.matches(context))
    }
}
