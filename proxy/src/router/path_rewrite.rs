//! Path rewrites of routes that forward: by prefix, expression, template or format. The query stays.

use http::HeaderValue;
use proto::envoy::config::route::v3 as wire;

use crate::access_log::{Format, FormatContext};
use crate::http::headers::{RequestHeaders, names};
use crate::invalid::{At as _, Invalid};
use crate::matcher::{PathTemplateRewrite, RegexSubstitution};
use crate::stream_info::StreamInfo;

use super::RouteMatch;
use super::route_match::PathMatch;

/// How a path is rewritten.
#[derive(Debug)]
pub(super) enum PathRewrite {
    Prefix(Box<str>),
    Regex(RegexSubstitution),
    Template(PathTemplateRewrite),
    Format(Format),
}

impl PathRewrite {
    /// The rewrite of an action, if it has one.
    pub(super) fn try_new(action: &wire::RouteAction) -> Result<Option<Self>, Invalid> {
        let mut found = Vec::new();
        if let Some(regex) = &action.regex_rewrite {
            let regex = RegexSubstitution::try_from(regex).at("regex_rewrite")?;
            found.push(PathRewrite::Regex(regex));
        }
        if !action.prefix_rewrite.is_empty() {
            found.push(PathRewrite::Prefix(action.prefix_rewrite.as_str().into()));
        }
        if let Some(policy) = &action.path_rewrite_policy {
            let template = PathTemplateRewrite::try_from(policy).at("path_rewrite_policy")?;
            found.push(PathRewrite::Template(template));
        }
        if !action.path_rewrite.is_empty() {
            let format = Format::parse(&action.path_rewrite).at("path_rewrite")?;
            found.push(PathRewrite::Format(format));
        }
        if found.len() > 1 {
            return Err(Invalid::new(
                "specify only one of prefix_rewrite, regex_rewrite, path_rewrite_policy, path_rewrite",
            ));
        }
        Ok(found.pop())
    }

    /// Rewrites a request's path.
    pub(super) fn apply(
        &self,
        route: &RouteMatch,
        headers: &mut RequestHeaders,
        info: &StreamInfo,
        keep_original: bool,
    ) {
        let rewritten = match self {
            PathRewrite::Prefix(prefix) => replace_prefix(route, headers.path.as_str(), prefix),
            PathRewrite::Regex(regex) => {
                regex_path(regex, headers.path.path(), headers.path.query())
            }
            PathRewrite::Template(rewrite) => {
                let path = headers.path.path();
                let rewritten = match &route.path {
                    PathMatch::Template(template) => template.rewrite(path, rewrite),
                    _ => None,
                };
                with_query(
                    rewritten.unwrap_or_else(|| path.as_bytes().to_vec()),
                    headers.path.query(),
                )
            }
            PathRewrite::Format(format) => {
                let path = format.text(&FormatContext::of_request(info, headers), "");
                with_query(path.into_bytes(), headers.path.query())
            }
        };
        if rewritten == headers.path.as_str().as_bytes() {
            return;
        }
        if keep_original && let Ok(original) = HeaderValue::from_str(headers.path.as_str()) {
            headers
                .map
                .insert(names::X_ENVOY_ORIGINAL_PATH.clone(), original);
        }
        headers.set_path(rewritten);
    }

    /// Refuses a rewrite by variables that the match does not have.
    pub(super) fn check(&self, route: &RouteMatch) -> Result<(), Invalid> {
        let PathRewrite::Template(rewrite) = self else {
            return Ok(());
        };
        let PathMatch::Template(template) = &route.path else {
            return Err(Invalid::new(
                "a path template rewrite needs a path template match",
            ));
        };
        match rewrite.missing_in(template) {
            Some(name) => Err(Invalid::new(format!("the match has no variable '{name}'"))),
            None => Ok(()),
        }
    }
}

/// `path` (with query) with what the route matched replaced by `prefix`.
pub(super) fn replace_prefix(route: &RouteMatch, path: &str, prefix: &str) -> Vec<u8> {
    let plain_length = path.find('?').unwrap_or(path.len());
    let matched = match &route.path {
        PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => prefix.len(),
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Template(_) => plain_length,
        PathMatch::Connect => return path.as_bytes().to_vec(),
    };
    let mut out = prefix.as_bytes().to_vec();
    out.extend_from_slice(path.as_bytes().get(matched..).unwrap_or_default());
    out
}

/// The path rewritten by an expression, the query kept.
pub(super) fn regex_path(regex: &RegexSubstitution, path: &str, query: Option<&str>) -> Vec<u8> {
    with_query(regex.apply(path.as_bytes()).into_owned(), query)
}

fn with_query(mut out: Vec<u8>, query: Option<&str>) -> Vec<u8> {
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    out
}
