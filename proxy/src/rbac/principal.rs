//! Principals: who does it.

use proto::envoy::config::rbac::v3 as wire;
use proto::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use wire::principal::Identifier;

use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Cidr, HeaderMatcher, MetadataMatcher, StringMatcher};

use super::RbacContext;

/// A compiled `Principal`.
#[derive(Debug)]
pub(super) enum Principal {
    Any(bool),
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Not(Box<Principal>),
    /// By certificate; without a matcher any certificate will do.
    Authenticated(Option<StringMatcher>),
    /// The peer, as told by the PROXY protocol if that was used.
    SourceIp(Cidr),
    DirectRemoteIp(Cidr),
    RemoteIp(Cidr),
    Header(HeaderMatcher),
    Path(StringMatcher),
    Metadata(MetadataMatcher),
}

impl TryFrom<&wire::Principal> for Principal {
    type Error = Invalid;

    #[allow(
        deprecated,
        reason = "control planes still send source_ip and metadata"
    )]
    fn try_from(principal: &wire::Principal) -> Result<Self, Invalid> {
        let identifier = principal
            .identifier
            .as_ref()
            .ok_or_else(|| Invalid::new("a principal needs an identifier"))?;
        Ok(match identifier {
            Identifier::Any(any) => Principal::Any(*any),
            Identifier::AndIds(set) => {
                Principal::And(try_all("and_ids.ids", &set.ids, Principal::try_from)?)
            }
            Identifier::OrIds(set) => {
                Principal::Or(try_all("or_ids.ids", &set.ids, Principal::try_from)?)
            }
            Identifier::NotId(id) => {
                Principal::Not(Box::new(Principal::try_from(id.as_ref()).at("not_id")?))
            }
            Identifier::Authenticated(authenticated) => Principal::Authenticated(
                authenticated
                    .principal_name
                    .as_ref()
                    .map(StringMatcher::try_from)
                    .transpose()
                    .at("authenticated.principal_name")?,
            ),
            Identifier::SourceIp(range) => {
                Principal::SourceIp(Cidr::try_from(range).at("source_ip")?)
            }
            Identifier::DirectRemoteIp(range) => {
                Principal::DirectRemoteIp(Cidr::try_from(range).at("direct_remote_ip")?)
            }
            Identifier::RemoteIp(range) => {
                Principal::RemoteIp(Cidr::try_from(range).at("remote_ip")?)
            }
            Identifier::Header(header) => {
                Principal::Header(HeaderMatcher::try_from(header).at("header")?)
            }
            Identifier::UrlPath(matcher) => Principal::Path(path(matcher).at("url_path")?),
            Identifier::Metadata(metadata) => {
                Principal::Metadata(MetadataMatcher::try_from(metadata).at("metadata")?)
            }
            Identifier::SourcedMetadata(metadata) => {
                Principal::Metadata(sourced(metadata).at("sourced_metadata")?)
            }
            Identifier::FilterState(state) => principal_of_filter_state(state)?,
            Identifier::Custom(custom) => {
                return Err(Invalid::unsupported(&format!(
                    "principal extension '{}'",
                    custom.name
                )));
            }
        })
    }
}

/// Istio asks for the peer's identity by filter state: the key under which its proxy leaves the verified principal.
fn principal_of_filter_state(
    state: &proto::envoy::r#type::matcher::v3::FilterStateMatcher,
) -> Result<Principal, Invalid> {
    use proto::envoy::r#type::matcher::v3::filter_state_matcher::Matcher;
    match (&state.key[..], &state.matcher) {
        ("io.istio.peer_principal", Some(Matcher::StringMatch(text))) => {
            Ok(Principal::Authenticated(Some(
                StringMatcher::try_from(text).at("filter_state.string_match")?,
            )))
        }
        (key, _) => Err(Invalid::unsupported(&format!("filter state '{key}'")).at("filter_state")),
    }
}

/// The string matcher of a path matcher.
pub(super) fn path(matcher: &PathMatcher) -> Result<StringMatcher, Invalid> {
    match &matcher.rule {
        Some(path_matcher::Rule::Path(path)) => StringMatcher::try_from(path),
        None => Err(Invalid::new("a path matcher needs a path")),
    }
}

/// The matcher of sourced metadata, which must be dynamic.
pub(super) fn sourced(metadata: &wire::SourcedMetadata) -> Result<MetadataMatcher, Invalid> {
    if metadata.metadata_source() != wire::MetadataSource::Dynamic {
        return Err(Invalid::unsupported("route metadata"));
    }
    let matcher = metadata
        .metadata_matcher
        .as_ref()
        .ok_or_else(|| Invalid::new("a metadata matcher is needed"))?;
    MetadataMatcher::try_from(matcher)
}

impl Principal {
    /// True when who does it fits.
    pub(super) fn matches(&self, context: &RbacContext<'_>) -> bool {
        let connection = context.connection;
        match self {
            Principal::Any(any) => *any,
            Principal::And(all) => all.iter().all(|principal| principal.matches(context)),
            Principal::Or(any) => any.iter().any(|principal| principal.matches(context)),
            Principal::Not(principal) => !principal.matches(context),
            Principal::Authenticated(name) => is_authenticated(context, name.as_ref()),
            Principal::SourceIp(range) => range.contains(connection.remote_address.ip()),
            Principal::DirectRemoteIp(range) => {
                range.contains(connection.direct_remote_address.ip())
            }
            Principal::RemoteIp(range) => range.contains(context.remote_ip),
            Principal::Header(header) => context
                .headers
                .is_some_and(|headers| header.matches(headers)),
            Principal::Path(path) => context
                .headers
                .is_some_and(|headers| path.matches(headers.path.path())),
            Principal::Metadata(metadata) => {
                metadata.matches(context.metadata.get(metadata.filter()))
            }
        }
    }
}

/// The names of a certificate are looked at in Envoy's order: URIs, else DNS names, else the subject.
fn is_authenticated(context: &RbacContext<'_>, name: Option<&StringMatcher>) -> bool {
    let Some(tls) = &context.connection.tls else {
        return false;
    };
    let Some(name) = name else {
        return true;
    };
    let Some(peer) = &tls.peer else {
        return false;
    };
    if !peer.uri_sans.is_empty() {
        return peer.uri_sans.iter().any(|uri| name.matches(uri));
    }
    if !peer.dns_sans.is_empty() {
        return peer.dns_sans.iter().any(|dns| name.matches(dns));
    }
    name.matches(&peer.subject)
}
