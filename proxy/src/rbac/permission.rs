//! Permissions: what is done, to what.

use std::ops::Range;

use proto::envoy::config::rbac::v3 as wire;
use wire::permission::Rule;

use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Cidr, HeaderMatcher, MetadataMatcher, PathTemplate, StringMatcher};

use super::RbacContext;

/// A compiled `Permission`.
#[derive(Debug)]
pub(super) enum Permission {
    Any(bool),
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Not(Box<Permission>),
    Header(HeaderMatcher),
    Path(StringMatcher),
    Template(PathTemplate),
    DestinationIp(Cidr),
    DestinationPort(u16),
    DestinationPorts(Range<i32>),
    ServerName(StringMatcher),
    Metadata(MetadataMatcher),
}

impl TryFrom<&wire::Permission> for Permission {
    type Error = Invalid;

    #[allow(
        deprecated,
        reason = "control planes still send the deprecated metadata rule"
    )]
    fn try_from(permission: &wire::Permission) -> Result<Self, Invalid> {
        let rule = permission
            .rule
            .as_ref()
            .ok_or_else(|| Invalid::new("a permission needs a rule"))?;
        Ok(match rule {
            Rule::Any(any) => Permission::Any(*any),
            Rule::AndRules(set) => Permission::And(try_all(
                "and_rules.rules",
                &set.rules,
                Permission::try_from,
            )?),
            Rule::OrRules(set) => {
                Permission::Or(try_all("or_rules.rules", &set.rules, Permission::try_from)?)
            }
            Rule::NotRule(rule) => Permission::Not(Box::new(
                Permission::try_from(rule.as_ref()).at("not_rule")?,
            )),
            Rule::Header(header) => {
                Permission::Header(HeaderMatcher::try_from(header).at("header")?)
            }
            Rule::UrlPath(path) => Permission::Path(super::principal::path(path).at("url_path")?),
            Rule::UriTemplate(template) => {
                Permission::Template(PathTemplate::try_from(template).at("uri_template")?)
            }
            Rule::DestinationIp(range) => {
                Permission::DestinationIp(Cidr::try_from(range).at("destination_ip")?)
            }
            Rule::DestinationPort(port) => Permission::DestinationPort(
                u16::try_from(*port)
                    .map_err(|_| Invalid::new("not a port").at("destination_port"))?,
            ),
            Rule::DestinationPortRange(range) => {
                Permission::DestinationPorts(range.start..range.end)
            }
            Rule::RequestedServerName(name) => {
                Permission::ServerName(StringMatcher::try_from(name).at("requested_server_name")?)
            }
            Rule::Metadata(metadata) => {
                Permission::Metadata(MetadataMatcher::try_from(metadata).at("metadata")?)
            }
            Rule::SourcedMetadata(sourced) => {
                Permission::Metadata(super::principal::sourced(sourced).at("sourced_metadata")?)
            }
            Rule::Matcher(matcher) => {
                return Err(Invalid::unsupported(&format!(
                    "permission matcher '{}'",
                    matcher.name
                )));
            }
        })
    }
}

impl Permission {
    /// True when what is done fits.
    pub(super) fn matches(&self, context: &RbacContext<'_>) -> bool {
        match self {
            Permission::Any(any) => *any,
            Permission::And(all) => all.iter().all(|permission| permission.matches(context)),
            Permission::Or(any) => any.iter().any(|permission| permission.matches(context)),
            Permission::Not(permission) => !permission.matches(context),
            Permission::Header(header) => context
                .headers
                .is_some_and(|headers| header.matches(headers)),
            Permission::Path(path) => context
                .headers
                .is_some_and(|headers| path.matches(headers.path.path())),
            Permission::Template(template) => context
                .headers
                .is_some_and(|headers| template.matches(headers.path.path())),
            Permission::DestinationIp(range) => {
                range.contains(context.connection.local_address.ip())
            }
            Permission::DestinationPort(port) => context.connection.local_address.port() == *port,
            Permission::DestinationPorts(range) => {
                range.contains(&i32::from(context.connection.local_address.port()))
            }
            Permission::ServerName(name) => name.matches(
                context
                    .connection
                    .server_name
                    .as_deref()
                    .unwrap_or_default(),
            ),
            Permission::Metadata(metadata) => {
                metadata.matches(context.metadata.get(metadata.filter()))
            }
        }
    }
}
