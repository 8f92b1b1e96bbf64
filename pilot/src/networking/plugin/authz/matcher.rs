//! Values of authorization rules as matchers: `exact`, `prefix*`, `*suffix`, `*` (anything that is there).

use proto::envoy::config::core::v3::CidrRange;
use proto::envoy::config::rbac::v3::{
    Permission, Principal,
    permission::{self, Rule},
    principal::{self, Authenticated, Identifier},
};
use proto::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use proto::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, PathMatcher, StringMatcher, ValueMatcher, list_matcher,
    metadata_matcher::{PathSegment, path_segment::Segment},
    path_matcher,
    string_matcher::MatchPattern,
    value_matcher,
};

use crate::networking::wire::{exact, pattern, regex};

pub(super) fn permission(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

pub(super) fn principal(identifier: Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

/// Any of `permissions`; a single one stands for itself.
pub(super) fn any_permission(mut permissions: Vec<Permission>) -> Permission {
    if permissions.len() == 1 {
        return permissions.remove(0);
    }
    permission(Rule::OrRules(permission::Set { rules: permissions }))
}

pub(super) fn all_permissions(permissions: Vec<Permission>) -> Permission {
    if permissions.is_empty() {
        return permission(Rule::Any(true));
    }
    permission(Rule::AndRules(permission::Set { rules: permissions }))
}

pub(super) fn not_permission(inner: Permission) -> Permission {
    permission(Rule::NotRule(Box::new(inner)))
}

/// Any of `principals`; a single one stands for itself.
pub(super) fn any_principal(mut principals: Vec<Principal>) -> Principal {
    if principals.len() == 1 {
        return principals.remove(0);
    }
    principal(Identifier::OrIds(principal::Set { ids: principals }))
}

pub(super) fn all_principals(principals: Vec<Principal>) -> Principal {
    if principals.is_empty() {
        return principal(Identifier::Any(true));
    }
    principal(Identifier::AndIds(principal::Set { ids: principals }))
}

pub(super) fn not_principal(inner: Principal) -> Principal {
    principal(Identifier::NotId(Box::new(inner)))
}

/// The four forms of text. `*` is "not empty".
pub(super) fn text(value: &str) -> StringMatcher {
    text_after("", value)
}

/// The four forms of text, behind a fixed prefix.
pub(super) fn text_after(before: &str, value: &str) -> StringMatcher {
    if value == "*" {
        return pattern(MatchPattern::SafeRegex(regex(".+")));
    }
    if let Some(suffix) = value.strip_prefix('*') {
        return if before.is_empty() {
            pattern(MatchPattern::Suffix(suffix.to_owned()))
        } else {
            pattern(MatchPattern::SafeRegex(regex(&format!(
                "{}.*{}",
                ::regex::escape(before),
                ::regex::escape(suffix)
            ))))
        };
    }
    if let Some(prefix) = value.strip_suffix('*') {
        return pattern(MatchPattern::Prefix(format!("{before}{prefix}")));
    }
    exact(&format!("{before}{value}"))
}

/// A header's value.
pub(super) fn header(name: &str, value: &str, ignore_case: bool) -> HeaderMatcher {
    let specifier = if value == "*" {
        HeaderMatchSpecifier::PresentMatch(true)
    } else {
        let mut matcher = text(value);
        matcher.ignore_case = ignore_case;
        HeaderMatchSpecifier::StringMatch(matcher)
    };
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..HeaderMatcher::default()
    }
}

/// The path without its query. With `{*}` or `{**}` in it, a template of segments.
pub(super) fn path(value: &str) -> PathMatcher {
    let matcher = if value.contains("{*}") || value.contains("{**}") {
        pattern(MatchPattern::SafeRegex(regex(&template(value))))
    } else {
        text(value)
    };
    PathMatcher {
        rule: Some(path_matcher::Rule::Path(matcher)),
    }
}

/// `/a/{*}/b/{**}` as an expression: `{*}` is one segment, `{**}` all that follows. As in Envoy's templates a slash at the end counts.
fn template(value: &str) -> String {
    let segments = value.split('/').map(|segment| match segment {
        "{*}" => "[^/]+".to_owned(),
        "{**}" => ".*".to_owned(),
        literal => ::regex::escape(literal),
    });
    segments.collect::<Vec<_>>().join("/")
}

/// The peer's identity.
pub(super) fn authenticated(matcher: StringMatcher) -> Principal {
    principal(Identifier::Authenticated(Authenticated {
        principal_name: Some(matcher),
    }))
}

pub(super) fn cidr(value: &str) -> Result<CidrRange, String> {
    crate::networking::wire::parse_cidr(value)
        .ok_or_else(|| format!("{value:?} is neither an address nor a CIDR range"))
}

/// Something in dynamic metadata, as a principal.
#[allow(deprecated, reason = "proxies of every age understand it")]
pub(super) fn metadata_principal(matcher: MetadataMatcher) -> Principal {
    principal(Identifier::Metadata(matcher))
}

/// Something in dynamic metadata, as a permission.
#[allow(deprecated, reason = "proxies of every age understand it")]
pub(super) fn metadata_permission(matcher: MetadataMatcher) -> Permission {
    permission(Rule::Metadata(matcher))
}

/// Text in dynamic metadata.
pub(super) fn metadata(filter: &str, path: &[&str], matcher: StringMatcher) -> MetadataMatcher {
    metadata_value(
        filter,
        path,
        value_matcher::MatchPattern::StringMatch(matcher),
    )
}

/// A member of a list in dynamic metadata.
pub(super) fn metadata_list(
    filter: &str,
    path: &[&str],
    matcher: StringMatcher,
) -> MetadataMatcher {
    let member = ValueMatcher {
        match_pattern: Some(value_matcher::MatchPattern::StringMatch(matcher)),
    };
    let list = ListMatcher {
        match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(member))),
    };
    metadata_value(
        filter,
        path,
        value_matcher::MatchPattern::ListMatch(Box::new(list)),
    )
}

