//! Redirects: the `location` that a route makes out of the request.

use http::StatusCode;
use proto::envoy::config::route::v3 as wire;
use wire::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};

use crate::http::headers::{RequestHeaders, Scheme, names};
use crate::invalid::{At as _, Invalid};
use crate::matcher::RegexSubstitution;

use super::RouteMatch;
use super::path_rewrite::{regex_path, replace_prefix};
use super::virtual_host::strip_port;

/// A compiled `RedirectAction`.
#[derive(Debug)]
pub(crate) struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub(crate) status: StatusCode,
    scheme: Option<Box<str>>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: PathChange,
    strips_query: bool,
}

#[derive(Debug)]
enum PathChange {
    Keep,
    Path(Box<str>),
    Prefix(Box<str>),
    Regex(RegexSubstitution),
}

impl TryFrom<&wire::RedirectAction> for Redirect {
    type Error = Invalid;

    fn try_from(redirect: &wire::RedirectAction) -> Result<Self, Invalid> {
        let scheme = match &redirect.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.as_str().into()),
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        };
        let path = match &redirect.path_rewrite_specifier {
            None => PathChange::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => {
                PathChange::Path(path.as_str().into())
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                PathChange::Prefix(prefix.as_str().into())
            }
            Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
                PathChange::Regex(RegexSubstitution::try_from(regex).at("regex_rewrite")?)
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return Err(Invalid::unsupported("path_rewrite"));
            }
        };
        let port = match redirect.port_redirect {
            0 => None,
            port => Some(
                u16::try_from(port).map_err(|_| Invalid::new("not a port").at("port_redirect"))?,
            ),
        };
        Ok(Redirect {
            status: match redirect.response_code() {
                RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
                RedirectResponseCode::Found => StatusCode::FOUND,
                RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
                RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
                RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
            },
            scheme,
            host: (!redirect.host_redirect.is_empty())
                .then(|| redirect.host_redirect.as_str().into()),
            port,
            path,
            strips_query: redirect.strip_query,
        })
    }
}

impl Redirect {
    /// The `location`.
    pub(crate) fn location(&self, route: &RouteMatch, headers: &RequestHeaders) -> String {
        let from_scheme = match headers.text(&names::X_FORWARDED_PROTO) {
            Some(proto) if proto.eq_ignore_ascii_case("https") => Scheme::Https,
            Some(_) => Scheme::Http,
            None => headers.scheme,
        };
        let scheme = self.scheme.as_deref().unwrap_or(from_scheme.as_str());
        let mut host = self.host.as_deref().unwrap_or_else(|| headers.host());
        if self.port.is_some() || self.host.is_none() && drops_port(from_scheme, scheme, host) {
            host = strip_port(host);
        }
        let path = headers.path.as_str();
        let query = headers.path.query();
        let rewritten;
        let path = match &self.path {
            PathChange::Keep => path,
            PathChange::Path(path)
                if path.contains('?') || self.strips_query || query.is_none() =>
            {
                return build(scheme, host, self.port, path);
            }
            PathChange::Path(path) => {
                return build(
                    scheme,
                    host,
                    self.port,
                    &format!("{path}?{}", query.unwrap_or_default()),
                );
            }
            PathChange::Prefix(prefix) => {
                rewritten = replace_prefix(route, path, prefix);
                std::str::from_utf8(&rewritten).unwrap_or(path)
            }
            PathChange::Regex(regex) => {
                rewritten = regex_path(regex, headers.path.path(), query);
                std::str::from_utf8(&rewritten).unwrap_or(path)
            }
        };
        let path = if self.strips_query {
            path.split('?').next().unwrap_or_default()
        } else {
            path
        };
        build(scheme, host, self.port, path)
    }
}

/// The scheme's default port goes away when the scheme changes.
fn drops_port(from: Scheme, to: &str, host: &str) -> bool {
    match (from, to) {
        (Scheme::Http, "https") => host.ends_with(":80"),
        (Scheme::Https, "http") => host.ends_with(":443"),
        _ => false,
    }
}

fn build(scheme: &str, host: &str, port: Option<u16>, path: &str) -> String {
    match port {
        Some(port) => format!("{scheme}://{host}:{port}{path}"),
        None => format!("{scheme}://{host}{path}"),
    }
}