fn metadata_value(
    filter: &str,
    path: &[&str],
    pattern: value_matcher::MatchPattern,
) -> MetadataMatcher {
    MetadataMatcher {
        filter: filter.to_owned(),
        path: path
            .iter()
            .map(|key| PathSegment {
                segment: Some(Segment::Key((*key).to_owned())),
            })
            .collect(),
        value: Some(ValueMatcher {
            match_pattern: Some(pattern),
        }),
        invert: false,
    }
}

/// `.*/ns/<value>/.*`; a star in the value stands for anything.
pub(super) fn namespace(value: &str) -> StringMatcher {
    let value = ::regex::escape(value).replace("\\*", ".*");
    pattern(MatchPattern::SafeRegex(regex(&format!(".*/ns/{value}/.*"))))
}

/// Any trust domain, `/ns/<namespace>/`, perhaps more, `sa/<account>`, perhaps more.
pub(super) fn service_account(value: &str, own_namespace: &str) -> StringMatcher {
    let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
    let (namespace, account) = (::regex::escape(namespace), ::regex::escape(account));
    pattern(MatchPattern::SafeRegex(regex(&format!(
        "spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?"
    ))))
}

/// SPIFFE ids of a trust domain; a star stands for anything but a slash.
pub(super) fn trust_domain(value: &str) -> StringMatcher {
    if value == "*" {
        return pattern(MatchPattern::Prefix("spiffe://".to_owned()));
    }
    if value.contains('*') {
        let value = ::regex::escape(value).replace("\\*", "[^/]*");
        return pattern(MatchPattern::SafeRegex(regex(&format!(
            "spiffe://{value}/.*"
        ))));
    }
    pattern(MatchPattern::Prefix(format!("spiffe://{value}/")))
}
